"""Python scripts of users that call our functions, written without much thought."""

import subprocess
import sys
import textwrap

from checkout import in_checkout
from tiny_world import tiny_config, write_config


def run_script(folder, text: str) -> subprocess.CompletedProcess[str]:
    script = folder / "script.py"
    script.write_text(textwrap.dedent(text))
    return subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=100, env=in_checkout())


def test_a_script_without_a_guard_prepares_in_many_processes_and_runs_once(tmp_path):
    """It calls `prepare` on import, and processes started by `spawn` import their parent's script."""
    settings = tiny_config(tmp_path, data__workers=2).data.model_dump(mode="json")
    yaml = write_config(tmp_path / "my.yaml", {f"data.{name}": value for name, value in settings.items() if value})
    script = f"""
        import data.preparation
        from data.config import load_config

        print("begun", __file__)
        data.preparation.CHUNK = 3  # so that two processes have something to do
        store = data.preparation.prepare(load_config({str(yaml)!r}))
        print(len(store), "images", __file__)
    """
    done = run_script(tmp_path, script)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout == f"begun {tmp_path}/script.py\n60 images {tmp_path}/script.py\n"
