"""Lets the tests import the modules of the repository's root, and harness from here, wherever pytest is started; and keeps
for the hundreds of processes that they start what Python has compiled."""

import atexit
import os
import pathlib
import shutil
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
for folder in (HERE, HERE.parent):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

# In a folder of this run: nothing is left in the clone, and it is also done where the user keeps Python from writing it.
compiled = tempfile.mkdtemp(prefix="roger-compiled-")
atexit.register(shutil.rmtree, compiled, ignore_errors=True)
os.environ["PYTHONPYCACHEPREFIX"] = compiled
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
