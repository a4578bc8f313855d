"""Laws of preparing that is interrupted, killed or done by several processes: the bytes are the same."""

import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from checkout import in_checkout
from interrupted_reading import bytes_of, spoil, stop_at
from tiny_world import tiny_config, write_table

import data.preparation
import data.store
from data.preparation import prepare


@pytest.mark.parametrize("call", [1, 37, 60])
def test_an_interrupted_prepare_finishes_to_the_same_bytes(call, tmp_path, monkeypatch):
    config = tiny_config(tmp_path)
    whole = prepare(tiny_config(tmp_path, data__store=str(tmp_path / "whole")))
    monkeypatch.setattr(data.preparation, "CHUNK", 5)
    with monkeypatch.context() as patch:
        stop_at(patch, call)
        with pytest.raises(KeyboardInterrupt):
            prepare(config)
    folder = tmp_path / "stores" / whole.folder.name
    assert not (folder / "store.json").exists()
    with monkeypatch.context() as patch:
        paths = stop_at(patch, 0)
        store = prepare(config)
    assert bytes_of(store) == bytes_of(whole)
    assert len(paths) == 60 - (call - 1) // 5 * 5  # what was reported is not read again


@pytest.mark.parametrize("victim", ["state.npy", "bytes.npy", "digests.npy", "stamps.npy", "images.partial.npy"])
def test_a_kill_while_the_arrays_are_made_is_mended(victim, tmp_path, monkeypatch):
    """Whichever array file is written last, the next start finds all it needs."""
    allocate = data.store._allocate

    def interrupted(path, *rest):
        if path.name == victim:
            raise KeyboardInterrupt
        allocate(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(data.store, "_allocate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(tiny_config(tmp_path))
    assert len(prepare(tiny_config(tmp_path))) == 60


@pytest.mark.parametrize("name", ["index.csv", "rejected.csv", "images.npy", "store.json"])
def test_a_kill_while_finishing_is_mended(name, tmp_path, monkeypatch):
    whole = prepare(tiny_config(tmp_path, data__store=str(tmp_path / "whole")))
    replace = Path.replace

    def interrupted(path: Path, target: Path):
        if Path(target).name == name:
            raise KeyboardInterrupt
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(tiny_config(tmp_path))
    paths = stop_at(monkeypatch, 0)
    assert bytes_of(prepare(tiny_config(tmp_path))) == bytes_of(whole)
    assert not paths  # all was decoded


PROGRAM = """
    import os, signal
    from pathlib import Path
    from tiny_world import tiny_config
    import data.preparation, data.store

    if __name__ == "__main__":
        data.preparation.CHUNK, noted, note = 2, [], data.store.StoreWriter.note

        def counted(self, row, *rest):
            note(self, row, *rest)
            noted.append(row)
            if len(noted) == {stop}:
                os.kill(os.getpid(), signal.SIGKILL)

        data.store.StoreWriter.note = counted
        data.preparation.prepare(tiny_config(Path({root!r}), data__workers={workers}))
        print(len(noted))
"""


def start_prepare(root: Path, stop: int, workers: int) -> subprocess.Popen:
    program = root / "program.py"
    program.write_text(textwrap.dedent(PROGRAM.format(root=str(root), stop=stop, workers=workers)))
    return subprocess.Popen(
        [sys.executable, str(program)], env=in_checkout(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_prepare_finishes_to_the_same_bytes_and_leaves_no_worker(workers, tmp_path):
    whole = prepare(tiny_config(tmp_path, data__store=str(tmp_path / "whole")))
    killed = start_prepare(tmp_path, 23, workers)
    killed.communicate(timeout=60)  # ends when the last process that holds its output has ended
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "stores" / whole.folder.name / "store.json").exists()
    assert bytes_of(prepare(tiny_config(tmp_path))) == bytes_of(whole)


SLOW_PROGRAM = """
    import time
    from pathlib import Path
    from tiny_world import tiny_config
    import data.preparation, data.store

    read = data.store.read_fitted

    def slowly(*arguments):  # in the workers too, so that there is a moment to hit
        time.sleep(0.004)
        return read(*arguments)

    data.store.read_fitted = slowly
    if __name__ == "__main__":
        data.preparation.CHUNK = 3
        data.preparation.prepare(tiny_config(Path({root!r}), data__workers=3))
"""


def test_three_kills_at_random_moments_leave_the_same_bytes(tmp_path):
    write_table(tmp_path / "images", 300)
    spoil(tmp_path / "images", 6)
    config = tiny_config(tmp_path)
    program = textwrap.dedent(SLOW_PROGRAM.format(root=str(tmp_path)))
    moments = sorted(random.Random().sample(range(1, 240), 3))  # three new ones each time; the law holds for any
    whole = prepare(tiny_config(tmp_path, data__store=str(tmp_path / "whole")))
    folder = tmp_path / "stores" / whole.folder.name
    for moment in moments:
        kill_at(moment, program, tmp_path / "program.py", folder / "state.npy")
        assert not (folder / "store.json").exists(), moments
    (tmp_path / "program.py").write_text(program)
    subprocess.run([sys.executable, tmp_path / "program.py"], env=in_checkout(), check=True, timeout=120)
    assert bytes_of(prepare(config)) == bytes_of(whole), moments


def kill_at(moment: int, program: str, place: Path, state: Path) -> None:
    """Run the program and kill it, with SIGKILL, once so many rows are done; returns when its workers have gone."""
    place.write_text(program)
    process = subprocess.Popen([sys.executable, str(place)], env=in_checkout(), stdout=subprocess.PIPE)
    while process.poll() is None and not (state.exists() and np.count_nonzero(np.load(state)) >= moment):
        time.sleep(0.001)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, moment


def test_two_prepares_at_once_decode_each_image_once(tmp_path):
    whole = prepare(tiny_config(tmp_path, data__store=str(tmp_path / "whole")))
    both = [start_prepare(tmp_path, -1, 1) for _ in range(2)]
    ends = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    assert sorted(int(out) for out, _ in ends) == [0, 60]
    assert bytes_of(prepare(tiny_config(tmp_path))) == bytes_of(whole)


def test_workers_write_the_same_bytes_as_one_process(tmp_path, monkeypatch):
    monkeypatch.setattr(data.preparation, "CHUNK", 5)
    one = prepare(tiny_config(tmp_path, data__store=str(tmp_path / "one")))
    two = prepare(tiny_config(tmp_path, data__workers=2))
    assert bytes_of(one) == bytes_of(two)


def test_a_store_begun_before_digests_is_begun_anew(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 37)
        with pytest.raises(KeyboardInterrupt):
            prepare(tiny_config(tmp_path))
    [digests] = tmp_path.glob("stores/*/digests.npy")
    digests.unlink()
    assert all(prepare(tiny_config(tmp_path)).digests().values())
