"""The command line of stage one, parsed before torch is imported."""

import argparse
from collections.abc import Callable
from pathlib import Path

from data.config import (
    Parser,
    change_config,
    configure,
    expand,
    parse_training,
    run_command,
    training_parser,
)

# an image's loss goes to the floor when nothing about it is drawn anew; a probe of N images says nothing
OVERFIT = ("pretrain.augment.enabled=false", "pretrain.probe_every=null", "pretrain.select=reconstruction")


def pretrain(argv: list[str] | None = None) -> None:
    run_command(lambda: _pretrain(argv))


def _pretrain(argv: list[str] | None) -> None:
    parser = training_parser(
        "mae-pretrain", "Stage one: pretrain a masked autoencoder. An interrupted run continues where it stood."
    )
    parser.add_argument("--dry-run", action="store_true", help="print what the run would cost here, and write nothing")
    arguments = parse_training(parser, argv, OVERFIT)
    config = configure(arguments)
    if arguments.overfit:
        config = change_config(config, {"run": f"{config.run.rstrip('/')}-overfit{arguments.overfit}"})
    from data.loader import open_data
    from mae.engine import distributed
    from mae.engine.run import expect_checkpoint, training_device
    from mae.pretrain import check_model, pretrain
    from mae.weights import resolve

    device = training_device(config)
    check_model(resolve(config))
    if arguments.dry_run:
        from mae.dry_run import dry_run

        print(dry_run(resolve(config)))
        return
    if arguments.resume:
        expect_checkpoint(Path(expand(config.run, "run")))
    data = open_data(config)  # before ranks meet: the first one here decodes, the others wait for its lock
    data = data.overfit(arguments.overfit) if arguments.overfit else data
    say = print if distributed.is_main() else lambda *_, **__: None
    say(*data.manifest.notes, data.manifest.summary(), sep="\n")
    with distributed.together(device):
        folder = pretrain(config, data)
    say(f"pretrained: {folder / 'last.pt'}; watch: tensorboard --logdir {folder}")
    say(f"next: mae-finetune --checkpoint {folder / 'last.pt'}")


def reconstruct(argv: list[str] | None = None) -> None:
    run_command(lambda: _reconstruct(argv))


def _reconstruct(argv: list[str] | None) -> None:
    arguments = _reconstruct_parser().parse_args(argv)
    from mae.engine.checkpoint import load_checkpoint
    from mae.engine.run import device_of
    from mae.reconstruct import View, reconstruct_files

    checkpoint = load_checkpoint(arguments.checkpoint, "mae")
    config = change_config(checkpoint.config, {"device": arguments.device})
    view = View(
        mask_ratio=arguments.mask_ratio or config.pretrain.mask_ratio,
        seed=arguments.seed,
        samples=arguments.samples,
        separate=arguments.separate,
        hidden_statistics=arguments.hidden_statistics,
    )
    if reconstruct_files(checkpoint, arguments.images, arguments.out, view, device_of(config)):
        raise SystemExit(2)  # each was named as it was met


def _reconstruct_parser() -> Parser:
    parser = Parser(
        "mae-reconstruct",
        description="Show what a pretrained model makes of images: original, masked, reconstruction and their mix.",
        allow_abbrev=False,
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="JPEG, PNG or DICOM files, or folders of these")
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="last.pt or best.pt of mae-pretrain")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the sheets, NAME-sheet.png")
    ratio = _number(float, "a share between 0 and 1", lambda share: 0 < share < 1)
    parser.add_argument("--mask-ratio", type=ratio, help="share of the patches to hide (default: the pretraining's)")
    seed = _number(int, "a whole number, 0 or more", lambda number: 0 <= number < 2**63)
    parser.add_argument("--seed", type=seed, default=0, help="seed of the mask, the same for every image (default: 0)")
    samples = _number(int, "a whole number, 1 or more", lambda number: number >= 1)
    parser.add_argument("--samples", type=samples, default=1, help="masks of each image, a row each (default: 1)")
    parser.add_argument("--separate", action="store_true", help="write each picture into a file of its own too")
    parser.add_argument(
        "--hidden-statistics",
        action="store_true",
        help="give predicted patches the hidden ones' own mean and deviation; this leaks what was hidden",
    )
    parser.add_argument("--device", default="auto", help="auto (CUDA where there is one), cpu, cuda or cuda:N")
    return parser


def _number(kind: type, expected: str, fits: Callable[[float], bool]) -> Callable[[str], float]:
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
