"""Tests compute with one thread each: sizes are tiny, and waiting for a second thread is all it would cost."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; child processes inherit it

pytest_plugins = ["tiny_world", "stage_runs"]  # fixtures that tests of several folders share
