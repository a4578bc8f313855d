"""A training step of ours against Hugging Face's and facebookresearch/mae's: images/s, memory, share of the hardware.

    python benchmarks/pretrain_step.py                               # the three cases at ViT-B/16, 224 pixels
    python benchmarks/pretrain_step.py --case same --facebook PATH --json out.json
    python benchmarks/pretrain_step.py --markdown                    # the tables of docs/speed.md
    python benchmarks/pretrain_step.py --device cuda --precision bf16 --batch 256 --compile --case same

    same       MAE, 3 channels, the paper's decoder, 75 % masked: the same mathematics in every system
    fast       our fast recipe (grey, cross decoder, 90 % masked, a quarter predicted) against the others' default
    finetune   a step of our classifier against ViTForImageClassification

All systems of a case run in one process and take turns, in an order that alternates. So do the matrix products that
their arithmetic is compared with. Medians are shown, and the ratio is the median of the rounds' ratios. Memory is the
peak of a process that holds one system alone. Each system has the AdamW that its users have.

On a CPU ours also appears with each of the two matrix products (mae/product.py); `ours` has the one that a run would
choose. On a GPU, time is the device's own (CUDA events), and memory is what torch allocates there. Systems
are measured one after the other: each is freed before the next is built, as several might not fit.
"""

import argparse
import gc
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from facebookresearch import facebook_files
from results import processor
from torch import Tensor, nn

from classify.finetune import classification_loss
from classify.models.classifier import build_classifier
from mae.cost import step_flops
from mae.engine.memory import keep_freed_memory
from mae.engine.optim import adamw, autocast, parameter_groups
from mae.engine.run import environment
from mae.engine.schedule import set_learning_rate
from mae.linear import _multiply, onednn_product
from mae.model import PRESETS, build_mae
from mae.product import configure_products, faster_product, linear_shapes
from mae.transformer import configure_blocks

LR, BETAS, DECAY = 1.5e-4, (0.9, 0.95), 0.05
BATCH = {"same": 16, "fast": 64, "finetune": 16}
Options = argparse.Namespace


class Model(NamedTuple):
    module: nn.Module
    loss: Callable[[], Tensor]


@dataclass(frozen=True)
class System:
    build: Callable[[Options, int], Model]  # of a batch size
    ours: bool = False
    product: str = "auto"  # of ours, on a CPU


# ---------------------------------------------------------------- systems


def our_mae(options: Options, batch: int) -> Model:
    sizes = {"norm_pixel_loss": False, "norm_eps": 1e-12}  # as ViTMAEConfig's defaults
    model, images = build_mae(options.preset, options.size, 3, **sizes), pixels(options, batch)
    configure_blocks(model, options.compile, options.checkpointing)
    return Model(model, lambda: model(images, 0.75).loss)


def our_fast_mae(options: Options, batch: int) -> Model:
    model, images = build_mae(options.preset, options.size, 1, "cross"), pixels(options, batch, 1)
    configure_blocks(model, options.compile, options.checkpointing)
    return Model(model, lambda: model(images, 0.9, None, 0.25).loss)


def our_classifier(options: Options, batch: int) -> Model:
    model = build_classifier(build_mae(options.preset, options.size, 3).encoder)
    images, labels = pixels(options, batch), torch.ones(batch, device=options.device)
    configure_blocks(model, options.compile, options.checkpointing)
    return Model(model, lambda: classification_loss(model(images), labels))


def huggingface_mae(options: Options, batch: int) -> Model:
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    size = PRESETS[options.preset]
    decoder = {
        "decoder_hidden_size": size["decoder_width"],
        "decoder_num_hidden_layers": size["decoder_depth"],
        "decoder_num_attention_heads": size["decoder_heads"],
        "decoder_intermediate_size": 4 * size["decoder_width"],
    }
    model, images = ViTMAEForPreTraining(ViTMAEConfig(**huggingface_sizes(options), **decoder)), pixels(options, batch)
    return Model(huggingface_settings(model, options), lambda: model(images).loss)


def huggingface_classifier(options: Options, batch: int) -> Model:
    from transformers import ViTConfig, ViTForImageClassification

    model = ViTForImageClassification(ViTConfig(**huggingface_sizes(options), num_labels=2))
    images, labels = pixels(options, batch), torch.ones(batch, dtype=torch.long, device=options.device)
    return Model(huggingface_settings(model, options), lambda: model(images, labels=labels).loss)


def huggingface_sizes(options: Options) -> dict[str, Any]:
    size = PRESETS[options.preset]
    return {
        "image_size": options.size,
        "patch_size": size["patch_size"],
        "hidden_size": size["width"],
        "num_hidden_layers": size["depth"],
        "num_attention_heads": size["heads"],
        "intermediate_size": 4 * size["width"],
    }


def huggingface_settings(model: nn.Module, options: Options) -> nn.Module:
    if options.checkpointing:
        model.gradient_checkpointing_enable()
    if options.compile:
        model.compile()
    return model.train()


def facebook_mae(options: Options, batch: int) -> Model:
    size = PRESETS[options.preset]
    model = facebook_files(options.facebook).MaskedAutoencoderViT(
        img_size=options.size,
        patch_size=size["patch_size"],
        embed_dim=size["width"],
        depth=size["depth"],
        num_heads=size["heads"],
        decoder_embed_dim=size["decoder_width"],
        decoder_depth=size["decoder_depth"],
        decoder_num_heads=size["decoder_heads"],
    )
    if options.compile:
        model.compile()

    images = pixels(options, batch)
    return Model(model, lambda: model(images)[0])


def pixels(options: Options, batch: int, channels: int = 3) -> Tensor:
    return torch.randn(batch, channels, options.size, options.size, device=options.device)


CASES = {
    "same": {"ours": System(our_mae, ours=True), "transformers": System(huggingface_mae)},
    "fast": {"ours, fast recipe": System(our_fast_mae, ours=True), "transformers": System(huggingface_mae)},
    "finetune": {"ours": System(our_classifier, ours=True), "transformers": System(huggingface_classifier)},
}


def systems_of(case: str, options: Options) -> dict[str, System]:
    systems = dict(CASES[case])
    if options.facebook and case != "finetune":
        systems["facebookresearch"] = System(facebook_mae)
    if options.device == "cpu" and options.precision == "fp32" and not options.compile and onednn_product():
        ours, system = next((name, system) for name, system in systems.items() if system.ours)
        for product, name in (("onednn", "oneDNN"), ("blas", "BLAS")):
            systems[f"{ours}, {name}"] = replace(system, product=product)
    return systems


def chosen_product(system: System, options: Options, batch: int) -> str:
    """The matrix product that a run of ours would use here."""
    if not system.ours or options.device != "cpu" or options.precision != "fp32" or options.compile:
        return "auto"
    if system.product != "auto":
        return system.product
    return faster_product(linear_shapes(lambda: system.build(options, batch).loss))


# ---------------------------------------------------------------- measuring


def stepper(system: System, options: Options, batch: int) -> Callable[[], object]:
    """A whole training step: gradients, update."""
    model, loss = system.build(options, batch)
    model.to(options.device)
    configure_products(model, chosen_product(system, options, batch))
    if system.ours:
        optimizer = adamw(parameter_groups(model.named_parameters(), DECAY), BETAS)
        set_learning_rate(optimizer, LR)
    else:
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=LR, betas=BETAS, weight_decay=DECAY)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(torch.device(options.device), options.precision):
            value = loss()
        value.backward()
        optimizer.step()

    return step


def products(options: Options, batch: int) -> dict[str, tuple[int, Callable[[], object]]]:
    """Both of torch's matrix products, at a large square and at the model's widest layers: FLOPs and call."""
    size = PRESETS[options.preset]
    patches = (options.size // size["patch_size"]) ** 2
    shapes = {
        "square": (options.square,) * 3,
        "encoder MLP": (batch * (patches // 4 + 1), size["width"], 4 * size["width"]),
        "decoder MLP": (batch * (patches + 1), size["decoder_width"], 4 * size["decoder_width"]),
    }
    kind = torch.bfloat16 if options.precision == "bf16" else torch.float32

    calls = {}
    for name, (m, k, n) in shapes.items():
        a = torch.randn(m, k, dtype=kind, device=options.device)
        b = torch.randn(n, k, dtype=kind, device=options.device)
        flops = 2 * m * k * n
        shape = f"{name} {m}x{k}x{n}"
        calls[f"torch.mm {shape}"] = (flops, lambda a=a, b=b: torch.mm(a, b.t()))
        if options.device == "cpu" and onednn_product():
            calls[f"oneDNN {shape}"] = (flops, lambda a=a, b=b: _multiply(a, b))
    return calls


def measure(calls: dict[str, Callable[[], object]], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of every call in every round but the first, in an order that is reversed from round to round."""
    warm_up(calls, device)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name in list(calls) if number % 2 else reversed(calls):
            with torch.no_grad() if name.startswith(("torch.mm", "oneDNN")) else torch.enable_grad():
                taken = seconds_on_gpu(calls[name]) if device == "cuda" else seconds_of(calls[name])
            if number:
                seconds[name].append(taken)
    return seconds


def warm_up(calls: dict[str, Callable[[], object]], device: str) -> None:
    """On a GPU: kernels are chosen and compiled in the first steps, and clocks rise."""
    if device == "cuda":
        for call in calls.values():
            for _ in range(3):
                call()
        torch.cuda.synchronize()


def seconds_of(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def seconds_on_gpu(call: Callable[[], object], times: int = 5) -> float:
    """Seconds of one call among several in a row, as in a training: the host may run ahead of the device."""
    begin = torch.cuda.Event(enable_timing=True)
    end = torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(times):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000 / times


def measure_in_turn(case: str, options: Options, batch: int) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds and peak memory on a GPU, one system after the other: with a large batch they would not fit together."""
    seconds = {}
    peaks = {}
    for name, system in systems_of(case, options).items():
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        torch.compiler.reset()
        step = stepper(system, options, batch)
        seconds |= measure({name: step}, options.rounds, options.device)
        peaks[name] = torch.cuda.max_memory_allocated()
        del step

        # in the log even if the time ends with the next system
        taken = statistics.median(seconds[name])
        print(f"{name}: {batch / taken:.0f} images/s, {peaks[name] / 1e9:.1f} GB", flush=True)
    return seconds, peaks


def run_case(case: str, options: Options) -> dict[str, Any]:
    """Every system's speed, memory and arithmetic in one case, and the products that these are compared with."""
    batch = options.batch or BATCH[case]
    systems = systems_of(case, options)
    peaks = {}
    if options.device == "cpu":
        for name, system in systems.items():  # first, while this process is small
            if system.product == "auto":
                peaks[name] = peak_alone(case, name, options)

    # steps and products take turns, so that a machine whose speed drifts treats them alike
    multiplied = products(options, batch)
    multiply = {name: call for name, (_, call) in multiplied.items()}
    arithmetic = {name: flops for name, (flops, _) in multiplied.items()}
    if options.device == "cuda":
        seconds = measure(multiply, options.rounds, options.device)
        del multiply, multiplied  # and their matrices
        seconds_of_steps, peaks = measure_in_turn(case, options, batch)
        seconds |= seconds_of_steps
    else:
        steps = {name: stepper(system, options, batch) for name, system in systems.items()}
        seconds = measure(steps | multiply, options.rounds, options.device)
    rates = {name: flops / statistics.median(seconds[name]) for name, flops in arithmetic.items()}
    best = max(rates.values())
    mm = max(rate for name, rate in rates.items() if name.startswith("torch.mm"))

    rows = {}
    plain = argparse.Namespace(**vars(options) | {"compile": False, "device": "cpu"})
    for name, system in systems.items():
        flops = step_flops(lambda system=system: system.build(plain, 1).loss, "cpu")
        step = statistics.median(seconds[name])
        rows[name] = {
            "images_per_second": batch / step,
            "step_seconds": step,
            "peak_memory_bytes": peaks.get(name, peaks[next(iter(systems))]),  # ours, by whatever product
            "product": chosen_product(system, options, batch),
            "flops_per_image": flops,
            "flops_per_second": batch * flops / step,
            "share_of_best_product": batch * flops / step / best,
            "share_of_torch_mm": batch * flops / step / mm,
            "ratio_of_transformers": statistics.median(
                theirs / own for theirs, own in zip(seconds["transformers"], seconds[name], strict=True)
            ),
            "seconds": seconds[name],
        }
    return {"batch": batch, "systems": rows, "product_flops_per_second": rates}


def peak_alone(case: str, name: str, options: Options) -> int:
    """Peak memory, bytes, of a process that makes two steps of one system."""
    command = [sys.executable, __file__, *sys.argv[1:], "--case", case, "--alone", name]
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    if done.returncode:
        raise SystemExit(f"error: {name}: {done.stderr.strip().splitlines()[-1]}")
    return int(done.stdout.split()[-1])


def peak_of(case: str, name: str, options: Options) -> int:
    """Peak memory of this process after two steps of one system; the second has the optimizer's states."""
    step = stepper(systems_of(case, options)[name], options, options.batch or BATCH[case])
    for _ in range(2):
        step()
    return peak_of_this_process()


def peak_of_this_process() -> int:
    """Linux lets a child inherit its parent's peak in getrusage, so the kernel's own mark comes first."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# ---------------------------------------------------------------- showing

COLUMNS = ("images/s", "s a step", "× transformers", "peak GB", "GFLOPs/image", "of best product", "of torch.mm")


def table(case: str, result: dict[str, Any], options: Options) -> str:
    """One case as a Markdown table, and the products below it."""
    title = f"{case}: {options.preset}, {options.size} pixels, batch {result['batch']}, {options.precision}"
    if options.device == "cuda":
        title += f", {torch.cuda.get_device_name()}"
    settings = [name for name in ("compile", "checkpointing", "keep_freed") if getattr(options, name)]
    lines = [f"**{', '.join([title, *settings])}**", "", f"| | {' | '.join(COLUMNS)} |", "|---" * 8 + "|"]
    lines += [f"| {name} | {' | '.join(cells(row))} |" for name, row in result["systems"].items()]
    chosen = next((row["product"] for name, row in result["systems"].items() if name.startswith("ours")), "auto")
    if chosen != "auto":
        lines += ["", f"By mae/product.py ours computes by {chosen} here."]
    rates = [f"{name} {rate / 1e9:.0f}" for name, rate in result["product_flops_per_second"].items()]
    return "\n".join([*lines, "", f"Matrix products, GFLOP/s: {', '.join(rates)}."])


def cells(row: dict[str, Any]) -> list[str]:
    return [
        f"{row['images_per_second']:.2f}",
        f"{row['step_seconds']:.3g}",
        f"{row['ratio_of_transformers']:.2f}",
        f"{row['peak_memory_bytes'] / 1e9:.2f}",
        f"{row['flops_per_image'] / 1e9:.3g}",
        f"{row['share_of_best_product']:.0%}",
        f"{row['share_of_torch_mm']:.0%}",
    ]


def machine() -> dict[str, Any]:
    """What to know of the machine and the versions."""
    import transformers

    return environment() | {"cpu": processor(), "transformers": transformers.__version__}


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument

    # what is measured
    add("--case", choices=CASES, action="append", help="default: all three; may be repeated")
    add("--preset", choices=PRESETS, default="vit_base_patch16")
    add("--size", type=int, default=224, help="side of the images, pixels")
    add("--batch", type=int, help="images a step; default: 16, and 64 in the case fast")
    add("--rounds", type=int, default=10)

    # how it computes
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--threads", type=int, help="default: torch's choice")
    add("--square", type=int, default=2048, help="side of the large matrix product")
    add("--precision", choices=("fp32", "bf16"), default="fp32")
    add("--compile", action="store_true", help="torch.compile, for all systems")
    add("--checkpointing", action="store_true", help="activation checkpointing, where a system has it")
    add("--keep-freed", action="store_true", help="malloc keeps freed memory, as in our loop; for all systems")

    # what else, and where to
    add("--facebook", type=Path, metavar="PATH", help="files of facebookresearch/mae, to be measured too")
    add("--json", type=Path, metavar="FILE")
    add("--markdown", action="store_true", help="print machine and command too, as docs/speed.md has them")
    add("--alone", help=argparse.SUPPRESS)  # one system's peak memory, in a process of its own
    return parser


def main() -> None:
    options = parser().parse_args()
    if find_spec("transformers") is None:
        raise SystemExit("error: found no transformers, which ours is compared with; pip install transformers")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"error: found no CUDA device (torch {torch.__version__}), expected one, or --device cpu")
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.keep_freed:
        keep_freed_memory()
    if options.alone:
        print(peak_of(options.case[-1], options.alone, options))
    else:
        compare(options)


def compare(options: Options) -> None:
    results = {}
    for case in options.case or CASES:
        results[case] = run_case(case, options)
        print(table(case, results[case], options), end="\n\n", flush=True)

    known = machine()
    if options.markdown:
        print(
            f"{known['cpu']}, {known['threads']} threads; torch {torch.__version__}, transformers "
            f"{known['transformers']}; commit {known['commit']}; `{' '.join(['python', *map(shown, sys.argv)])}`, "
            f"medians of {options.rounds} rounds."
        )
    if options.json:
        settings = {name: value for name, value in vars(options).items() if name not in ("json", "alone")}
        report = {"settings": settings, "cases": results, "environment": known}
        options.json.write_text(json.dumps(report, indent=1, default=str) + "\n", encoding="utf-8")


def shown(word: str) -> str:
    """A word of the command, without the machine's folders."""
    return word if word == "benchmarks/pretrain_step.py" or "/" not in word else "PATH"


if __name__ == "__main__":
    main()
