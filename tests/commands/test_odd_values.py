"""No odd value in a file ends a command with a traceback: another type, depth, size, alphabet, a later version's.

`ODD_VALUES=2000 pytest tests/commands/test_odd_values.py` draws more of them.
"""

import argparse
import contextlib
import io
import json
import math
import os
import random
import shutil
import traceback
from collections.abc import Callable
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tiny_world import World, files

from classify.cli import evaluate, export, finetune
from data.config import load_config
from data.loader import open_data
from mae.cli import pretrain, reconstruct
from mae.engine.checkpoint import FORMAT

prepare = import_module("data.cli").prepare
DRAWS = int(os.environ.get("ODD_VALUES", "48"))
Words = tuple[Callable, list[object]]  # a command and its arguments


def nested(depth: int, kind: type) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value] if kind is list else {"a": value}
    return value


def itself() -> list:
    value: list = [1]
    value.append(value)
    return value


TEXTS = [
    "",
    " ",
    "a\0b",
    "\ud800",
    "\x1b[2J\n",
    "\u202e",
    "x" * 10_000,
    "${SECRET}",
    "~nobody/x",
    "../..",
    "1e999",
    "ß",
]
NUMBERS = [0, 1, -1, 3, 2**31, 2**40, 2**63, -(2**70), 10**400, 0.5, 1e-300, 1e308, math.nan, math.inf, -math.inf]
SHAPES = [None, True, False, [], {}, [1, 2], [None], {"": 1}, {"a": {"b": [1]}}, [[], [[]]], nested(30, list)]
DEEP = [nested(1000, list), nested(1000, dict)]


def odd(rng: random.Random) -> Any:
    kinds = [TEXTS, NUMBERS, SHAPES, SHAPES, SHAPES, DEEP]
    return rng.choice(rng.choice(kinds))


def changed(tree: Any, rng: random.Random, value: Any) -> Any:
    """A copy of nested values: one, at any depth, is replaced or removed, or gets a new name beside it."""
    copy = deepcopy(tree)
    holder = copy
    while True:
        names = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        name = rng.choice(names) if names else "added"
        inner = holder[name] if names else None
        if isinstance(inner, dict | list) and inner and rng.random() < 0.8:
            holder = inner
            continue
        if isinstance(holder, dict) and rng.random() < 0.2:
            holder[rng.choice(["later", "name", 1, "seed "])] = value
        elif isinstance(holder, dict) and names and rng.random() < 0.15:
            del holder[name]
        elif names or isinstance(holder, dict):
            holder[name] = value
        return copy


# ---------------------------------------------------------------- inputs, each with an odd value


def a_config(world: World, folder: Path, rng: random.Random) -> Words:
    settings = yaml.safe_load(world.config.read_text())
    text = (folder / "odd.yaml").as_posix()
    kind = rng.randrange(4)
    if kind == 0:
        content = rng.choice(
            ["[" * 2000, "a: &a [*a]", "a: " + "9" * 5000, "seed: 0x" + "f" * 5000, "? [1]\n: 2", "\0"]
        )
        content = rng.choice(
            [content, "seed: !!int x", "data: !!set {a}", "run: !!binary aGE=", "seed: 1:1:1", "<<: 1"]
        )
    else:
        with contextlib.suppress(RecursionError, UnicodeEncodeError):
            content = json.dumps(changed(settings, rng, odd(rng)))
    Path(text).write_bytes(locals().get("content", "{}").encode("utf-8", "surrogatepass"))
    main = rng.choice([prepare, pretrain, finetune])
    return main, ["--config", text, *rng.choice([["--print-config"], ["data.source=table", f"data.root={folder}/no"]])]


def a_word(world: World, folder: Path, rng: random.Random) -> Words:
    key = rng.choice(
        ["seed", "run", "data", "model.width", "data.sources", "finetune", "device", "x.y", "compare.rows"]
    )
    try:
        value = json.dumps(odd(rng))
    except RecursionError:
        value = "[" * 900
    main = rng.choice([pretrain, finetune])
    return main, ["--config", world.config, f"{key}={value}", "data.source=table", f"data.root={folder}/no"]


def a_run_folder(world: World, folder: Path, rng: random.Random) -> Words:
    run = shutil.copytree(world.pretrained.parent, folder / "run", ignore=shutil.ignore_patterns("events*"))
    name = rng.choice(["environment.json", "config.yaml"])
    tree = json.loads((run / "environment.json").read_text())
    if name == "config.yaml":
        tree = yaml.safe_load((run / name).read_text())
    try:
        content = json.dumps(changed(tree, rng, odd(rng)))
    except RecursionError:
        content = rng.choice(["{" * 5000, "[" * 100_000, "9" * 5000])
    (run / name).write_text(content)
    return pretrain, ["--config", world.config, f"run={run}"]


def a_checkpoint(world: World, folder: Path, rng: random.Random) -> Words:
    """Replace a field of our checkpoint; whichever command takes such a checkpoint reads it."""
    of_mae = rng.random() < 0.5
    home = world.pretrained.parent if of_mae else world.classifier
    run = shutil.copytree(home, folder / "run", ignore=shutil.ignore_patterns("events*", "predictions"))
    raw = torch.load(home / "last.pt", weights_only=True)
    if rng.random() < 0.9:  # else the only answer is that it was changed
        del raw["digests"]
    part = rng.choice(["settings", "meta", "progress", "state", "optimizer", "all"])
    value = rng.choice([odd(rng), torch.ones(2), torch.empty(0, 3), itself(), torch.tensor(math.nan)])
    if part == "all":
        raw[rng.choice(list(raw))] = value
    else:
        raw[part] = changed(raw[part], rng, value)
    with contextlib.suppress(Exception):  # torch itself cannot write some values
        torch.save(raw, folder / "odd.pt")
        for name in ("last.pt", "best.pt"):
            shutil.copy(folder / "odd.pt", run / name)
    last, out = run / "last.pt", folder / "out"
    choices: list[Words] = [(export, ["--checkpoint", last, "--out", out])]
    if of_mae:
        choices += [
            (pretrain, ["--config", world.config, f"run={run}", "pretrain.epochs=2"]),
            (finetune, ["--checkpoint", last, f"data.root={folder}/no", f"finetune.run={out}"]),
            (reconstruct, [world.images / "0000.png", "--checkpoint", last, "--out", out, "--device", "cpu"]),
        ]
    else:
        choices.append((evaluate, [run, *world.data]))
    return rng.choice(choices)


def changed_bytes(world: World, folder: Path, rng: random.Random) -> Words:
    data = bytearray(world.pretrained.read_bytes())
    for _ in range(rng.choice([1, 3, 30])):
        data[rng.choice([rng.randrange(len(data)), rng.randrange(2000), -1 - rng.randrange(3000)])] = rng.randrange(256)
    (folder / "odd.pt").write_bytes(data[: rng.choice([len(data), rng.randrange(len(data))])])
    name = rng.choice([[export, "--checkpoint", folder / "odd.pt", "--out", folder / "out"]])
    return name[0], name[1:]


def a_hub_folder(world: World, folder: Path, rng: random.Random) -> Words:
    """config.json, preprocessor_config.json, an index or safetensors' own header."""
    shutil.copytree(_exported(world), folder / "hub")
    name = rng.choice(["config.json", "preprocessor_config.json"])
    tree = json.loads((folder / "hub" / name).read_text())
    if rng.random() < 0.2:
        tree["pretrained_cfg"] = {"mean": [0.5], "std": odd(rng)}
    try:
        (folder / "hub" / name).write_text(json.dumps(changed(tree, rng, odd(rng))))
    except RecursionError:
        (folder / "hub" / name).write_text("[" * 100_000)
    if rng.random() < 0.3:
        path = folder / "hub/model.safetensors"
        data = bytearray(path.read_bytes())
        for _ in range(3):
            data[rng.randrange(1000)] = rng.randrange(256)
        path.write_bytes(data)
    return pretrain, ["--config", _plain(world, folder), f"model.init={folder}/hub", f"data.root={folder}/no"]


def a_pth(world: World, folder: Path, rng: random.Random) -> Words:
    """Another program's state dict, with its command line beside it."""
    weights = {"cls_token": torch.zeros(1, 1, 64), "patch_embed.proj.weight": torch.zeros(64, 1, 4, 4)}
    weights |= {
        "pos_embed": torch.zeros(1, 10, 64),
        "patch_embed.proj.bias": torch.zeros(64),
        "norm.weight": torch.ones(64),
    }
    arguments = argparse.Namespace(norm_pix_loss=odd(rng), model="mae")
    tree = {"model": weights, "args": rng.choice([arguments, vars(arguments), odd(rng)]), "epoch": 3}
    with contextlib.suppress(Exception):
        torch.save(changed(tree, rng, rng.choice([odd(rng), torch.ones(2), itself()])), folder / "odd.pth")
    return pretrain, ["--config", _plain(world, folder), f"model.init={folder}/odd.pth", f"data.root={folder}/no"]


def a_medmnist(world: World, folder: Path, rng: random.Random) -> Words:
    """An archive with one array of another shape, kind or header."""
    arrays: dict[str, np.ndarray] = {}
    for part in ("train", "val", "test"):
        arrays[f"{part}_images"] = np.zeros((4, 8, 8), np.uint8)
        arrays[f"{part}_labels"] = np.arange(4)[:, None] % 2
    name = rng.choice(list(arrays))
    arrays[name] = rng.choice(
        [
            np.float32(1),
            np.zeros(0),
            np.zeros((4, 0), int),
            np.array(["a"] * 4),
            np.zeros((0, 8, 8), np.uint8),
            np.ones(4),
        ]
    )
    np.savez(folder / "odd.npz", **arrays)
    data = (folder / "odd.npz").read_bytes()
    header = rng.choice([b"(4, 8, 8)", b"'fortran_order'", b"False", b"NUMPY", b"descr"])
    other = rng.choice([b"(9**9**9,)", b"(10**15,)", b"((((((", b"(-4,-64)", b"1e999999", b"\0\0\0\0", b"(True,)"])
    data = data.replace(header, other.ljust(len(header))[: len(header)], rng.choice([1, 9]))
    (folder / "odd.npz").write_bytes(data)
    return prepare, ["--config", _plain(world, folder), "data.source=medmnist", f"data.root={folder}/odd.npz"]


def odd_cells(path: Path, rng: random.Random) -> None:
    """Change a table of text: a cell, a name, a row, or bytes."""
    lines = path.read_bytes().split(b"\n")
    row = rng.choice([0, rng.randrange(len(lines)), rng.randrange(len(lines))])
    kind = rng.randrange(6)
    odd_bytes = [
        b"",
        b'"',
        b"\0",
        b"\xff\xfe",
        b"=1+1",
        b"-1",
        b"1e999",
        b"nan",
        b"9" * 5000,
        b"x" * 200_000,
        b"\r",
        b"0.5",
    ]
    odd_bytes += [
        b"None",
        b"True",
        b"\xed\xa0\x80",
        b"'",
        b"2026-01-01",
        b" ",
        b"\x1b[2J",
        b"inf",
        b"18446744073709551616",
    ]
    if kind < 3:
        cells = lines[row].split(b",")
        cells[rng.randrange(len(cells))] = rng.choice(odd_bytes)
        lines[row] = b",".join(cells)
    elif kind == 3:
        lines[row] = rng.choice([lines[row] + b"," + rng.choice(odd_bytes), lines[0], lines[row].rpartition(b",")[0]])
    elif kind == 4:
        del lines[row : row + rng.choice([1, 2, 1000])]
    else:
        lines = [rng.choice(odd_bytes)] * rng.choice([0, 1, 2])
    path.write_bytes(b"\n".join(lines))


def odd_member(path: Path, rng: random.Random) -> None:
    """Change a value of a JSON file."""
    try:
        path.write_text(json.dumps(changed(json.loads(path.read_text()), rng, odd(rng))))
    except RecursionError:
        path.write_text(rng.choice(["{" * 5000, "[" * 100_000, "9" * 5000]))


def a_table(world: World, folder: Path, rng: random.Random) -> Words:
    """The manifest, with its splits."""
    shutil.copytree(world.images, folder / "images", copy_function=os.link)
    (folder / "images/manifest.csv").unlink()
    shutil.copy(world.images / "manifest.csv", folder / "images/manifest.csv")
    odd_cells(folder / "images/manifest.csv", rng)
    words = ["--config", world.config, f"data.root={folder}/images", f"data.store={world.root}/stores"]
    return prepare, [*words, "data.store=false"]


def a_store(world: World, folder: Path, rng: random.Random) -> Words:
    store = open_data(load_config(world.config).data).store.folder  # other tests may have made more stores there
    description = shutil.copytree(store, folder / "stores" / store.name) / "store.json"
    name = rng.choice(["index.csv", "rejected.csv", "store.json", "store.json", "audit.json"])
    path = description.parent / name
    odd_member(path, rng) if path.suffix == ".json" else odd_cells(path, rng)
    if name != "store.json" and rng.random() < 0.7:  # as in a version that kept no digests
        described = json.loads(description.read_text())
        del described["files"]
        description.write_text(json.dumps(described))
    words = ["--config", world.config, f"data.store={folder}/stores"]
    return prepare, [*words, *rng.choice([[], ["--verify"]])]


def predictions(world: World, folder: Path, rng: random.Random) -> Words:
    run = shutil.copytree(_evaluated(world), folder / "run")
    path = run / rng.choice(["predictions/test.csv", "predictions/test.json", "audit.json"])
    odd_member(path, rng) if path.suffix == ".json" else odd_cells(path, rng)
    return evaluate, [run, *world.data]


def logged_numbers(world: World, folder: Path, rng: random.Random) -> Words:
    run = shutil.copytree(world.pretrained.parent, folder / "run", ignore=shutil.ignore_patterns("events*"))
    lines = (run / "metrics.jsonl").read_text().splitlines()
    number = rng.randrange(len(lines))
    try:
        lines[number] = json.dumps(changed(json.loads(lines[number]), rng, odd(rng)))
    except RecursionError:
        lines[number] = "[" * 100_000
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return pretrain, ["--config", world.config, f"run={run}", "pretrain.epochs=2"]


INPUTS = [
    a_table,
    a_store,
    predictions,
    logged_numbers,
    a_config,
    a_word,
    a_run_folder,
    a_checkpoint,
    changed_bytes,
    a_hub_folder,
    a_pth,
    a_medmnist,
]


def _plain(world: World, folder: Path) -> Path:
    """The world's config without the model's sizes, which weights bring, and without a store."""
    settings = yaml.safe_load(world.config.read_text())
    settings["model"] = {}
    settings["data"]["store"] = False
    (folder / "plain.yaml").write_text(yaml.safe_dump(settings))
    return folder / "plain.yaml"


def _evaluated(world: World) -> Path:
    """The world's classifier with predictions, without what takes long to copy."""
    folder = world.root / "evaluated"
    if not folder.exists():
        shutil.copytree(world.classifier, folder, ignore=shutil.ignore_patterns("events*", "last.pt", "predictions"))
        assert outcome(evaluate, [folder, *world.data])[0] == 0
    return folder


def _exported(world: World) -> Path:
    folder = world.root / "exported"
    if not folder.exists():
        with contextlib.redirect_stdout(io.StringIO()), pytest.raises(SystemExit):
            export(["--checkpoint", str(world.pretrained), "--out", str(folder)])
    return folder


# ---------------------------------------------------------------- the law


def outcome(main: Callable, words: list[object]) -> tuple[int, str]:
    """The exit code, and what was said of it; a traceback is a failure."""
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            main([str(word) for word in words])
        except SystemExit as stop:
            return int(stop.code or 0), said.getvalue()
        except Exception:
            return 1, traceback.format_exc()
    return 0, said.getvalue()


def test_no_odd_value_ends_in_a_traceback(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECRET", "told-to-nobody")
    failures = []
    for number in range(DRAWS):
        rng = random.Random(number)
        make = INPUTS[number % len(INPUTS)]
        folder = tmp_path / str(number)
        folder.mkdir()
        main, words = make(world, folder, rng)
        before = files(folder)
        code, said = outcome(main, words)

        wrong = code not in (0, 2, 75) or "told-to-nobody" in said
        if code == 2:
            lines = said.removesuffix("\n").split("\n")
            wrong = wrong or len(lines) != 1 or not lines[0].isprintable() or files(folder) != before
        if wrong:
            failures.append(f"draw {number}, {make.__name__}: {' '.join(map(str, words))[:500]}\n{said[-2000:]}")
        shutil.rmtree(folder)
    assert not failures, f"{len(failures)} of {DRAWS}\n" + "\n\n".join(failures[:20])


def test_files_with_odd_values_are_read_where_nothing_is_odd(world, tmp_path):
    """The inputs above are good except for what is drawn, so a command meets the odd value."""
    assert outcome(pretrain, ["--config", world.config])[0] == 0
    assert torch.load(world.pretrained, weights_only=True)["format"] == FORMAT
    assert (
        outcome(pretrain, ["--config", _plain(world, tmp_path), f"model.init={_exported(world)}", "--print-config"])[0]
        == 0
    )
