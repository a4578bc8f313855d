"""Two commands in one folder: the second waits, or is refused in one line; nothing is mixed."""

import json
import shutil
from threading import Thread

import pytest
from tiny_world import World, call, files, mistake, succeed

import data.folders
import data.locks
from classify.cli import compare, embed, evaluate, export, predict
from data.errors import UserError
from data.folders import replacing_folder, written_by_one
from data.locks import locked

ROWS = "compare.rows=[{name: ViT}]"


def test_a_second_evaluation_waits_and_reads_what_the_first_has_written(world, tmp_path, capsys):
    run = shutil.copytree(world.classifier, tmp_path / "run")
    shutil.rmtree(run / "predictions", ignore_errors=True)
    (run / "predictions").mkdir()
    second = Thread(target=lambda: said.append(call(evaluate, run, *world.data)))
    said = []
    with locked(run / "predictions", "busy", wait=False):
        second.start()
        second.join(1.5)
        assert second.is_alive()
        assert not list(run.glob("predictions/*.csv"))
    second.join(60)
    assert said[0].code == 0
    assert len(list(run.glob("predictions/*.csv"))) == 1


def test_a_second_comparison_is_refused(world, tmp_path):
    words = ["--config", world.config, f"run={tmp_path}/grid", ROWS]
    (tmp_path / "grid").mkdir()
    with locked(tmp_path / "grid", "busy", wait=False):
        line = mistake(compare, *words, keep=world.root)
    assert line.startswith(f"error: {tmp_path}/grid: found another mae-compare at work there, expected none")
    assert [path.name for path in tmp_path.glob("grid/*")] == ["lock"]
    succeed(compare, *words)


@pytest.mark.parametrize(("command", "name"), [(embed, "new.npy"), (predict, "new.csv"), (export, "new.onnx")])
def test_a_second_command_that_writes_the_same_file_is_refused(command, name, world, tmp_path):
    images = [] if command is export else [world.images / "0000.png"]
    words = [*images, "--checkpoint", world.classifier, "--out", tmp_path / name]
    with written_by_one(tmp_path / name):
        line = mistake(command, *words, keep=world.root)
        assert line == f"error: {tmp_path / name}: found another command that writes it, expected none; wait for it"
        assert not list(tmp_path.glob("new*"))
    succeed(command, *words)
    assert (tmp_path / name).exists()
    assert not list(tmp_path.glob(".*"))


# ---------------------------------------------------------------- exports


def exported(world: World, folder) -> tuple:
    return export, "--checkpoint", world.pretrained, "--out", folder


def test_an_export_over_another_replaces_it_whole(world, tmp_path):
    succeed(*exported(world, tmp_path / "hf"))
    new = files(tmp_path / "hf")
    (tmp_path / "hf/config.json").write_text(json.dumps({"architectures": ["ViTModel"]}))
    (tmp_path / "hf/README.md").unlink()
    succeed(*exported(world, tmp_path / "hf"))
    assert {path.name for path in files(tmp_path / "hf")} == {path.name for path in new}
    assert json.loads((tmp_path / "hf/config.json").read_text())["architectures"] == ["ViTMAEForPreTraining"]
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


@pytest.mark.parametrize("other", ["notes.txt", ".git/config"])
def test_an_export_over_anything_else_is_refused(other, world, tmp_path):
    (tmp_path / "hf" / other).parent.mkdir(parents=True)
    (tmp_path / "hf" / other).write_text("mine")
    line = mistake(*exported(world, tmp_path / "hf"), keep=tmp_path)
    assert line.startswith(f"error: {tmp_path}/hf: found {other.split('/')[0]} there, expected no folder, or one that")
    assert list(files(tmp_path)) == [tmp_path / "hf" / other]


def test_a_second_export_is_refused(world, tmp_path):
    with replacing_folder(tmp_path / "hf", ("config.json",)) as partial:
        (partial / "config.json").write_text("{}")
        line = mistake(*exported(world, tmp_path / "hf"), keep=tmp_path)
    assert line.startswith(f"error: {tmp_path}/hf: found another command that writes it, expected none")
    assert [path.name for path in tmp_path.rglob("*")] == ["hf", "config.json"]


def test_an_export_is_held_and_replaced_where_the_system_knows_no_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(data.locks, "fcntl", None)
    monkeypatch.setattr(data.locks, "_is_dead", lambda *_: False)  # both are this process
    for _ in range(2):
        with replacing_folder(tmp_path / "hf", ("config.json",)) as partial:
            (partial / "config.json").write_text("{}")
            second = replacing_folder(tmp_path / "hf", ("config.json",))
            with pytest.raises(UserError, match="found another command that writes it, expected none"), second:
                pytest.fail("both write")
    assert [path.name for path in tmp_path.rglob("*")] == ["hf", "config.json"]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", [1, 2, 3])
def test_a_kill_leaves_the_old_one_or_the_new_one(moment, tmp_path, monkeypatch):
    """After a kill between any two renames, the next command finds one of them whole, and mends the rest."""

    def write(text: str) -> None:
        with replacing_folder(tmp_path / "out", ("text",)) as partial:
            (partial / "text").write_text(text)

    write("old")
    path_type, renames = type(tmp_path), []
    rename = path_type.rename

    def killed(path, target):
        renames.append(target)
        if len(renames) == moment:
            raise Killed
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(path_type, "rename", killed)
        patch.setattr(data.folders.shutil, "rmtree", lambda *_, **__: None)  # a kill tidies nothing up
        if moment < 3:
            with pytest.raises(Killed):
                write("new")
        else:
            write("new")
    found = [(tmp_path / name / "text") for name in ("out", ".out.before") if (tmp_path / name / "text").exists()]
    assert found[0].read_text() == ("new" if moment == 3 else "old")
    write("newer")
    assert (tmp_path / "out/text").read_text() == "newer"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match="out: found a file"), replacing_folder(tmp_path / "out", ()):
        pytest.fail("written")
