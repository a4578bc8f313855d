"""Files of strangers choose no path, and ask for no more than they have."""

import pickle
import shutil
import struct
import tracemalloc
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from tiny_world import World, mistake, succeed

from classify.cli import evaluate, export, finetune
from classify.settings import ClassifyConfig
from data.config import is_path, load_config, make_config, paths_in
from data.errors import UserError
from data.settings import ColumnSettings
from mae import load_checkpoint
from mae.cli import pretrain, reconstruct
from mae.engine.checkpoint import save_checkpoint
from mae.weights.files import read_facebook

prepare = import_module("data.cli").prepare

# ---------------------------------------------------------------- paths


def of_a_stranger(world: World, folder: Path, **paths: object) -> Path:
    """The world's pretraining as somebody sent it: alone, and with the sender's paths."""
    made = load_checkpoint(world.pretrained)
    settings = made.settings | {"run": f"{folder}/${{SECRET}}"}
    settings["data"] = settings["data"] | {"root": f"{folder}/${{SECRET}}", "store": f"{folder}/${{SECRET}}"} | paths
    folder.mkdir(exist_ok=True)
    save_checkpoint(replace(made, settings=settings), folder / "last.pt")
    return folder / "last.pt"


def test_a_checkpoint_that_lies_elsewhere_chooses_no_path(world, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "told-to-nobody")
    monkeypatch.chdir(tmp_path)
    path = of_a_stranger(world, tmp_path / "sent")
    line = mistake(finetune, "--checkpoint", path, keep=tmp_path)
    assert line.endswith(f"mae-finetune --checkpoint {path} data.root=FOLDER finetune.run={tmp_path}/sent-full")
    assert "told-to-nobody" not in line
    line = mistake(finetune, "--checkpoint", path, f"data.root={world.images}", keep=tmp_path)
    assert "data.root=FOLDER" not in line
    assert "finetune.run=" in line
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["sent"]

    # the command that the line suggests
    succeed(finetune, "--checkpoint", path, f"data.root={world.images}", "finetune.run=mine")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["mine", "sent", "stores"]
    assert [entry.name for entry in (tmp_path / "sent").iterdir()] == ["last.pt"]


def test_a_section_on_the_command_line_gives_its_paths(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = of_a_stranger(world, tmp_path / "sent")
    line = mistake(finetune, "--checkpoint", path, f"data={{root: {tmp_path}/no}}", "finetune={run: x}", keep=tmp_path)
    assert line.startswith(f"error: data.root: {tmp_path}/no")


@pytest.mark.parametrize(
    ("theirs", "asked"),
    [
        ({"labels_root": "/labels"}, "data.labels_root=FOLDER"),
        ({"table": "/etc/passwd"}, "data.table=FILE"),
        ({"table": "../up.csv"}, "data.table=FILE"),
        ({"table": "${SECRET}"}, "data.table=FILE"),
        ({"source": "mix", "sources": [{"source": "table", "root": "/etc"}]}, "data.sources="),
    ],
)
def test_every_path_of_a_checkpoint_is_asked_for(theirs, asked, world, tmp_path):
    path = of_a_stranger(world, tmp_path / "sent", **theirs)
    words = ["--checkpoint", path, f"data.root={world.images}", "finetune.run=x"]
    assert asked in mistake(finetune, *words, keep=tmp_path)


def test_a_copied_run_is_evaluated_where_it_is_told(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(world.classifier, tmp_path / "run")
    line = mistake(evaluate, run, keep=tmp_path)
    assert line.endswith(f"mae-evaluate {run} data.root=FOLDER")
    succeed(evaluate, run, f"data.root={world.images}")
    assert (run / "predictions/test.csv").is_file()
    succeed(evaluate, world.classifier)  # at home nothing more is asked


# texts that name no place
OF_A_DATA_SET = {"views", "normal", "where", *(f"columns.{name}" for name in ColumnSettings.model_fields)}
NO_PLACES = {"device", "data.target", "data.sources.name", "data.unlabelled.name"}
for section in ("data", "data.sources", "data.unlabelled"):
    NO_PLACES |= {f"{section}.{name}" for name in OF_A_DATA_SET}
NO_PLACES |= {
    "compare.rows.name",
    "compare.rows.pretraining",
    "compare.baseline",
    "compare.labelled",
    "compare.rows.labelled",
    "report.subgroups",
    "report.checklist",
}
NO_PLACES |= {"compare.contrasts.a", "compare.contrasts.b"}
# settings of any kind; only mae-compare reads them
ANY = {"compare.pretrainings", "compare.rows.set", "compare.tune", "compare.rows.tune", "compare.labelled_settings"}


def texts_of(kind: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every setting that may hold a text."""
    for name, field in kind.model_fields.items():
        for part in (field.annotation, *parts_of(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from texts_of(part, f"{prefix}{name}.")
            elif part in (str, Any):
                yield f"{prefix}{name}", field


def parts_of(annotation: Any) -> Iterator[Any]:
    for part in get_args(annotation):
        yield part
        yield from parts_of(part)


def test_every_setting_that_holds_a_text_is_known_to_name_a_place_or_none():
    """A new one is either a `PathText`, which a stranger's checkpoint cannot choose, or is listed above."""
    found = dict(texts_of(ClassifyConfig))
    places = {name for name, field in found.items() if is_path(field)}
    assert found.keys() - places == NO_PLACES | ANY
    part = [{"source": "table", "root": "a"}]
    config = make_config({"data": {"sources": part, "unlabelled": part}}, "test")
    assert {key for key, _ in paths_in(config)} == {name for name in places if not name.startswith("compare.rows.")}

    # what the code reads as a path, by the name that `expand` is given
    root = Path(import_module("data").__file__).parents[1]
    text = "".join(path.read_text() for room in ("data", "mae", "classify") for path in (root / room).rglob("*.py"))
    named = {part.split('"')[1] for part in text.split("expand(")[1:] if '"' in part.split(")")[0]}
    assert named == {
        name for name in places if not name.startswith(("data.sources.", "data.unlabelled.", "compare.rows."))
    }


# ---------------------------------------------------------------- links


@pytest.mark.parametrize("name", ["predictions", "audit.json", "audit.json.tmp", "lock", "metrics.jsonl"])
def test_links_out_of_a_run_folder_are_not_followed(name, world, tmp_path):
    run = shutil.copytree(world.classifier, tmp_path / "run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("mine\n")
    place = run / name
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    place.symlink_to(tmp_path / "mine" if name == "predictions" else tmp_path / "mine/file")
    assert f"{place}: found a link out of the folder" in mistake(evaluate, run, *world.data, keep=tmp_path)
    words = ["--checkpoint", world.pretrained, f"finetune.run={run}", "finetune.epochs=2"]
    assert f"{place}: found a link out of the folder" in mistake(finetune, *words, keep=tmp_path / "mine")
    assert (tmp_path / "mine/file").read_text() == "mine\n"


def test_links_out_of_an_exports_folder_are_not_followed(world, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "mine").write_text("mine\n")
    (tmp_path / "out/model.safetensors.tmp").symlink_to(tmp_path / "mine")
    line = mistake(export, "--checkpoint", world.pretrained, "--out", tmp_path / "out", keep=tmp_path)
    assert "found a link out of the folder" in line


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_links_out_of_a_folder_of_weights_are_not_followed(name, world, tmp_path):
    hub = tmp_path / "hub"
    succeed(export, "--checkpoint", world.pretrained, "--out", hub)
    (hub / name).rename(tmp_path / name)
    (hub / name).symlink_to(tmp_path / name)
    words = ["--config", world.config, f"model.init={hub}", f"run={tmp_path}/run"]
    assert f"{hub / name}: found a link out of the folder" in mistake(pretrain, *words, keep=tmp_path)


# ---------------------------------------------------------------- declared sizes


def torch_zip(path: Path, content: object, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    """A torch file whose members are packed again."""
    torch.save(content, path.with_suffix(".plain"))
    with zipfile.ZipFile(path.with_suffix(".plain")) as plain, zipfile.ZipFile(path, "w", compression) as packed:
        for member in plain.namelist():
            packed.writestr(member, plain.read(member))
    return path


def test_strides_that_repeat_a_number_ask_for_nothing(tmp_path):
    landmark = "patch_embed.proj.weight"
    huge = torch.zeros(1).expand(60_000, 3, 536, 536)  # 206 GB
    torch.save({"model": {landmark: huge}}, tmp_path / "x.pth")
    assert (tmp_path / "x.pth").stat().st_size < 6000
    with pytest.raises(UserError, match=r"bytes that spread over 206,\d\d\d,\d\d\d,\d\d\d, expected"):
        read_facebook(tmp_path / "x.pth")


def test_compressed_tensors_are_refused(tmp_path):
    path = torch_zip(tmp_path / "x.pth", {"patch_embed.proj.weight": torch.zeros(10**6)})
    assert path.stat().st_size < 20_000
    with pytest.raises(UserError, match="found compressed tensors"):
        read_facebook(path)


def older(path: Path, tensor: torch.Tensor) -> bytes:
    torch.save({"model": {"patch_embed.proj.weight": tensor}}, path, _use_new_zipfile_serialization=False)
    return path.read_bytes()


def test_a_file_of_older_torch_declares_no_more_than_it_has(tmp_path):
    whole = older(tmp_path / "x.pth", torch.ones(32, 1, 4, 4))
    assert read_facebook(tmp_path / "x.pth")["model"]["patch_embed.proj.weight"].sum() == 512
    declared = b"M" + struct.pack("<H", 512)  # BININT2, of the storage and of nothing else
    assert declared in whole
    (tmp_path / "x.pth").write_bytes(whole.replace(declared, b"J" + struct.pack("<i", 2**31 - 1)))
    with pytest.raises(UserError, match="bytes that ask for 8,589,934,588, expected a whole file"):
        read_facebook(tmp_path / "x.pth")


class Call:
    """Becomes a call when it is unpickled."""

    def __init__(self, what: object, *arguments: object):
        self.what, self.arguments = what, arguments

    def __reduce__(self):
        return self.what, self.arguments


@pytest.mark.parametrize("what", [bytearray, torch.Tensor])
def test_harmless_classes_are_asked_for_nothing_large(what, tmp_path):
    (tmp_path / "x.pth").write_bytes(
        b"".join(pickle.dumps(each, 2) for each in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
        + pickle.dumps(Call(what, 10**10), 2)
        + pickle.dumps([], 2)
    )
    with pytest.raises(UserError, match="bytes that ask for 10,000,000,000"):
        read_facebook(tmp_path / "x.pth")


def test_tuples_in_tuples_for_a_name_do_not_end_the_process(tmp_path):
    deep = b"\x80\x02}K\x01" + 100_000 * b"\x85" + b"K\x02s."  # {((((1,),),),): 2}
    heads = b"".join(pickle.dumps(each, 2) for each in (0x1950A86A20F9469CFC6C, 1001, {}))
    (tmp_path / "x.pth").write_bytes(heads + deep)
    with pytest.raises(UserError, match="found tuples in each other for a name"):
        read_facebook(tmp_path / "x.pth")


def test_sizes_in_a_checkpoints_settings_ask_for_no_memory(world, tmp_path):
    made = load_checkpoint(world.pretrained)
    sizes = {"width": 2**16, "depth": 3, "heads": 4, "decoder_width": 2**14}
    save_checkpoint(
        replace(made, settings=made.settings | {"model": made.settings["model"] | sizes}), tmp_path / "x.pt"
    )
    for main, *words in (
        (export, "--checkpoint", tmp_path / "x.pt", "--out", tmp_path / "out"),
        (reconstruct, world.images / "0000.png", "--checkpoint", tmp_path / "x.pt", "--out", tmp_path / "out"),
        (finetune, "--checkpoint", tmp_path / "x.pt", *world.data, f"finetune.run={tmp_path}/run"),
    ):
        assert "the config describes a model of another size" in mistake(main, *words, keep=tmp_path)


def medmnist(path: Path, **changed: bytes) -> Path:
    """A MedMNIST archive of four images a part, some of its members' bytes replaced."""
    arrays = {}
    for part in ("train", "val", "test"):
        arrays[f"{part}_images"] = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)
        arrays[f"{part}_labels"] = np.arange(4)[:, None] % 2
    np.savez(path.with_suffix(".plain.npz"), **arrays)
    with (
        zipfile.ZipFile(path.with_suffix(".plain.npz")) as plain,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out,
    ):
        for member in plain.namelist():
            out.writestr(member, changed.get(member.removesuffix(".npy"), plain.read(member)))
    return path


def npy(shape: str, data: bytes = b"") -> bytes:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train_labels", npy("(10**12, 1)"), "train_labels: found no header of an array"),
        ("train_labels", npy("(1000000000000, 1)"), "bytes, expected 1,000,000,000,0"),
        ("val_images", npy("(-4, -64)", bytes(256)), "found the shape (-4, -64), expected sides of 0 or more"),
        ("train_images", npy("(4, 5000, 5000)", bytes(10**8)), "that unpack to 100,000,0"),
        ("train_images", b"", "train_images: found no header of an array"),
        ("train_images", npy("(" * 3000), "train_images: found no header of an array"),
    ],
)
def test_headers_of_medmnist_are_held_against_the_file(name, content, message, world, tmp_path):
    archive = medmnist(tmp_path / "x.npz", **{name: content})
    words = ["--config", world.config, "data.source=medmnist", f"data.root={archive}", f"data.store={tmp_path}/stores"]
    tracemalloc.start()
    line = mistake(prepare, *words, keep=tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert line.startswith(f"error: data.root: {archive}: damaged .npz: ")
    assert message in line
    assert peak < 5 * 10**7


# ---------------------------------------------------------------- settings


def test_aliases_of_yaml_ask_for_nothing(world, tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join(9 * [f'*a{n - 1}'])}]" for n in range(1, 12)]
    bomb = "\n".join(lines)
    (tmp_path / "bomb.yaml").write_text(bomb)
    for main in (prepare, pretrain, finetune):
        line = mistake(main, "--config", tmp_path / "bomb.yaml", keep=tmp_path)
        assert line == f"error: {tmp_path}/bomb.yaml: found aliases for more than 100,000 values, expected settings"

    run = shutil.copytree(world.pretrained.parent, tmp_path / "run")
    (run / "config.yaml").write_text(bomb)
    assert "found aliases for more" in mistake(pretrain, "--config", world.config, f"run={run}", keep=tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [*a]", "found a value that holds itself"),
        ("[" * 5000, "found values nested more than 40 deep"),
        ("[" * 50 + "]" * 50, "found values nested more than 40 deep"),
        ("seed: " + "9" * 5000, "found a number of 5000 digits, expected at most 400"),
        ("seed: " + "9" * 90, "seed: found a whole number of 299 bits, expected at most 64"),
        ("seed: 1." + "1" * 9000, "found a number of 9002 digits"),
        ('run: "\\ud800"', "run: found half a character in "),
        ("? [1]\n: 2", "not valid YAML: line 1: found no text for a name"),
        ("seed: !!int x", "not valid YAML: ValueError in a value"),
        ("run: !!binary aGE=", "run: found bytes, expected a plain value"),
        ("# " + "x" * 2**20, "found more than 1,048,576 bytes"),
    ],
)
def test_odd_yaml_is_one_line(text, message, tmp_path):
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    line = mistake(pretrain, "--config", path, keep=tmp_path)
    assert line.startswith(f"error: {path}: {message}")


def test_anchors_and_merges_of_a_usual_size_are_read(tmp_path):
    text = "data: &d {source: table, root: here}\nreport: {images: false}\nmodel: {<<: &m {depth: 3}, width: 24}\n"
    (tmp_path / "c.yaml").write_text(text)
    config = load_config(tmp_path / "c.yaml")
    assert (config.model.depth, config.model.width, config.data.root) == (3, 24, "here")


def test_printed_settings_of_a_stranger_move_no_cursor(world, tmp_path):
    path = of_a_stranger(world, tmp_path / "sent", target="\x1b[2J\u202egnp.exe")
    said = succeed(finetune, "--checkpoint", path, "--print-config")
    assert all(line.isprintable() for line in said.splitlines())
    assert yaml.safe_load(said)["data"]["target"] == "\x1b[2J\u202egnp.exe"
    assert "${SECRET}" in said


def test_what_is_odd_in_environment_json_is_one_line(world, tmp_path):
    run = shutil.copytree(world.pretrained.parent, tmp_path / "run")
    for content in ("[1]", '{"facts": 1}', '{"facts": {}, "starts": {}}', "[" * 10**5, "{", '"\\ud800"', "9" * 5000):
        (run / "environment.json").write_text(content)
        line = mistake(pretrain, "--config", world.config, f"run={run}", keep=tmp_path)
        assert line.startswith(f"error: {run}/environment.json: ")
