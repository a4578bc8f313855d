"""make soak: whole commands, disturbed at random moments; the end equals an undisturbed one.

A phantom is drawn, prepared, pretrained on, fine-tuned, evaluated, compared and exported: once undisturbed, then again
and again with disturbances. These are SIGKILL, SIGTERM or SIGUSR1 at random moments, to the command alone or to all its
processes; a disk that is full for a while; few file descriptors; and two commands at once. A disturbed command is run
again. It must have ended with its code and no traceback, leaving no process behind.
"""

import argparse
import json
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pandas as pd
from real_processes import ended, listens, send, start
from stage_runs import assert_same
from tiny_world import FOUR_EPOCHS, SETTINGS, places, write_config

from data.signals import TRY_AGAIN
from mae import load_checkpoint

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1)
MOST = 3  # disturbances of a command before it is left in peace
DISK = "600m"  # of a file system of its own, where one may be mounted
ROWS = [
    {"name": "MAE", "pretraining": ["mae"], "set": {"finetune.mode": "linear"}},
    {"name": "ResNet", "set": {"finetune.model": "resnet18"}},
]
Command = tuple[str, ...]


def commands(place: Path) -> list[Command]:
    """The commands to run in a folder, in order; writes the configs that they need there."""
    settings = SETTINGS | FOUR_EPOCHS | places(place, "runs/mae")
    settings |= {"data.source": "phantom", "data.phantom.images": 400, "data.workers": 2, "data.image_size": 16}
    settings |= {"engine.log_every": 1, "engine.save_steps": 7, "pretrain.panel_images": 2}
    settings |= {"pretrain.batch_size": 32, "finetune.batch_size": 32}
    config = str(write_config(place / "config.yaml", settings))
    grid = {"run": f"{place}/grid", "compare.rows": ROWS, "compare.pretrainings": {"mae": {}}, "compare.seeds": [0]}
    grid |= {"pretrain.epochs": 2, "finetune.epochs": 2}
    compared = str(write_config(place / "compare.yaml", settings | grid))

    runs = place / "runs"
    return [
        ("prepare", "--config", config),
        ("pretrain", "--config", config),
        ("finetune", "--checkpoint", f"{runs}/mae/best.pt"),
        ("evaluate", f"{runs}/mae-full"),
        ("compare", "--config", compared),
        ("export", "--checkpoint", f"{runs}/mae/best.pt", "--out", f"{place}/exported"),
    ]


def in_peace(place: Path) -> list[float]:
    """Run all commands; returns how long each took, in seconds."""
    took = []
    for command, *words in commands(place):
        begun = time.monotonic()
        code, errors = ended(start(command, *words))
        assert code == 0, errors
        took.append(time.monotonic() - begun)
    return took


def disturbed(place: Path, took: list[float], chance: random.Random, left: int, others: list[str]) -> Counter[str]:
    """Run all commands with up to `left` interruptions, and with the `others`; returns how many there were of each."""
    counts: Counter[str] = Counter()
    for (command, *words), seconds in zip(commands(place), took, strict=True):
        for _ in range(min(MOST, left - interruptions(counts))):
            number = chance.choice(SIGNALS)
            to_all = chance.random() < 0.5
            moment = chance.uniform(0, seconds)
            if interrupt(command, words, number, to_all, moment):
                counts[f"{command} {number.name}"] += 1
        for other in others:
            if chance.random() < 0.5:
                OTHERS[other](place, command, words, seconds, chance)
                counts[f"{command} {other}"] += 1
        code, errors = ended(start(command, *words))
        assert code == 0, (command, errors)
    return counts


def interruptions(counts: Counter[str]) -> int:
    return sum(count for name, count in counts.items() if "SIG" in name)


def interrupt(command: str, words: list[str], number: signal.Signals, to_all: bool, moment: float) -> bool:
    """Disturb the command; returns whether it was interrupted: it may have ended before."""
    process = start(command, *words)
    time.sleep(moment)
    while number != signal.SIGKILL and process.poll() is None and not listens(process):
        time.sleep(0.001)  # Python itself is starting, or ending
    if process.poll() is None:
        send(process, number, to_all)
    code, errors = ended(process)
    expected = {-signal.SIGKILL} if number == signal.SIGKILL else {TRY_AGAIN}
    assert code in expected | {0}, (command, number, to_all, moment, code, errors)
    assert "Traceback" not in errors, (command, number, to_all, moment, errors)
    return code != 0


def on_a_full_disk(place: Path, command: str, words: list[str], seconds: float, chance: random.Random) -> None:
    """Nothing can be written for a part of the command's time."""
    process = start(command, *words)
    time.sleep(chance.uniform(0, seconds))
    filling = place / "filling"
    with suppress(OSError):  # the command may be quicker to fill the rest
        filling.write_bytes(bytes(max(shutil.disk_usage(place).free - chance.randrange(20_000), 0)))
    with suppress(subprocess.TimeoutExpired):
        process.wait(chance.uniform(0, seconds))
    filling.unlink()
    code, errors = ended(process)
    assert code in (0, 2), (command, code, errors)
    assert "Traceback" not in errors, (command, errors)


def with_few_descriptors(place: Path, command: str, words: list[str], seconds: float, chance: random.Random) -> None:
    """As many descriptors as importing torch needs, and a few more."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (chance.randrange(20, 60), most[1]))  # a child inherits it
    try:
        process = start(command, *words)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, most)
    code, errors = ended(process)
    assert code in (0, 2), (command, code, errors)
    assert "Traceback" not in errors, (command, errors)


def two_at_once(place: Path, command: str, words: list[str], seconds: float, chance: random.Random) -> None:
    """One does the work; the other waits for it, finds it done, or is refused."""
    first = start(command, *words)
    time.sleep(chance.uniform(0, seconds / 2))
    for process in (start(command, *words), first):
        code, errors = ended(process)
        assert code == 0 or (code == 2 and "found another" in errors), (command, code, errors)
        assert "Traceback" not in errors, (command, errors)


OTHERS = {"full disk": on_a_full_disk, "few descriptors": with_few_descriptors, "two at once": two_at_once}


@contextmanager
def own_disk(place: Path) -> Iterator[list[str]]:
    """Mount a small file system at `place`, where allowed; yields which other disturbances are possible there."""
    place.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        print("no file system may be mounted here: no full disks", flush=True)
        yield [name for name in OTHERS if name != "full disk"]
        return
    try:
        yield list(OTHERS)
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


# ---------------------------------------------------------------- the same end

TEXTS = (
    "predictions/*.csv",
    "comparison.csv",
    "comparison.md",
    "exported/*",
    "stores/*/images.npy",
)
ENDS = ("*.tmp", "*.partial*")


def assert_same_end(whole: Path, parts: Path) -> None:
    """Files byte for byte, checkpoints bit for bit; nothing half-written that a later command would read."""
    compared = 0
    for pattern in ("images/**/*.*", *(f"**/{text}" for text in TEXTS)):
        for path in sorted(whole.glob(pattern)):
            other = parts / path.relative_to(whole)
            assert path.read_bytes() == other.read_bytes(), other
            compared += 1
    for path in sorted(whole.glob("stores/*/index.csv")):
        indexes = [pd.read_csv(root / path.relative_to(whole)).drop(columns="stamp") for root in (whole, parts)]
        assert indexes[0].equals(indexes[1]), path  # a stamp says when the file was drawn
    for path in sorted(whole.glob("**/*.pt")):
        one, two = load_checkpoint(path), load_checkpoint(parts / path.relative_to(whole))
        for part in ("weights", "optimizer", "state", "progress"):
            assert_same(getattr(one, part), getattr(two, part), f"{path} {part}")
        compared += 1
    assert (parts / "grid/report.html").read_text().rstrip().endswith("</html>")

    names = sorted(str(path.relative_to(whole)) for path in whole.rglob("*") if path.suffix in (".pt", ".csv", ".json"))
    assert len(names) > 10
    for name in names:
        assert (parts / name).exists(), name
    unfinished = [path for end in ENDS for path in parts.glob(f"runs/**/{end}")]
    assert not unfinished, unfinished
    assert compared > 400, compared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--interruptions", type=int, default=100)
    parser.add_argument("--seed", type=int, default=None, help="of the moments (default: another each time)")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(10**6)
    chance = random.Random(seed)
    print(f"seed {seed}", flush=True)

    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        # every pass uses the same paths, because configs and checkpoints hold them
        place, whole = Path(folder) / "place", Path(folder) / "whole"
        place.mkdir()
        took = in_peace(place)
        place.rename(whole)
        print("in peace:", ", ".join(f"{seconds:.1f} s" for seconds in took), flush=True)

        while interruptions(counts) < arguments.interruptions:
            with own_disk(place) as others:
                counts += disturbed(place, took, chance, arguments.interruptions - interruptions(counts), others)
                assert_same_end(whole, place)
                for each in place.iterdir():
                    shutil.rmtree(each) if each.is_dir() else each.unlink()
            print(f"{interruptions(counts)} interruptions of {counts.total()} disturbances, the same end", flush=True)
    print(json.dumps(dict(sorted(counts.items()))))


if __name__ == "__main__":
    sys.exit(main())
