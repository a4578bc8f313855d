"""Laws of checkpoints: they read back as written, are never torn, and bring no code."""

import os
import pickle
import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from code_carrier import Code
from stage_runs import Stop, assert_same
from tiny_world import tiny_config
from torch import nn

import mae.engine.checkpoint
from classify.finetune import finetune
from classify.settings import ClassifyConfig
from data.errors import UserError
from mae import build_mae, load_checkpoint
from mae.engine.checkpoint import FORMAT, Checkpoint, load_weights, save_checkpoint
from mae.engine.run import is_finished
from mae.pretrain import pretrain


def checkpoint_of(number: float, kind: str = "mae") -> Checkpoint:
    return Checkpoint(kind, {"seed": 0}, {"weight": torch.full((2, 3), number)}, {"n": number}, None, {"epoch": 1})


def refusal(path: Path, kind: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load_checkpoint(path, kind)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def watched(monkeypatch, name: str, note: Callable) -> list:
    """What `note` says of the arguments of each call of a function of checkpoint.py, which works as ever."""
    really = getattr(mae.engine.checkpoint, name)
    noted = []

    def called(*given, **named):
        noted.append(note(*given, **named))
        return really(*given, **named)

    monkeypatch.setattr(mae.engine.checkpoint, name, called)
    return noted


def test_a_checkpoint_reads_back_as_written(tmp_path):
    save_checkpoint(checkpoint_of(5), tmp_path / "last.pt")
    found = load_checkpoint(tmp_path / "last.pt", "mae")
    assert_same(found.weights, checkpoint_of(5).weights)
    assert (found.kind, found.settings, found.meta, found.progress) == ("mae", {"seed": 0}, {"n": 5}, {"epoch": 1})
    assert found.place == str(tmp_path / "last.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


EDITS = {
    "kind": lambda raw: raw.update(kind="other"),
    "setting": lambda raw: raw["settings"].update(seed=1),
    "fact": lambda raw: raw["meta"].update(n=7.0),
    "fact less": lambda raw: raw["meta"].clear(),
    "progress": lambda raw: raw["progress"].update(epoch=2),
    "weight": lambda raw: raw["weights"]["weight"][1, 2].add_(2**-20),
    "shape": lambda raw: raw["weights"].update(weight=raw["weights"]["weight"].reshape(3, 2)),
    "optimizer": lambda raw: raw.update(optimizer={"a": 1}),
    "state": lambda raw: raw["state"].update(a=1),
    "digests": lambda raw: raw.update(digests="none"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_what_was_edited_since_is_refused(edit, tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(checkpoint_of(5.0), path)
    raw = torch.load(path, weights_only=True)
    torch.save(raw, path)
    load_checkpoint(path)  # written anew, and nothing edited
    EDITS[edit](raw)
    torch.save(raw, path)
    assert "that were changed since they were written" in refusal(path)
    del raw["digests"]
    torch.save(raw, path)
    load_checkpoint(path)  # as earlier versions wrote it


def test_a_bit_that_flipped_in_a_weight_is_refused(tmp_path):
    """torch maps the file and looks at no checksum."""
    path = tmp_path / "last.pt"
    save_checkpoint(checkpoint_of(5.0), path)
    data = bytearray(path.read_bytes())
    data[data.index(torch.full((2, 3), 5.0).numpy().tobytes())] ^= 1
    path.write_bytes(data)
    assert "found weights that were changed" in refusal(path)
    assert load_checkpoint(path, numbers=False).meta == {"n": 5}  # weights that are not read are not compared


def test_a_file_is_looked_through_once_and_again_after_any_change(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    save_checkpoint(checkpoint_of(5.0), path)
    looked = watched(monkeypatch, "_expect_unchanged", lambda *given: given[-1])
    for numbers in (False, True, True, False):  # the process that wrote the file knows what it says
        assert load_checkpoint(path, numbers=numbers).meta == {"n": 5}
    assert looked == [True]
    raw = path.read_bytes()
    path.write_bytes(raw)
    for numbers in (False, False, True, True, False):
        assert load_checkpoint(path, numbers=numbers).meta == {"n": 5}
    assert looked == [True, False, True]

    place = raw.index(torch.full((2, 3), 5.0).numpy().tobytes())
    path.write_bytes(raw[:place] + b"\x01" + raw[place + 1 :])  # of the same length
    assert "found weights that were changed" in refusal(path)
    path.write_bytes(raw)
    load_checkpoint(path)
    assert looked[3:] == [True, True]


def test_what_a_file_says_is_remembered_until_the_file_changes(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    save_checkpoint(checkpoint_of(5.0), path)
    read = watched(monkeypatch, "load_torch_file", lambda path, held: path)
    for _ in range(3):
        said = load_checkpoint(path, numbers=False)
        assert said.meta == {"n": 5}
        assert not said.weights and not said.state and said.optimizer is None
        said.meta["n"] = 7  # the caller's own copy
    assert len(read) == 1
    assert load_checkpoint(path).weights and len(read) == 2

    moved = tmp_path / "moved.pt"
    path.rename(moved)
    assert load_checkpoint(moved, numbers=False).place == str(moved)
    with pytest.raises(UserError, match="expected classifier"):
        load_checkpoint(moved, "classifier", numbers=False)
    with pytest.raises(UserError, match=re.escape(str(path))):
        load_checkpoint(path, numbers=False)
    save_checkpoint(checkpoint_of(3.0), moved)
    assert load_checkpoint(moved, numbers=False).meta == {"n": 3}


@pytest.mark.parametrize("part", ["settings", "optimizer", "state"])
def test_what_stands_for_endless_values_is_refused_at_once(part, tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(checkpoint_of(5.0), path)
    raw = torch.load(path, weights_only=True)
    bomb: object = 1
    for _ in range(50):
        bomb = [bomb, bomb]
    raw[part] = {"a": bomb}
    torch.save(raw, path)
    refusal(path)


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_a_crash_while_writing_leaves_the_old_checkpoint(moment, tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    save_checkpoint(checkpoint_of(1), path)

    def torn(content, file):
        file.write(b"PK\x03\x04 half of a checkpoint")
        raise Stop

    def crash(*arguments):
        raise Stop

    where = {"write": (mae.engine.checkpoint.torch, "save", torn), "fsync": (os, "fsync", crash)}
    with monkeypatch.context() as patch:
        patch.setattr(*where.get(moment, (Path, "replace", crash)))
        with pytest.raises(Stop):
            save_checkpoint(checkpoint_of(2), path)
    assert load_checkpoint(path).meta == {"n": 1}
    save_checkpoint(checkpoint_of(3), path)
    assert load_checkpoint(path).meta == {"n": 3}


def test_a_checkpoint_that_brings_code_is_refused_and_not_run(tmp_path):
    torch.save({"format": FORMAT, "kind": "mae", "meta": Code(tmp_path / "ran")}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Code(tmp_path / "ran")))
    torch.save(nn.Linear(2, 3), tmp_path / "c.pt")
    for name in "ac":
        assert "found a pickle that carries code (" in refusal(tmp_path / f"{name}.pt")
    assert "found an unreadable or foreign file, expected a checkpoint" in refusal(tmp_path / "b.pt")
    assert not (tmp_path / "ran").exists()


def test_foreign_and_broken_files_are_refused_in_one_line(tmp_path):
    path = tmp_path / "x.pt"
    save_checkpoint(checkpoint_of(5), path)
    whole = path.read_bytes()
    for content in (b"", b"text", bytes(range(256)), pickle.dumps({"a": 1}), whole[:20], whole[: len(whole) // 2]):
        path.write_bytes(content)
        assert "unreadable or foreign" in refusal(path)
    for foreign in ({"model": {"weight": torch.ones(2)}}, [1, 2], {"format": "mae-cxr 999"}):
        torch.save(foreign, path)
        assert f"found a torch file of another program, expected a checkpoint ({FORMAT})" in refusal(path)
    assert "found no such file" in refusal(tmp_path / "absent.pt")
    assert "found a folder" in refusal(tmp_path)


def test_another_kind_of_checkpoint_is_refused(tmp_path, place, opened):
    save_checkpoint(checkpoint_of(5, "classifier"), tmp_path / "last.pt")
    assert "found a checkpoint of kind classifier, expected mae" in refusal(tmp_path / "last.pt", "mae")
    with pytest.raises(UserError, match="expected mae"):
        finetune(tiny_config(place), tmp_path / "last.pt", opened)


def test_weights_of_another_size_are_refused_and_nothing_is_loaded(pretrained):
    model = build_mae("vit_tiny_patch16", 12, patch_size=4, width=16, depth=2, heads=2, decoder_depth=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_weights(model, load_checkpoint(pretrained))
    assert "decoder.blocks.0.attention.out.bias: found (8,), expected (128,)" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert_same(dict(model.state_dict()), before)


def test_a_checkpoint_brings_its_config(pretrained):
    config = load_checkpoint(pretrained).config
    assert config.model.width == 12
    assert config.data.image_size == 12


def with_old_names(settings: dict) -> dict:
    """The settings as a version from before the renaming would have written them."""
    settings = deepcopy(settings)
    for before, now in ClassifyConfig.RENAMED.items():
        *sections, name = now.split(".")
        holder = settings
        for section in sections:
            holder = holder[section]
        section, old_name = before.split(".")
        settings[section][old_name] = holder.pop(name)
    return settings


def test_a_checkpoint_of_an_earlier_version_brings_its_config(pretrained, tmp_path):
    made = load_checkpoint(pretrained)
    old = replace(made, settings=with_old_names(made.settings))
    assert "accumulate" in old.settings["pretrain"]
    save_checkpoint(old, tmp_path / "last.pt")
    assert load_checkpoint(tmp_path / "last.pt").config == made.config


def test_a_run_of_an_earlier_version_goes_on(place, opened, tmp_path):
    config = tiny_config(place, run=str(tmp_path), pretrain__epochs=2, pretrain__optimizer__ema=0.5)
    pretrain(config, opened)
    made = yaml.safe_load((tmp_path / "config.yaml").read_text())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(with_old_names(made)))
    longer = tiny_config(place, run=str(tmp_path), pretrain__epochs=3, pretrain__optimizer__ema=0.5)
    assert load_checkpoint(pretrain(longer, opened) / "last.pt").progress["epoch"] == 3
    with pytest.raises(UserError, match=r"pretrain\.optimizer\.ema = 0.5, expected None"):
        pretrain(tiny_config(place, run=str(tmp_path), pretrain__epochs=3), opened)


def test_is_finished_reads_the_checkpoint(tmp_path):
    assert not is_finished(tmp_path, 1)
    save_checkpoint(checkpoint_of(0), tmp_path / "last.pt")
    with pytest.raises(UserError, match=r"best.pt: found no such file"):
        is_finished(tmp_path, 1)
    save_checkpoint(checkpoint_of(0), tmp_path / "best.pt")
    assert is_finished(tmp_path, 1)
    assert not is_finished(tmp_path, 2)


def test_weights_that_are_not_finite_are_not_written(tmp_path):
    save_checkpoint(checkpoint_of(0), tmp_path / "last.pt")
    before = (tmp_path / "last.pt").read_bytes()
    broken = Checkpoint("mae", {}, {"encoder.bias": torch.tensor([0.0, float("nan")])})
    with pytest.raises(UserError, match=r"last.pt: encoder.bias: found NaN or infinity, expected finite numbers"):
        save_checkpoint(broken, tmp_path / "last.pt", tmp_path / "previous.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]
    assert (tmp_path / "last.pt").read_bytes() == before
