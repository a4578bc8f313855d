"""The command line of stage one. Nothing is imported before its signals are followed (data/cli.py)."""

import argparse
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from data.cli import Arguments, Parser, command_parser, configure, print_and_stop, run_command, say_nothing
from data.errors import UserError

if TYPE_CHECKING:
    from data.loader import Data
    from data.sources.detect import Detected
    from mae.settings import MAEConfig

FLAGS = {"verbose": "engine.verbose=true", "deterministic": "engine.deterministic=true"}  # stand for settings

# an image's loss goes to the floor when nothing about it is drawn anew; a probe of N images says nothing
OVERFIT = (
    *("pretrain.augment.enabled=false", "pretrain.probe_every=null", "pretrain.select=reconstruction"),
    *("pretrain.continue_from=null", "pretrain.keep_epochs=[]"),
)
OVERFIT_EPOCHS = 2000  # at most: each goes through all images, in one update where these fit into a batch
OVERFIT_RATE = 1e-3  # learning rate: a config's own would be scaled down to a batch of these few images


def overfit_settings(section: str, images: int) -> list[str]:
    """What --overfit changes in a stage's section: time enough, and a rate that moves the weights."""
    optimizer = f"{section}.optimizer"
    return [
        f"{section}.epochs={OVERFIT_EPOCHS}",
        f"{optimizer}.base_lr={OVERFIT_RATE * 256 / images}",
        f"{optimizer}.schedule=cosine",
        f"{optimizer}.cooldown_epochs=0.0",
        f"{optimizer}.warmup_epochs=null",
        f"{optimizer}.weight_decay=0.0",
        f"{optimizer}.ema=null",
    ]


def training_parser(prog: str, about: str) -> Parser:
    """`command_parser` with what both stages of training share."""
    parser = command_parser(prog, about)

    # how a run goes
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue from the run folder's checkpoint, or fail if it has none; without this flag, a run continues "
        "if there is a checkpoint and begins if there is none",
    )
    parser.add_argument("--verbose", action="store_true", help="print a line every engine.log_every steps")
    parser.add_argument("--deterministic", action="store_true", help="use only deterministic algorithms, also on CUDA")

    parser.add_argument(
        "--launch",
        metavar="auto | N",
        help="train in several processes on this machine, which share each batch: one for each GPU (auto), or N",
    )

    # another run than the config's
    parser.add_argument(
        "--dry-run", action="store_true", help="print the time and memory that the run would take here; write nothing"
    )
    parser.add_argument(
        "--overfit",
        type=int,
        metavar="N",
        help="a check: train and validate on the same N training images without augmentation, and print PASS, or FAIL "
        "with exit code 1; the run folder's name gets -overfitN",
    )
    return parser


def parse_training(parser: Parser, argv: Arguments, section: str, overfit: Iterable[str]) -> argparse.Namespace:
    """Parse; what flags stand for and --overfit changes goes before the overrides, which may say otherwise."""
    arguments = parser.parse(argv)
    count = arguments.overfit
    if count is not None and count < 2:
        raise UserError(f"command line: --overfit: found {count}, expected at least 2 images")

    # an override stands later in the list, and the later one counts
    implied = [setting for flag, setting in FLAGS.items() if getattr(arguments, flag)]
    if count:
        implied += [*overfit, *overfit_settings(section, count)]
    arguments.overrides = [*implied, *arguments.overrides]
    return arguments


def launch_ranks(arguments: argparse.Namespace, argv: Arguments, module: str, name: str, device: str) -> None:
    """With --launch: run the command in several processes instead of here, where that means more than one.

    A dry run stays here and says that it looks at one.
    """
    if arguments.launch is None:
        return
    from mae.engine.launch import launch, ranks_to_launch

    ranks = ranks_to_launch(arguments.launch, device)
    if ranks > 1 and arguments.dry_run:
        print(f"--launch: what follows is for one process with the whole batch; {ranks} would share it")
    elif ranks > 1:
        launch(module, name, sys.argv[1:] if argv is None else argv, ranks)


def expect_named(config: "MAEConfig", data: bool = True) -> None:
    """UserError where the data, or the weights to begin from, are not where they are said to be: before torch comes."""
    from data.config import expand
    from data.places import expect_places
    from mae.engine.checkpoint_file import existing

    if data:
        expect_places(config.data)
    if config.model.init is not None:
        existing(expand(config.model.init, "model.init"))


def add_data(parser: Parser) -> None:
    """The option that stands in the place of a config."""
    parser.add_argument(
        "--data",
        metavar="FOLDER | FILE",
        help="your images, instead of --config: a folder (also class folders, or a public data set), a CSV or an "
        ".npz; settings are chosen, shown, and written beside the run folder",
    )


def data_layout(arguments: argparse.Namespace, labels: bool) -> "Detected":
    """How what --data names is read; a wrong place is answered here, before torch is loaded."""
    if arguments.config:
        raise UserError(f"command line: found --data and --config {arguments.config}, expected one of them")
    from data.config import parse_overrides
    from data.sources.detect import detect, named

    given = parse_overrides(arguments.overrides)
    if "data.source" in given:
        return named(arguments.data, str(given["data.source"]))
    return detect(arguments.data, labels, classes="data.normal" in given)


def said(arguments: argparse.Namespace) -> Callable[[str], None]:
    """Who is told what was chosen; --print-config prints a config and nothing beside it."""
    return say_nothing if arguments.print_config else print


def _config_for_data(arguments: argparse.Namespace) -> "MAEConfig":
    layout = data_layout(arguments, labels=False)
    from mae.own_data import config_for_data

    write = not (arguments.print_config or arguments.dry_run or arguments.overfit)
    config = config_for_data(layout, arguments.overrides, "mae-pretrain", write, said(arguments))
    if arguments.print_config:
        print_and_stop(config)
    return config


def pretrain(argv: Arguments = None) -> None:
    """The command mae-pretrain."""
    run_command(_pretrain, argv)


def _pretrain(argv: Arguments) -> None:
    parser = training_parser(
        "mae-pretrain", "Stage one: pretrain a masked autoencoder. An interrupted run continues where it stopped."
    )
    add_data(parser)
    arguments = parse_training(parser, argv, "pretrain", OVERFIT)
    config = _pretrain_config(arguments)
    _expect_inputs(config, arguments.dry_run)
    launch_ranks(arguments, argv, "mae.cli", "pretrain", config.device)

    # torch comes only now: --help, a wrong setting and a wrong path are answered at once
    from data.config import expand
    from data.loader import open_data
    from data.unlabelled import with_unlabelled
    from mae.engine import distributed
    from mae.engine.run import configure_torch, expect_checkpoint, training_device
    from mae.pretrain import check_model, check_settings, pretrain
    from mae.weights import resolve

    # what cannot work is said before hours of decoding
    configure_torch(config)
    device = training_device(config)
    resolved = resolve(config)
    check_model(resolved.model, resolved.pretrain, resolved.data.image_size)
    if arguments.dry_run:
        from mae.dry_run import dry_run

        print(dry_run(resolved))
        return
    if arguments.resume:
        expect_checkpoint(Path(expand(config.run, "run")))
    check_settings(resolved)

    # before ranks meet: the first one here decodes, the others wait for its lock
    data = open_data(config.data)
    if arguments.overfit:
        data = data.overfit(arguments.overfit)
    else:
        data = with_unlabelled(data, config.data)
    if distributed.is_main():
        print(*data.manifest.notes, data.manifest.summary(), sep="\n")

    with distributed.process_group(device):
        folder = pretrain(
            config, data, say=lambda text: print(text, flush=True), by_heart=arguments.overfit is not None
        )
    if arguments.overfit:
        end_overfit(folder, arguments.overfit)
    if distributed.is_main():
        print(f"watch: tensorboard --logdir {shlex.quote(str(folder))}")
        print(_next_step(folder, data))


def _pretrain_config(arguments: argparse.Namespace) -> "MAEConfig":
    from data.config import beside, change_config, expand
    from mae.settings import MAEConfig

    config: MAEConfig = _config_for_data(arguments) if arguments.data else configure(arguments, MAEConfig)
    if not arguments.overfit:
        return config
    folder_of_its_own = beside(Path(expand(config.run, "run")), f"-overfit{arguments.overfit}", "run")
    return change_config(config, {"run": str(folder_of_its_own)})


def _expect_inputs(config: "MAEConfig", dry_run: bool) -> None:
    """UserError where what it reads is not named, or is nowhere."""
    from data.config import expand
    from data.places import expect_unlabelled
    from mae.engine.checkpoint_file import checkpoint_file, stands_somewhere

    expect_named(config, data=not dry_run)
    if not dry_run:
        expect_unlabelled(config.data)
    if config.pretrain.continue_from is not None and not stands_somewhere(Path(expand(config.run, "run"))):
        checkpoint_file(expand(config.pretrain.continue_from, "pretrain.continue_from"))


def end_overfit(folder: Path, count: int) -> NoReturn:
    """Say PASS or FAIL; a failed check is no mistake of the command line, so its exit code is 1."""
    from mae.engine import distributed
    from mae.engine.overfit import verdict

    passed, line = verdict(folder, count)
    if distributed.is_main():
        print(line)
    raise SystemExit(0 if passed else 1)


def _next_step(folder: Path, data: "Data") -> str:
    """What to do with a pretraining: a classifier takes images of both classes to train on and to validate on."""
    labels = data.everything().groupby("split")["label"].nunique()
    if min(labels.get("train", 0), labels.get("validate", 0)) > 1:
        return f"next: mae-finetune --checkpoint {shlex.quote(str(folder))}"
    return (
        "the images have no labels of two classes, so there is nothing to fine-tune on; "
        f"next: mae-reconstruct IMAGE --checkpoint {shlex.quote(str(folder))} --out FOLDER"
    )


def reconstruct(argv: Arguments = None) -> None:
    """The command mae-reconstruct."""
    run_command(_reconstruct, argv)


def _reconstruct(argv: Arguments) -> None:
    arguments = _reconstruct_parser().parse(argv)
    from mae.engine.checkpoint_file import checkpoint_file

    path = checkpoint_file(arguments.checkpoint)  # before torch comes

    from data.config import change_config
    from mae.engine.checkpoint import load_checkpoint
    from mae.engine.run import configure_torch, device_of
    from mae.reconstruct import View, reconstruct_files

    # all but the device is as in the pretraining
    checkpoint = load_checkpoint(path, "mae")
    config = change_config(checkpoint.config, {"device": arguments.device})
    configure_torch(config)
    view = View(
        mask_ratio=arguments.mask_ratio or config.pretrain.mask_ratio,
        seed=arguments.seed,
        samples=arguments.samples,
        separate=arguments.separate,
        hidden_statistics=arguments.hidden_statistics,
    )

    device = device_of(config.device)
    unreadable = reconstruct_files(checkpoint, arguments.images, arguments.out, view, device)
    if unreadable:
        raise SystemExit(2)  # each was named as it was met


def _reconstruct_parser() -> Parser:
    parser = Parser(
        "mae-reconstruct",
        description="Show how a pretrained model reconstructs images: original, masked, reconstruction and their mix.",
        allow_abbrev=False,
    )

    # from where, to where
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="JPEG, PNG or DICOM files, or folders of these")
    parser.add_argument("--checkpoint", required=True, metavar="RUN", help="run folder of mae-pretrain, or a .pt in it")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the sheets, NAME-sheet.png")

    # what is hidden
    ratio = _number(float, "a share between 0 and 1", lambda share: 0 < share < 1)
    parser.add_argument("--mask-ratio", type=ratio, help="share of the patches to hide (default: the pretraining's)")
    seed = _number(int, "a whole number, 0 or more", lambda number: 0 <= number < 2**63)
    parser.add_argument("--seed", type=seed, default=0, help="seed of the mask, the same for every image (default: 0)")
    samples = _number(int, "a whole number, 1 or more", lambda number: number >= 1)
    parser.add_argument("--samples", type=samples, default=1, help="masks per image, one row each (default: 1)")

    # what is shown
    parser.add_argument("--separate", action="store_true", help="also write each picture to its own file")
    parser.add_argument(
        "--hidden-statistics",
        action="store_true",
        help="give predicted patches the mean and deviation of the hidden ones; this leaks what was hidden",
    )
    parser.add_argument("--device", default="auto", help="auto (CUDA where there is one), cpu, cuda or cuda:N")
    return parser


def _number(kind: type[int] | type[float], expected: str, fits: Callable[[float], bool]) -> Callable[[str], float]:
    """An option's type that says what was expected."""

    def read(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            number = None
        if number is None or not fits(number):
            raise argparse.ArgumentTypeError(f"found {text!r}, expected {expected}")
        return number

    return read
