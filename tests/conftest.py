"""Tests compute with one thread each: sizes are tiny, and waiting for a second thread is all it would cost."""

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; child processes inherit it

os.environ["XDG_DATA_HOME"] = tempfile.mkdtemp(prefix="mae-tests-")  # secrets of tests are none of this machine's
atexit.register(shutil.rmtree, os.environ["XDG_DATA_HOME"], ignore_errors=True)

pytest_plugins = ["tiny_world", "stage_runs"]  # fixtures that tests of several folders share
