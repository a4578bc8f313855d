"""The command lines of stage two, evaluation and comparison, parsed before torch is imported."""

from pathlib import Path

from data.config import (
    Parser,
    UserError,
    command_parser,
    configure,
    expand,
    parse_overrides,
    print_and_stop,
    run_command,
)


def finetune(argv: list[str] | None = None) -> None:
    run_command(lambda: _finetune(argv))


def evaluate(argv: list[str] | None = None) -> None:
    run_command(lambda: _evaluate(argv))


def compare(argv: list[str] | None = None) -> None:
    run_command(lambda: _compare(argv))


def _finetune(argv: list[str] | None) -> None:
    parser = command_parser(
        "mae-finetune",
        "Stage two: train a classifier on a pretrained encoder, or from a config alone a random ViT or a ResNet.",
    )
    parser.add_argument(
        "--checkpoint", metavar="FILE", help="last.pt or best.pt of mae-pretrain; brings data and sizes"
    )
    arguments = parser.parse_args(argv)
    config, pretrained = configure(arguments), None
    from classify.finetune import check_fit, config_for, finetune
    from data.loader import open_data
    from mae.engine.checkpoint import load_checkpoint

    if arguments.checkpoint:
        pretrained = load_checkpoint(arguments.checkpoint, "mae")
        config = config_for(pretrained, config, parse_overrides(arguments.overrides))
        if arguments.print_config:
            print_and_stop(config)
    check_fit(config, pretrained)  # before hours of decoding
    data = open_data(config)
    print(*data.manifest.notes, data.manifest.summary(), sep="\n")
    folder = finetune(config, arguments.checkpoint, data)
    print(f"trained: {folder / 'best.pt'}; watch: tensorboard --logdir {folder}")
    print(f"next: mae-evaluate {folder}")


def _evaluate(argv: list[str] | None) -> None:
    parser = Parser("mae-evaluate", description="Predict a split with trained classifiers.")
    parser.add_argument(
        "runs", nargs="+", metavar="RUN | key=value", help="folders of mae-finetune; settings to override"
    )
    parser.add_argument("--split", choices=("validate", "test"), help="the split (default: evaluate.split, test)")
    arguments = parser.parse_args(argv)
    runs = [word for word in arguments.runs if "=" not in word or Path(word).exists()]
    overrides = parse_overrides(word for word in arguments.runs if word not in runs)
    if arguments.split:
        overrides["evaluate.split"] = arguments.split
    if not runs:
        raise UserError("command line: found no RUN, expected the folder of a mae-finetune run")
    from classify.evaluate import evaluate, evaluation_row
    from classify.tables import cases, markdown

    evaluations = [evaluate(run, overrides) for run in runs]
    print(markdown([evaluation_row(evaluation) for evaluation in evaluations]))
    for evaluation in evaluations:
        print(f"{evaluation.path}: {cases(evaluation.summary)}; threshold {evaluation.threshold:.3f}")


def _compare(argv: list[str] | None) -> None:
    parser = command_parser(
        "mae-compare", "Run a grid of pretrainings, fine-tunings and baselines; what is done is kept."
    )
    config = configure(parser.parse_args(argv))
    from classify.compare import compare
    from classify.tables import comparison_text

    comparison = compare(config)
    print("", comparison_text(comparison), "", sep="\n")
    folder = expand(config.run, "run")
    print(f"report: {folder}/report.html")
    print(f"curves: tensorboard --logdir {folder}")
