"""The command lines of stage two, evaluation and comparison. What they need is imported inside (data/cli.py)."""

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from data.cli import Arguments, Parser, command_parser, configure, print_and_stop, run_command
from data.errors import UserError
from mae.cli import (
    add_data,
    data_layout,
    end_overfit,
    expect_named,
    launch_ranks,
    parse_training,
    said,
    training_parser,
)

if TYPE_CHECKING:
    from classify.comparison import Comparison
    from classify.settings import ClassifyConfig
    from data.loader import Data
    from mae.engine.checkpoint import Checkpoint

# the loss falls to its floor only if nothing about an image is drawn anew; without smoothing the floor is 0
OVERFIT = (
    "finetune.augment.enabled=false",
    "finetune.drop_path=0.0",
    "finetune.drop_patches=0.0",
    "finetune.label_smoothing=0.0",
    "finetune.sample=null",
)


def finetune(argv: Arguments = None) -> None:
    """The command mae-finetune."""
    run_command(_finetune, argv)


def evaluate(argv: Arguments = None) -> None:
    """The command mae-evaluate."""
    run_command(_evaluate, argv)


def compare(argv: Arguments = None) -> None:
    """The command mae-compare."""
    run_command(_compare, argv)


def report(argv: Arguments = None) -> None:
    """The command mae-report."""
    run_command(_report, argv)


def predict(argv: Arguments = None) -> None:
    """The command mae-predict."""
    run_command(_predict, argv)


def embed(argv: Arguments = None) -> None:
    """The command mae-embed."""
    run_command(_embed, argv)


def export(argv: Arguments = None) -> None:
    """The command mae-export."""
    run_command(_export, argv)


def _finetune(argv: Arguments) -> None:
    arguments = parse_training(_finetune_parser(), argv, "finetune", OVERFIT)
    config, checkpoint, pretrained = _beginning(arguments)
    if pretrained is None:
        expect_named(config, data=not arguments.dry_run)
    launch_ranks(arguments, argv, "classify.cli", "finetune", config.device)

    # torch comes only now: --help, a wrong setting and a wrong path are answered at once
    from classify.finetune import RESUMABLE, finetune
    from classify.start import check_fit, resolved, run_folder
    from data.config import beside, change_config
    from data.loader import open_data
    from mae.engine import distributed
    from mae.engine.run import check_run, configure_torch, expect_checkpoint, training_device

    if arguments.overfit:
        folder_of_its_own = beside(run_folder(config, checkpoint), f"-overfit{arguments.overfit}", "finetune.run")
        config = change_config(config, {"finetune.run": str(folder_of_its_own)})

    # what cannot work is said before hours of decoding
    configure_torch(config)
    wanted = config if pretrained else resolved(config)
    check_fit(wanted, pretrained)
    device = training_device(config)
    if arguments.dry_run:
        from classify.dry_run import dry_run

        print(dry_run(config, checkpoint))
        return
    folder = run_folder(config, checkpoint)
    if arguments.resume:
        expect_checkpoint(folder)
    check_run(folder, wanted, RESUMABLE)

    # before ranks meet: the first one here decodes, the others wait for its lock
    data = open_data(config.data)
    if arguments.overfit:
        data = data.overfit(arguments.overfit, labelled=True)
    few = _few_cases(data, config)
    if distributed.is_main():
        print(*data.manifest.notes, data.manifest.summary(), sep="\n")
        if few:
            print(few)

    with distributed.process_group(device):
        folder = finetune(
            config,
            checkpoint,
            data,
            say=lambda text: print(text, flush=True),
            by_heart=arguments.overfit is not None,
        )
    if arguments.overfit:
        end_overfit(folder, arguments.overfit)
    if distributed.is_main():
        run = shlex.quote(str(folder))
        print(f"watch: tensorboard --logdir {run}")
        print(f"next: mae-evaluate {run}")
        print(f"for images of your own: mae-predict --checkpoint {run} FILES --out predictions.csv")
        print(f"at the very end: mae-evaluate {run} --split test, which opens the test split and records that")


def _finetune_parser() -> Parser:
    parser = training_parser(
        "mae-finetune",
        "Stage two: train a classifier on a pretrained encoder; with a config alone, a random ViT or a ResNet.",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="RUN",
        help="run folder of mae-pretrain, or a .pt in it, which brings data and sizes; or other programs' weights, "
        "as in model.init",
    )
    return parser


def _few_cases(data: "Data", config: "ClassifyConfig") -> str:
    """A line where validation, as it is used, or test has few cases of a class; else empty."""
    from classify.cases import few_cases, few_text, splits_of

    target = data.manifest.target
    table = data.manifest.table
    few = {
        "validate": few_cases(splits_of(data, config).validate["label"], target),
        "test": few_cases(table.loc[table["split"] == "test", "label"], target),
    }
    if not (table["split"] == "test").any():  # a data set without one
        del few["test"]
    return few_text(few, "images")


def _beginning(arguments: argparse.Namespace) -> "tuple[ClassifyConfig, str | None, Checkpoint | None]":
    """The config of a fine-tuning, and the pretraining it begins from: the checkpoint's path and the checkpoint.

    Other programs' weights are no pretraining; they become the config's model.init, or a ResNet's finetune.init.
    """
    from classify.settings import ClassifyConfig

    path: str | None = arguments.checkpoint
    if not path:
        return configure(arguments, ClassifyConfig), None, None

    # a path that is nowhere is answered before torch is imported to look into it
    from mae.engine.checkpoint_file import checkpoint_file

    if not Path(path).exists():
        checkpoint_file(path)

    # a checkpoint brings its config, unless another is given
    config = None
    if arguments.config:
        config = configure(arguments, ClassifyConfig)

    from classify.models.resnet_weights import is_resnet
    from classify.start import config_for, with_paths_given
    from data.config import change_config, parse_overrides
    from mae.engine.checkpoint import load_checkpoint
    from mae.weights import is_foreign

    resnet = is_resnet(path)
    if resnet or is_foreign(path):
        if config is None:
            raise UserError(f"{path}: found weights of another program, expected --config for the data")
        if resnet or config.finetune.model != "vit":  # each then says what it cannot read
            return change_config(config, {"finetune.init": path}), None, None
        return change_config(config, {"model.init": path}), None, None

    path = str(checkpoint_file(path))
    pretrained = load_checkpoint(path, "mae")
    overrides = parse_overrides(arguments.overrides)
    whose = config
    config = config_for(pretrained, config, overrides)
    if arguments.print_config:
        print_and_stop(config)
    if whose is None:  # the checkpoint's config
        command = shlex.join(["mae-finetune", "--checkpoint", path, *arguments.overrides])
        config = with_paths_given(config, pretrained, overrides, command, run=True)
    return config, path, pretrained


def _evaluate(argv: Arguments) -> None:
    parser = Parser("mae-evaluate", description="Predict a split with trained classifiers.")
    parser.add_argument(
        "runs", nargs="+", metavar="RUN | key=value", help="folders of mae-finetune; settings to override"
    )
    parser.add_argument(
        "--split",
        choices=("validate", "test"),
        help="split to predict (default: evaluate.split, validate); each opening of test is recorded",
    )
    arguments = parser.parse(argv)
    from data.config import parse_overrides

    # a word with = is a setting, unless there is a folder of that name
    runs = []
    settings = []
    for word in arguments.runs:
        if "=" in word and not Path(word).exists():
            settings.append(word)
        else:
            runs.append(word)
    overrides = parse_overrides(settings)
    if arguments.split:
        overrides["evaluate.split"] = arguments.split
    if not runs:
        raise UserError("command line: found no RUN, expected the folder of a mae-finetune run")
    from mae.engine.checkpoint_file import best_of

    for run in runs:
        best_of(run)

    from classify.evaluate import evaluate
    from classify.report.tables import evaluation_text

    print(evaluation_text([evaluate(run, overrides) for run in runs]))


def _compare(argv: Arguments) -> None:
    from classify.settings import ClassifyConfig

    parser = command_parser(
        "mae-compare", "Run a grid of pretrainings, fine-tunings and baselines; finished ones are not repeated."
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what is done and left, and how long it takes; write nothing"
    )
    parser.add_argument(
        "--jobs", metavar="N", type=int, default=1, help="trainings at a time, spread over the GPUs (default 1)"
    )
    add_data(parser)
    arguments = parser.parse(argv)
    if arguments.data:
        config = _comparison_for_data(arguments)
    else:
        config = configure(arguments, ClassifyConfig)
    if arguments.jobs < 1:
        raise UserError(f"command line: --jobs: found {arguments.jobs}, expected 1 or more")
    if arguments.dry_run:
        from classify.plan import plan

        print(plan(config, arguments.jobs))
        return

    expect_named(config)
    from classify.compare import compare, failures_of
    from classify.report.sections import printed
    from data.config import expand

    comparison = compare(config, jobs=arguments.jobs)
    print("", printed(comparison), "", sep="\n")
    folder = expand(config.run, "run")
    print(f"report: {folder}/report.html")
    print(f"curves: tensorboard --logdir {shlex.quote(str(folder))}")
    print(f"next: mae-report {shlex.quote(str(folder))}, which makes the report again without training")
    for run in _trained_runs(comparison)[:1]:
        print(f"for images of your own: mae-predict --checkpoint {shlex.quote(str(run))} FILES --out predictions.csv")

    # everything else is written; exit code 2 says that it is not whole
    failures = failures_of(comparison)
    if failures:
        raise UserError(
            f"{folder}: found {len(failures)} trainings failed, expected none; the same command tries them again; the "
            f"first: {failures[0]}"
        )


def _trained_runs(comparison: "Comparison") -> list[Path]:
    """The folders of the comparison's classifiers; a file of predictions has none."""
    runs = [evaluation.run for evaluation in comparison.evaluations]
    return [run for run in runs if (run / "best.pt").is_file()]


def _comparison_for_data(arguments: argparse.Namespace) -> "ClassifyConfig":
    layout = data_layout(arguments, labels=True)
    from classify.own_data import comparison_for_data

    write = not (arguments.print_config or arguments.dry_run)
    config = comparison_for_data(layout, arguments.overrides, write, said(arguments))
    if arguments.print_config:
        print_and_stop(config)
    return config


def _report(argv: Arguments) -> None:
    about = "Make a comparison's tables and page again, from comparison.json and the runs' predictions alone."
    parser = Parser("mae-report", description=about)
    parser.add_argument("folder", metavar="FOLDER", help="folder of a finished mae-compare, or a copy of it")
    folder = parser.parse(argv).folder
    from classify.report.folder import comparison_file

    comparison_file(folder)
    from classify.report.read import report
    from classify.report.sections import printed

    comparison = report(folder)
    print("", printed(comparison), "", sep="\n")
    print(f"report: {comparison.folder}/report.html")


def _predict(argv: Arguments) -> None:
    arguments = _predict_parser().parse(argv)
    from mae.engine.checkpoint_file import checkpoint_file, is_run

    # of the words, runs and checkpoints go with --checkpoint: `--checkpoint A B C FILES` is what one types
    runs = list(arguments.checkpoint)
    paths = []
    for word in arguments.inputs:
        place = Path(word)
        if (place.is_file() and place.suffix == ".pt") or (place.is_dir() and is_run(place)):
            runs.append(word)
        else:
            paths.append(word)
    if not paths:
        raise UserError("command line: found no FILE, expected images, folders of them or CSVs of their paths")
    if arguments.workers < 0:
        raise UserError(f"command line: --workers: found {arguments.workers}, expected 0 (one for each core) or more")
    for run in runs:  # bad paths are answered without torch
        checkpoint_file(run)

    from classify.answers import Operating
    from classify.predict import predict

    operating = Operating(arguments.threshold, arguments.sensitivity, arguments.specificity)
    predict(
        runs,
        paths,
        arguments.out,
        operating=operating,
        unit=arguments.unit,
        device=arguments.device,
        workers=arguments.workers,
        heatmaps=arguments.heatmaps,
    )


def _predict_parser() -> Parser:
    parser = Parser(
        "mae-predict",
        description="Predict images with a trained classifier: calibrated probabilities and decisions, as a CSV.",
        allow_abbrev=False,
    )

    # from where, to where
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="FILE",
        help="JPEG, PNG or DICOM files, folders of these at any depth, or CSVs with a column path",
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        action="append",
        metavar="RUN",
        help="run folder or checkpoint of mae-finetune; several make an ensemble: their mean",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="CSV", help="the table to write")
    parser.add_argument(
        "--heatmaps",
        type=Path,
        metavar="DIR",
        help="folder for heatmaps of what each answer rests on, as pictures and arrays",
    )

    # what is called abnormal
    parser.add_argument("--threshold", type=float, help="call abnormal from this score on (default: the stored one)")
    parser.add_argument(
        "--sensitivity", type=float, help="or the threshold with this sensitivity on validation, such as 0.95"
    )
    parser.add_argument("--specificity", type=float, help="or the threshold with this specificity on validation")

    # how
    parser.add_argument(
        "--unit",
        choices=("image", "study"),
        help="a row for each image, or for each study with its mean (default: the run's evaluate.unit, if all inputs "
        "have a study)",
    )
    parser.add_argument("--workers", type=int, default=0, help="processes that read images (default: one a core)")
    parser.add_argument("--device", default="auto", help="auto (CUDA where there is one), cpu, cuda or cuda:N")
    return parser


def _embed(argv: Arguments) -> None:
    about = "Write an encoder's features of images, one row per image: a pretraining, a fine-tuned ViT or a ResNet."
    parser = Parser("mae-embed", description=about, allow_abbrev=False)
    parser.add_argument(
        "images", nargs="+", metavar="FILE", help="JPEG, PNG or DICOM files, folders of these, CSVs with a column path"
    )
    parser.add_argument(
        "--checkpoint", required=True, metavar="RUN", help="run folder or checkpoint of mae-pretrain or mae-finetune"
    )
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="NPY",
        help="file to write; a CSV beside it names the image of each row",
    )
    parser.add_argument(
        "--pool",
        choices=("mean", "cls"),
        help="for a ViT: mean of the patch tokens, or class token (default: mean, or what the classifier uses)",
    )
    parser.add_argument("--workers", type=int, default=0, help="processes that read images (default: one a core)")
    parser.add_argument("--device", default="auto", help="auto (CUDA where there is one), cpu, cuda or cuda:N")
    arguments = parser.parse(argv)
    if arguments.workers < 0:
        raise UserError(f"command line: --workers: found {arguments.workers}, expected 0 (one for each core) or more")

    from mae.engine.checkpoint_file import checkpoint_file

    checkpoint_file(arguments.checkpoint)  # a bad path is answered at once
    from classify.embed import check_out, embed

    check_out(arguments.out, arguments.images)
    embed(
        arguments.checkpoint,
        arguments.images,
        arguments.out,
        pool=arguments.pool,
        device=arguments.device,
        workers=arguments.workers,
    )


def _export(argv: Arguments) -> None:
    about = "Write a checkpoint as a folder for Hugging Face's transformers, or a classifier as an ONNX file."
    parser = Parser("mae-export", description=about)
    parser.add_argument(
        "--checkpoint", metavar="RUN", required=True, help="run folder or file of mae-pretrain or mae-finetune"
    )
    parser.add_argument("--out", metavar="FOLDER | FILE.onnx", required=True, help="what to write")
    parser.add_argument(
        "--format", choices=("huggingface", "onnx"), help="default: onnx if --out ends in .onnx, else huggingface"
    )
    arguments = parser.parse(argv)
    from mae.engine.checkpoint_file import checkpoint_file

    checkpoint = checkpoint_file(arguments.checkpoint)  # before torch comes
    from classify.export import export

    export(checkpoint, arguments.out, arguments.format)
