"""Commands on a disk that is full, or read-only: one line, and what is there stays."""

import errno
import shutil
import subprocess
import tempfile

import pytest
from tiny_world import call, files, succeed

from classify.cli import compare, evaluate, export, finetune
from data.cli import prepare
from data.inputs import find_inputs, read_inputs
from data.settings import DataSettings
from mae.cli import pretrain, reconstruct


@pytest.fixture
def disk(tmp_path):
    """A small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk, left: int) -> None:
    """Fill the disk but for so many bytes."""
    (disk / "filling").write_bytes(bytes(shutil.disk_usage(disk).free - left))


COMMANDS = {
    "prepare": lambda world, disk: (prepare, "--config", world.config, f"data.store={disk}/new"),
    "pretrain": lambda world, disk: (pretrain, "--config", world.config, f"run={disk}/new"),
    "finetune": lambda world, disk: (finetune, "--checkpoint", world.pretrained, f"finetune.run={disk}/new"),
    "evaluate": lambda world, disk: (evaluate, disk / "run", *world.data),
    "compare": lambda world, disk: (
        compare,
        "--config",
        world.config,
        f"run={disk}/new",
        "compare.rows=[{name: ViT}]",
    ),
    "export": lambda world, disk: (export, "--checkpoint", world.pretrained, "--out", disk / "new"),
    "reconstruct": lambda world, disk: (
        reconstruct,
        world.images / "0000.png",
        "--checkpoint",
        world.pretrained,
        "--out",
        disk / "new",
    ),
}


@pytest.mark.parametrize("left", [0, 5_000])
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's
def test_a_full_disk_is_one_line_and_room_mends_it(command, left, world, disk):
    shutil.copytree(
        world.classifier, disk / "run", ignore=shutil.ignore_patterns("predictions", "events*", "*openings*")
    )
    before = files(disk / "run")
    fill(disk, left)
    outcome = call(*COMMANDS[command](world, disk))
    assert outcome.code == 2, outcome
    *_, error = outcome.err.splitlines()
    assert error.startswith("error: ")
    assert "No space left on device" in error or "GB free" in error or "goes on from step" in error
    assert "Traceback" not in outcome.err
    assert {path: file for path, file in files(disk / "run").items() if path in before} == before
    assert not list(disk.rglob("*.tmp"))
    (disk / "filling").unlink()
    succeed(*COMMANDS[command](world, disk))


def test_a_full_folder_for_temporary_files_is_an_error_and_no_bus_error(world, disk, monkeypatch):
    """Images are handed on in sparse files, and writing to one that has no room kills the process."""
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    fill(disk, 100_000)
    how = DataSettings(source="images", image_size=256)
    with pytest.raises(OSError) as caught:
        list(read_inputs(find_inputs([world.images]), how, workers=1))
    assert caught.value.errno == errno.ENOSPC
    assert str(caught.value.filename).startswith(str(disk))
    assert not list(disk.glob("mae-*"))
