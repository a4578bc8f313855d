"""The batch scripts of docs/cluster.md do what they promise, where `srun` and `scontrol` are a few lines of shell."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from checkout import ROOT
from tiny_world import succeed

from data.signals import TRY_AGAIN
from mae.cli import pretrain

PAGE = (ROOT / "docs/cluster.md").read_text(encoding="utf-8")
SCRIPTS = [block for block in re.findall(r"```bash\n(.*?)```", PAGE, re.S) if block.startswith("#!")]
pytestmark = pytest.mark.skipif(not shutil.which("bash"), reason="bash is not here")
NODES = "n1\nn2"

# stand-ins for Slurm's programs: srun starts each task with its number, and fails as its tasks do
SRUN = """#!/bin/bash
for SLURM_PROCID in $(seq 0 $((SLURM_NTASKS - 1))); do
    export SLURM_PROCID SLURM_LOCALID=$((SLURM_PROCID % 2))
    "$@" || code=$?
done
exit ${code:-0}
"""
SCONTROL = f"""#!/bin/bash
[ "$1" = show ] && printf '{NODES}' || echo "$@" >> "$LOG.scontrol"
"""
TRAINING = """#!/bin/bash
echo "rank=$RANK local=$LOCAL_RANK size=$WORLD_SIZE at=$MASTER_ADDR:$MASTER_PORT cores=$SRUN_CPUS_PER_TASK" \\
    "data=$MIMIC_CXR_ROOT words=$*" >> "$LOG"
exit $CODE
"""


def submitted(script: str, root: Path, code: int, tasks: int) -> tuple[int, list[str], str]:
    """The script's exit code, a line for each training that it started, and what it asked of scontrol."""
    programs = root / "mae-cxr/.venv/bin"
    programs.mkdir(parents=True)
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "mae-pretrain": TRAINING}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    (programs / "activate").write_text(f"PATH={programs}:$PATH\n")

    settings = {"SLURM_NTASKS": str(tasks), "SLURM_CPUS_PER_TASK": "8", "SLURM_JOB_ID": "4711"}
    settings |= {"SLURM_JOB_NODELIST": "n[1-2]", "LOG": str(root / "log"), "CODE": str(code)}
    (root / "job.sh").write_text(script.replace("/path/to", str(root)))
    ended = subprocess.run(["bash", root / "job.sh"], env=os.environ | settings, capture_output=True, text=True)
    assert not ended.stderr
    asked = root / "log.scontrol"
    return ended.returncode, (root / "log").read_text().splitlines(), asked.read_text() if asked.exists() else ""


@pytest.mark.parametrize("script", SCRIPTS)
def test_sbatch_reads_every_option_of_a_script_that_is_shell(script):
    lines = script.splitlines()
    options = [line for line in lines if line.startswith("#SBATCH")]
    assert options and lines[1 : 1 + len(options)] == options  # sbatch reads none after the first command
    assert {"--requeue", "--signal=USR1@180"} <= {line.split()[1] for line in options}
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize("code", [0, 1, 2, TRY_AGAIN])
def test_a_job_of_one_gpu_is_put_back_only_where_time_was_up(code, tmp_path):
    ended, [started], asked = submitted(SCRIPTS[0], tmp_path, code, tasks=1)
    assert ended == code
    assert asked == ("requeue 4711\n" if code == TRY_AGAIN else "")
    assert f"rank= local= size= at=: cores=8 data={tmp_path}/mimic-cxr-jpg/2.1.0" in started


@pytest.mark.parametrize("code", [0, TRY_AGAIN])
def test_the_ranks_of_several_gpus_know_each_other(code, tmp_path):
    ended, started, asked = submitted(SCRIPTS[1], tmp_path, code, tasks=3)
    assert ended == code
    assert asked == ("requeue 4711\n" if code == TRY_AGAIN else "")
    beginnings = [line.split(" data=")[0] for line in started]
    assert beginnings == [f"rank={n} local={n % 2} size=3 at=n1:29500 cores=8" for n in range(3)]


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_training_of_a_script_can_be_given(script, monkeypatch):
    monkeypatch.setenv("MIMIC_CXR_ROOT", "somewhere")
    [words] = re.findall(r"mae-pretrain (--config [^'\n]*)", script)
    assert "mask_ratio" in succeed(pretrain, *shlex.split(words), "--print-config")
