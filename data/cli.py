"""Command lines: what all commands share, and mae-prepare.

Everything but this is imported inside the commands: signals are followed from the first moment on, and a mistake in
the command line is answered before torch is loaded.
"""

import argparse
import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from data.errors import UserError, printable
from data.signals import Stopped, stopping_on_signals
from data.writing import keep_private, print_in_any_locale, restoring_umask

if TYPE_CHECKING:
    from data.config import Config, Settings

Arguments = list[str] | None  # of a command line; None: those of this process


def say_nothing(text: str) -> None:
    """Who is told what a command has to say, where nobody is to be."""


def prepare(argv: Arguments = None) -> None:
    """The command mae-prepare."""
    run_command(_prepare, argv)


def _prepare(argv: Arguments) -> None:
    from data.settings import DataConfig

    parser = command_parser("mae-prepare", "Decode a data set once, into a memory-mapped store.")
    parser.add_argument("--verify", action="store_true", help="check that all of a finished store is as it was written")
    arguments = parser.parse(argv)
    config = configure(arguments, DataConfig)
    from data.places import expect_places, expect_unlabelled, told_as

    expect_places(config.data)
    expect_unlabelled(config.data)

    from data.audit import audit_lines, audited, copies_elsewhere
    from data.manifest import open_manifest
    from data.preparation import prepare, verify
    from data.privacy import credentialed_sources
    from data.rejections import read_rejections

    if arguments.verify:
        store = verify(config.data)
        print(f"verified: {store.folder} ({len(store):,} images) is what was written")
        return

    keep_private(credentialed_sources(config.data), config.data.share)
    manifest = open_manifest(config.data, look_again=True)
    print(*manifest.notes, manifest.breakdown(), sep="\n")
    if config.data.store is False:
        print("data.store is false: nothing is decoded now; training reads the files themselves")
        return

    store = prepare(config.data, manifest, try_again=True)
    readable = manifest.without(line["image_id"] for line in read_rejections(store.folder))
    if readable.unreadable:
        print("files that can be read:", readable.summary(), sep="\n")
    named = manifest.may_show(config.report.images)
    print(*audit_lines(audited(manifest, store), store.index, named), sep="\n")
    _, height, width = store.images.shape
    print(f"store: {store.folder} ({len(store)} images of {height}x{width})")

    further = config.data.of_unlabelled()
    if further is not None:
        keep_private(credentialed_sources(further), further.share)
        with told_as("data.unlabelled"):
            others = open_manifest(further, look_again=True)
            their_store = prepare(further, others, try_again=True)
        print("data.unlabelled:", *others.notes, others.summary(), sep="\n")
        for line in copies_elsewhere(manifest, store, their_store):
            print(f"warning: data.unlabelled: {line}")
        print(f"store: {their_store.folder} ({len(their_store)} images of {height}x{width})")


# ---------------------------------------------------------------- what all commands share


class Parser(argparse.ArgumentParser):
    """argparse, with errors like everyone's."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"command line: {message}; see {self.prog} --help")

    def parse(self, argv: Arguments) -> argparse.Namespace:
        """Parse, with key=value before, between or after options."""
        return self.parse_intermixed_args(argv)


def command_parser(prog: str, about: str) -> Parser:
    """A parser with --config, --print-config and key=value overrides."""
    parser = Parser(prog, description=about, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE", help="a YAML file, or the name of a shipped config")
    parser.add_argument("--print-config", action="store_true", help="print every setting and its meaning, and stop")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that override the config's")
    return parser


def configure(arguments: argparse.Namespace, kind: "type[Config]") -> "Config":
    """The config that a parsed command line asks for, as the room of the command sees it.

    All sections are read and checked, those of later rooms too. --print-config prints it and stops.
    """
    from data.config import load_config, make_config, parse_overrides

    if arguments.config:
        config = load_config(arguments.config, arguments.overrides)
    elif arguments.print_config:
        overrides = parse_overrides(arguments.overrides)
        config = make_config({}, "command line", {"data.source": "phantom", **overrides})
    else:
        wanted = "--config"
        if hasattr(arguments, "checkpoint"):
            wanted = "--config or --checkpoint"
        if hasattr(arguments, "data"):
            wanted = "--config or --data"
        raise UserError(f"command line: {wanted} is missing; a config is a YAML file or a shipped one such as demo")

    if arguments.print_config:
        print_and_stop(config)
    assert isinstance(config, kind)
    return config


def print_and_stop(config: "Settings") -> NoReturn:
    from data.config import print_config

    print(print_config(config))
    raise SystemExit(0)


def _warn_of_thread(failed: threading.ExceptHookArgs) -> None:
    """A thread of a library that fails, such as TensorBoard's on a full disk: the command itself goes on."""
    print(f"warning: {failed.exc_value or failed.exc_type.__name__}", file=sys.stderr)


def run_command(command: Callable[[Arguments], None], argv: Arguments) -> NoReturn:
    """Run a command: a user's mistake becomes one line on stderr and exit code 2, a signal one and 75."""
    try:
        _run_to_its_end(command, argv)
    except SystemExit as end:
        if argv is None and os.environ.get("WORLD_SIZE", "") not in ("", "0", "1"):
            leave(end.code if isinstance(end.code, int) else 1)
        raise


def leave(code: int) -> NoReturn:
    """End the process without taking the interpreter apart, as a rank does.

    Threads of gloo may still hold tensors, and would be waited for by whoever has them wait: now and then for ever.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more, or it is closed
            stream.flush()
    os._exit(code)


def _lacks_memory(error: Exception) -> bool:
    """Whether memory ran out, a GPU's too; torch, which need not be loaded here, has errors of its own for both."""
    of_torch = type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)
    return isinstance(error, MemoryError) or of_torch


def _run_to_its_end(command: Callable[[Arguments], None], argv: Arguments) -> NoReturn:
    own_process = argv is None
    if own_process:
        print_in_any_locale()
        threading.excepthook = _warn_of_thread
        os.environ["MPLBACKEND"] = "agg"  # pictures go into files; Jupyter names a backend that only its kernels have

    try:
        with stopping_on_signals(for_good=own_process), restoring_umask():
            command(argv)

    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:
        if stopped.speaks:
            print(stopped.line, file=sys.stderr)
        raise
    except KeyboardInterrupt:  # the second Ctrl-C in a training, before its step was saved
        print("interrupted; the last checkpoint is kept, the same command goes on from it", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `mae-pretrain --print-config | head`
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:  # no permission, a full disk, no descriptors, a server that is away
        place = error.filename or "this machine"
        print(f"error: {printable(place)}: {error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        if not _lacks_memory(error):
            raise
        where = "machine" if "CUDA" not in str(error) else "GPU"
        print(f"error: this {where}: found too little memory, expected more; run again with more free", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)
