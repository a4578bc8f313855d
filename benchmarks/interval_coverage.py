"""How often intervals hold the truth, and tests reject what is true: a table, and JSON with --json FILE.

    PYTHONPATH=tests/worlds python benchmarks/interval_coverage.py --json docs/results/coverage.json

Patients have one to four images, with intraclass correlation .5; half of the images are abnormal. The simulator is that
of the tests (tests/worlds/simulated_reads.py); its generators start at fixed seeds. In percent, at level .95.
"""

import argparse
from pathlib import Path

from results import report
from simulated_reads import AREAS, ICC, SIZES, cell, line_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()

    cells = []
    for area in AREAS:
        for n in SIZES:
            cells.append(cell(area, n, arguments.trials))
            print(line_of(cells[-1]), flush=True)
    report(arguments.json, arguments, {"icc": ICC, "cells": cells})


if __name__ == "__main__":
    main()
