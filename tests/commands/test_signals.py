"""A signal at any moment of any command: exit code 75, one line, nothing left behind, and the same command goes on."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest
from checkout import in_checkout
from real_processes import ended, listens, members, send, start, start_forked, when
from tiny_world import SETTINGS, places, write_config, write_table

from data.signals import SIGNALS, TRY_AGAIN, Stopped, noting_signals, stopping_on_signals

# ---------------------------------------------------------------- in this process


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_a_command_and_handlers_are_put_back(number):
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as caught, stopping_on_signals(for_good=False):
        os.kill(os.getpid(), number)
    assert caught.value.code == TRY_AGAIN == 75
    assert f"stopped by {number.name}; " in caught.value.line
    assert signal.getsignal(number) == before


def test_more_signals_do_not_disturb_the_way_out():
    done = []
    with pytest.raises(Stopped), stopping_on_signals(for_good=False):
        try:
            os.kill(os.getpid(), signal.SIGUSR1)
        finally:
            for number in SIGNALS:
                os.kill(os.getpid(), number)
            done.append("put away")
    assert done


@pytest.mark.parametrize("other", [AttributeError, KeyboardInterrupt, SystemExit])
def test_a_library_that_fails_on_the_way_out_does_not_hide_the_signal(other):
    """As argparse does: interrupted while parsing, it looks in its `finally` for what it has not set yet."""
    with pytest.raises(Stopped, match="75"), stopping_on_signals(for_good=False):
        try:
            os.kill(os.getpid(), signal.SIGUSR1)
        finally:
            raise other("half-way")


def test_a_training_notes_signals_however_often_they_come_and_the_second_ctrl_c_acts():
    with pytest.raises(Stopped), stopping_on_signals(for_good=False), noting_signals() as received:
        for _ in range(2):  # schedulers signal every process, and scripts pass signals on
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert received == ["SIGUSR1", "SIGTERM"] * 2 + ["SIGINT"]
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second Ctrl-C was swallowed")


def test_a_signal_after_the_last_step_ends_the_rest_of_the_command():
    with pytest.raises(Stopped, match="75"), stopping_on_signals(for_good=False):
        with noting_signals():
            os.kill(os.getpid(), signal.SIGUSR1)
        pytest.fail("the next training would begin")


def test_nohup_keeps_its_promise():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping_on_signals(for_good=False):
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


# ---------------------------------------------------------------- real processes


@pytest.fixture
def config(tmp_path):
    """A phantom that takes seconds to draw, and to decode."""
    settings = SETTINGS | places(tmp_path, "run") | {"data.source": "phantom", "data.phantom.images": 600}
    return write_config(tmp_path / "config.yaml", settings | {"data.workers": 2})


@pytest.mark.parametrize(
    ("number", "to_all"), [(signal.SIGTERM, False), (signal.SIGUSR1, True), (signal.SIGTERM, True)], ids=str
)
def test_while_drawing(number, to_all, config, tmp_path):
    process = start_forked("prepare", "--config", config)
    when(process, lambda: next(tmp_path.glob(".images.*.partial/**/*.jpg"), None))
    send(process, number, to_all)
    code, errors = ended(process)
    assert (code, errors.splitlines()[-1]) == (
        TRY_AGAIN,
        f"stopped by {number.name}; what is finished is kept, the same command goes on from it",
    ), errors
    assert "Traceback" not in errors
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_while_decoding(number, tmp_path):
    write_table(tmp_path / "images", 1500)
    config = write_config(tmp_path / "config.yaml", SETTINGS | places(tmp_path, "run") | {"data.workers": 2})
    process = start_forked("prepare", "--config", config)
    when(process, lambda: list(tmp_path.glob("stores/*/state.npy")) and len(members(process)) > 2)
    send(process, number, to_all=True)
    code, errors = ended(process)
    assert code == TRY_AGAIN, errors
    assert "Traceback" not in errors
    assert not list(tmp_path.glob("stores/*/store.json"))


@pytest.mark.parametrize("command", ["prepare", "pretrain", "finetune", "compare", "evaluate", "export"])
def test_in_the_first_moment(command, tmp_path):
    process = start(command, "--config", tmp_path / "missing.yaml")
    when(process, lambda: listens(process))
    process.send_signal(signal.SIGUSR1)
    code, errors = ended(process)
    assert (code, errors.count("\n")) in ((TRY_AGAIN, 1), (2, 1)), errors  # the latter: the mistake was reported before


def program(text: str) -> subprocess.Popen:
    code = textwrap.dedent(text)
    return subprocess.Popen([sys.executable, "-c", code], env=in_checkout(), stderr=subprocess.PIPE, text=True)


def test_where_python_ignores_what_is_raised():
    process = program("""
        import os
        import signal
        import time

        import data.signals
        from data.cli import run_command

        data.signals.GRACE = 0.5

        class Deleted:
            def __del__(self):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.1)

        def work(_):
            Deleted()
            time.sleep(60)

        run_command(work, None)
    """)
    code, errors = ended(process)
    assert (code, errors.splitlines()) == (
        TRY_AGAIN,
        ["stopped by SIGTERM; what is finished is kept, the same command goes on from it"],
    )


def test_deep_inside_a_library_that_hears_no_signal():
    process = program("""
        import hashlib
        import data.signals
        from data.cli import run_command

        data.signals.GRACE = 0.2
        run_command(lambda _: hashlib.pbkdf2_hmac("sha256", b"deaf for", b"minutes", 10**9), None)
    """)
    when(process, lambda: listens(process))
    process.send_signal(signal.SIGTERM)
    code, errors = ended(process)
    assert (code, errors.count("\n")) == (TRY_AGAIN, 1), errors


def test_what_is_finished_is_not_undone():
    process = program("""
        import atexit, time
        from data.cli import run_command

        atexit.register(lambda: time.sleep(0.5))
        run_command(lambda _: time.sleep(0.3), None)
    """)
    when(process, lambda: listens(process))
    while process.poll() is None:
        if not listens(process):  # it is on its way out
            process.send_signal(signal.SIGTERM)
    assert ended(process) == (0, "")


@pytest.mark.parametrize("ranks", ["2", "1"])
def test_a_rank_does_not_wait_for_what_the_interpreter_waits_for_at_its_very_end(ranks):
    """Gloo's threads may never end. A process alone has none, and ends like any other."""
    text = textwrap.dedent("""
        import atexit, sys
        from data.cli import run_command
        from data.errors import UserError

        class Held:
            def __del__(self):
                print("taken apart", file=sys.stderr)

        held = Held()

        def fail(_):
            raise UserError("place: found nothing, expected something")

        atexit.register(lambda: print("at exit", file=sys.stderr))
        print("so far")
        run_command(fail, None)
    """)
    done = subprocess.run(
        [sys.executable, "-c", text], env=in_checkout(WORLD_SIZE=ranks), capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, "so far\n")
    lines = ["error: place: found nothing, expected something", "at exit", "taken apart"]
    assert done.stderr.splitlines() == (lines[:2] if ranks == "2" else lines)
