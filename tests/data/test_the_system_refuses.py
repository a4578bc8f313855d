"""Laws of what the system may refuse: processes that it kills or does not start, locks, room on disk, hints.

The store is the same to the byte, or one line says what is missing.
"""

import errno
import multiprocessing
import os
import subprocess
import sys
import textwrap
from multiprocessing import popen_spawn_posix

import deadly_reading
import numpy as np
import pytest
from checkout import in_checkout
from interrupted_reading import bytes_of
from refusing_system import TROUBLES, refuse_files
from tiny_world import tiny_config

import data.images
import data.locks
import data.preparation
import data.store
import data.workers
from data.environment import usable_cores
from data.errors import UserError
from data.locks import locked
from data.preparation import prepare
from data.workers import Killed, run_one_by_one


@pytest.fixture
def whole(tmp_path):
    """The store, made where nothing goes wrong."""
    return prepare(tiny_config(tmp_path, data__store=str(tmp_path / "whole")))


def two_processes(tmp_path, monkeypatch):
    """A config under which two processes have more to do than this one would do alone."""
    monkeypatch.setattr(data.preparation, "CHUNK", 3)
    return tiny_config(tmp_path, data__workers=2)


def mark(tmp_path, name, word):
    path = tmp_path / "images" / name
    path.write_bytes(path.read_bytes() + word)  # Pillow does not mind


# ---------------------------------------------------------------- processes that are killed


@pytest.mark.parametrize("names", [["0000.png"], ["0031.png", "0059.png"]])
def test_a_process_killed_once_costs_nothing(names, tmp_path, monkeypatch, capsys):
    config = two_processes(tmp_path, monkeypatch)
    for name in names:
        mark(tmp_path, name, deadly_reading.ONCE)
    whole = prepare(tiny_config(tmp_path, data__store=str(tmp_path / "whole")))
    monkeypatch.setattr(data.preparation, "decode_rows", deadly_reading.read_or_die)
    assert bytes_of(prepare(config)) == bytes_of(whole)
    assert "note: found a process killed" in capsys.readouterr().err


def test_files_that_kill_every_process_are_named_and_all_others_are_kept(tmp_path, monkeypatch):
    config = two_processes(tmp_path, monkeypatch)
    for name in ("0016.png", "0058.png"):
        mark(tmp_path, name, deadly_reading.ALWAYS)
    whole = prepare(tiny_config(tmp_path, data__store=str(tmp_path / "whole")))
    monkeypatch.setattr(data.preparation, "decode_rows", deadly_reading.read_or_die)

    # also with one process, which would be this one
    for attempt in (config, tiny_config(tmp_path, data__workers=1)):
        with pytest.raises(UserError, match=r"16.png: found the process .* killed 2 times \(2 such") as caught:
            prepare(attempt)
        assert "\n" not in str(caught.value)
        [state] = tmp_path.glob("stores/*/state.npy")
        assert (np.load(state) == data.store.DONE).sum() == 58

    # there is memory again
    paths = []
    monkeypatch.setattr(data.preparation, "decode_rows", counted(paths))
    monkeypatch.setattr(data.preparation, "run_one_by_one", data.workers._here)
    assert bytes_of(prepare(config)) == bytes_of(whole)
    assert [path[-8:] for path in paths] == ["0016.png", "0058.png"]


def counted(paths):
    def reading(images, chunk, *how):
        paths.extend(path for _, path, *_ in chunk)
        return data.store.decode_rows(images, chunk, *how)

    return reading


def test_a_job_that_kills_its_process_is_one_line_and_takes_no_other_with_it():
    results = []
    with pytest.raises(UserError, match=r"^data.workers: found a process killed 2 times at the same work, exp[^\n]*$"):
        for result in data.workers.run_jobs(deadly_reading.double_or_die, [(number,) for number in range(12)], 2):
            results.append(result)
    assert sorted(results) == [2 * number for number in range(12) if number != 7]


# ---------------------------------------------------------------- files that cannot be read just now


@pytest.mark.parametrize("error", TROUBLES, ids=repr)
def test_what_passes_rejects_no_file(error, tmp_path, monkeypatch, whole):
    refuse_files(monkeypatch, ("0003.png", "0044.png"), error)
    assert bytes_of(prepare(tiny_config(tmp_path))) == bytes_of(whole)  # another process reads them


@pytest.mark.parametrize("again", [0, 64])
@pytest.mark.parametrize("error", [TROUBLES[0], TROUBLES[-1]], ids=repr)
def test_what_does_not_pass_is_a_line_and_all_others_are_kept(error, again, tmp_path, monkeypatch, whole):
    with monkeypatch.context() as patch:
        refuse_files(patch, ("0003.png", "0044.png"), error)
        patch.setattr(data.preparation, "run_one_by_one", data.workers._here)
        patch.setattr(data.preparation, "AGAIN", again)
        with pytest.raises(UserError, match=r"0003.png: found too .*\(2 such files\), which may pass.*run again"):
            prepare(tiny_config(tmp_path))
    [state] = tmp_path.glob("stores/*/state.npy")
    assert (np.load(state) == data.store.DONE).sum() == 58
    assert bytes_of(prepare(tiny_config(tmp_path))) == bytes_of(whole)


# ---------------------------------------------------------------- processes that are not started


def refuse_pools(monkeypatch, error, above=0):
    pool = data.workers._Pool

    def refused(workers, *rest, **more):
        if workers > above:
            raise error
        return pool(workers, *rest, **more)

    monkeypatch.setattr(data.workers, "_Pool", refused)


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "Permission denied"),  # no semaphores in a sandbox
        OSError(errno.ENOSPC, "No space left on device"),  # /dev/shm is full
        OSError(errno.ENOSYS, "Function not implemented"),
        ImportError("This platform lacks a functioning sem_open implementation"),
        NotImplementedError("system provides too few semaphores"),
    ],
)
def test_without_processes_this_one_does_the_work(error, tmp_path, monkeypatch, whole, capsys):
    refuse_pools(monkeypatch, error)
    assert bytes_of(prepare(two_processes(tmp_path, monkeypatch))) == bytes_of(whole)
    assert f"note: found no way to start processes ({error})" in capsys.readouterr().err


def test_fewer_processes_do_where_the_system_refuses_more(tmp_path, monkeypatch, whole, capsys):
    refuse_pools(monkeypatch, OSError(errno.EAGAIN, "Resource temporarily unavailable"), above=2)
    monkeypatch.setattr(data.preparation, "CHUNK", 3)
    assert bytes_of(prepare(tiny_config(tmp_path, data__workers=5))) == bytes_of(whole)
    assert "note: found 2 of 5 processes started" in capsys.readouterr().err


def test_processes_that_cannot_be_forked_are_done_without(tmp_path, monkeypatch, whole, capsys):
    def refused(*_):
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(data.workers, "get_context", multiprocessing.get_context)
    monkeypatch.setattr(popen_spawn_posix.Popen, "_launch", refused)
    assert bytes_of(prepare(two_processes(tmp_path, monkeypatch))) == bytes_of(whole)
    assert "note: found no way to start processes" in capsys.readouterr().err


def test_a_process_that_is_refused_once_is_asked_for_again(monkeypatch, capsys):
    """Else one refusal would have this process read a file that kills whoever reads it."""
    start, refusals = data.workers._start, [OSError(11, "Resource temporarily unavailable")]

    def refused_once(number):
        if refusals:
            raise refusals.pop()
        return start(number)

    monkeypatch.setattr(data.workers, "_start", refused_once)
    jobs = [(5,), (7,), (2,)]
    with pytest.raises(Killed) as caught:
        list(run_one_by_one(deadly_reading.double_or_die, jobs))
    assert caught.value.jobs == [(7,)]
    assert not refusals and not capsys.readouterr().err


def test_processes_that_do_not_live_are_done_without(tmp_path, monkeypatch, whole, capsys):
    monkeypatch.setattr(data.workers, "_begin_process", deadly_reading.die)
    assert bytes_of(prepare(two_processes(tmp_path, monkeypatch))) == bytes_of(whole)
    assert "note: found every process killed as it starts" in capsys.readouterr().err


def test_files_are_read_in_this_process_where_there_is_no_other(tmp_path, monkeypatch):
    from data.loader import open_data

    stored = open_data(tiny_config(tmp_path).data).store
    refuse_pools(monkeypatch, PermissionError(errno.EACCES, "Permission denied"))
    read = open_data(tiny_config(tmp_path, data__store=False, data__workers=2).data).store
    rows = np.arange(5)
    [images] = read.read([rows])
    np.testing.assert_array_equal(images, stored.images[rows])


def test_cores_are_counted_where_nobody_says_which_may_be_used(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cores() == os.cpu_count()
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1


# ---------------------------------------------------------------- locks


class NoLocks:
    """An fcntl whose `flock` is refused."""

    LOCK_EX, LOCK_NB = 2, 4

    def __init__(self, number):
        self.number = number

    def flock(self, *_):
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("number", [None, errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.EIO])
def test_without_the_systems_locks_a_file_stands_in(number, tmp_path, monkeypatch, whole):
    monkeypatch.setattr(data.locks, "fcntl", NoLocks(number) if number else None)
    monkeypatch.setattr(data.locks, "SETTLE", 0)
    store = prepare(tiny_config(tmp_path))
    assert bytes_of(store) == bytes_of(whole)
    assert not (store.folder / "lock.held").exists()


IN_TURN = """
    import sys, time
    from pathlib import Path
    import data.locks

    data.locks.fcntl, data.locks.SECONDS = None, 0.02
    place = Path(sys.argv[1])
    with data.locks.locked(place, "waiting", wait=True):
        count = int((place / "count").read_text())
        time.sleep(0.05)
        (place / "count").write_text(str(count + 1))
"""


def test_holders_without_the_systems_locks_take_turns(tmp_path):
    """Four at once, who all find what a killed one left."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    write_holder(tmp_path, gone.pid)
    (tmp_path / "count").write_text("0")
    command = [sys.executable, "-c", textwrap.dedent(IN_TURN), str(tmp_path)]
    holders = [subprocess.Popen(command, env=in_checkout(), stderr=subprocess.DEVNULL) for _ in range(4)]
    assert [holder.wait(timeout=60) for holder in holders] == [0] * 4
    assert (tmp_path / "count").read_text() == "4"


def write_holder(folder, process, host=None):
    own = f'{{"host": "{host or data.locks.socket.gethostname()}", "process": {process}}}'
    (folder / "lock.held").write_text(own)


@pytest.mark.parametrize("host", [None, "another-machine"])
def test_a_living_or_distant_holder_is_waited_for_and_named(host, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data.locks, "fcntl", None)
    monkeypatch.setattr(data.locks, "SETTLE", 0)
    monkeypatch.setattr(data.locks.time, "sleep", lambda seconds: seconds and (tmp_path / "lock.held").unlink())
    write_holder(tmp_path, os.getppid(), host)
    with locked(tmp_path, "waiting for another", wait=True):
        pass
    expected = f"waiting for another (process {os.getppid()} on {host or data.locks.socket.gethostname()}"
    assert capsys.readouterr().err.startswith(expected)


def test_a_holders_file_that_says_nothing_is_waited_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data.locks, "fcntl", None)
    monkeypatch.setattr(data.locks, "SETTLE", 0)
    monkeypatch.setattr(data.locks.time, "sleep", lambda seconds: seconds and (tmp_path / "lock.held").unlink())
    (tmp_path / "lock.held").write_text("")
    with locked(tmp_path, "waiting", wait=True):
        pass
    assert f"delete {tmp_path / 'lock.held'}" in capsys.readouterr().err


# ---------------------------------------------------------------- room on disk, and hints


@pytest.mark.parametrize("number", [None, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ENODEV])
def test_without_reserving_room_it_is_written(number, tmp_path, monkeypatch, whole):
    def refused(*_):
        raise OSError(number, os.strerror(number))

    if number is None:
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        monkeypatch.setattr(os, "posix_fallocate", refused)
    monkeypatch.setattr(data.store, "ZEROS", 1000)
    store = prepare(tiny_config(tmp_path))
    assert bytes_of(store) == bytes_of(whole)
    status = (store.folder / "images.npy").stat()
    assert status.st_blocks * 512 >= status.st_size  # none of it is a hole


def test_a_disk_that_fills_up_while_room_is_written_is_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    config = tiny_config(tmp_path)
    with monkeypatch.context() as patch:
        patch.delattr(os, "posix_fallocate")
        patch.setattr(data.store, "flush_to_disk", full)
        with pytest.raises(UserError, match=r"GB free, expected .* GB for a store \(No space left on device\)"):
            prepare(config)
    assert len(prepare(config)) == 60


def test_a_hint_that_is_refused_is_no_matter(monkeypatch, whole):
    def refused(*_):
        raise OSError(errno.ESPIPE, "Illegal seek")

    monkeypatch.setattr(os, "posix_fadvise", refused)
    batches = list(whole.read([np.arange(3), np.arange(5)]))
    np.testing.assert_array_equal(batches[1], whole.images[:5])
