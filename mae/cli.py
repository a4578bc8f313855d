"""The command line of stage one, parsed before torch is imported."""

from data.config import command_parser, configure, run_command


def pretrain(argv: list[str] | None = None) -> None:
    run_command(lambda: _pretrain(argv))


def _pretrain(argv: list[str] | None) -> None:
    parser = command_parser(
        "mae-pretrain", "Stage one: pretrain a masked autoencoder. An interrupted run continues where it stood."
    )
    config = configure(parser.parse_args(argv))
    from data.loader import open_data
    from mae.engine.run import device_of
    from mae.pretrain import check_model, pretrain

    device_of(config)
    check_model(config)
    data = open_data(config)
    print(*data.manifest.notes, data.manifest.summary(), sep="\n")
    folder = pretrain(config, data)
    print(f"pretrained: {folder / 'last.pt'}; watch: tensorboard --logdir {folder}")
    print(f"next: mae-finetune --checkpoint {folder / 'last.pt'}")
