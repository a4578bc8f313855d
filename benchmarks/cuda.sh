#!/usr/bin/env bash
# What a machine with a GPU has to show, in at most nine minutes: tests, speed, and a short run that learns something.
#
#     bash benchmarks/cuda.sh [OUT [STORE]]      → OUT/cuda.json and OUT/cuda.log; OUT: runs/cuda
#
# From a checkout, without installation and without network; wheels of what is missing are taken from .gpu/ where there
# is such a folder (docs/speed.md). STORE: a folder with a `manifest.csv` of images (../shared/data/nih) for the short
# run; without it the shipped radiographs serve. Each part has a time limit of its own; one that fails is recorded, and
# the next goes on. DEVICE=cpu runs the same parts in small, to see that they run.
set -u

OUT=${1:-${OUT:-runs/cuda}}
mkdir -p "$OUT" || exit 2
OUT=$(cd "$OUT" && pwd)
STORE=${2:-}
DEVICE=${DEVICE:-cuda}
cd "$(dirname "$0")/.." || exit 2
export PYTHONPATH="$PWD"
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ -x .venv/bin/python ] && PYTHON=.venv/bin/python
fi

if compgen -G ".gpu/*.whl" > /dev/null; then
    # a Python that the system manages takes no packages otherwise (PEP 668), and an older one of its own, which pip
    # cannot remove, would keep all of them out
    PIP_BREAK_SYSTEM_PACKAGES=1 "$PYTHON" -m pip install --quiet --no-index --no-deps --ignore-installed .gpu/*.whl \
        >> "$OUT/cuda.log" 2>&1
fi
exec "$PYTHON" benchmarks/cuda_parts.py "$OUT" --device "$DEVICE" ${STORE:+--store "$STORE"}
