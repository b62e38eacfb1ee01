"""Runs all the tests, several files at a time: two more than the machine has cores, as they wait as
long as they compute.

    python tests/run.py [--jobs N] [options of pytest, such as -k WORDS]

Each file is a pytest of its own. What it prints is shown when it has failed, and else its last
line. The exit code is 0 only when every file has passed. `pytest` alone runs them one by one.
"""

import argparse
import concurrent.futures
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
# These take longest, so they begin first: nobody waits for one of them alone at the end.
LONG = ["test_simulation", "test_client", "test_other_systems", "test_storms", "test_files_client",
        "test_browser", "test_page_faults", "test_tls", "test_page_host", "test_first_mile",
        "test_history", "test_page_files", "test_page_keys", "test_window", "test_history_file",
        "test_window_end", "test_terminal_reopen"]
NOTHING_CHOSEN = 5


def files():
    """All files with tests, those that take longest first."""
    found = sorted([HERE.parent / "test_chatproto.py", *HERE.glob("test_*.py")])
    return sorted(found, key=lambda file: LONG.index(file.stem) if file.stem in LONG else len(LONG))


def run(file, options, environment):
    """Run a file's tests; return its exit code and all that it printed."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, str(file)]
    done = subprocess.run(command, cwd=HERE.parent, env=environment, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          encoding="utf-8", errors="replace")
    return done.returncode, done.stdout


def run_all(jobs, options, environment):
    """Run every file and print what came of it; return the counts of outcomes, and those files
    that failed."""
    counts, failed = {}, []
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        began = {pool.submit(run, file, options, environment): file.stem for file in files()}
        for end in concurrent.futures.as_completed(began):
            code, printed = end.result()
            last = printed.strip().rpartition("\n")[2]
            good = code in (0, NOTHING_CHOSEN)
            print(f"{began[end]}: {last}" if good else printed, flush=True)
            if not good:
                failed.append(began[end])
            for count, outcome in re.findall(r"(\d+) ([a-z]+)", last.rpartition(" in ")[0]):
                counts[outcome] = counts.get(outcome, 0) + int(count)
    return counts, failed


def main():
    parser = argparse.ArgumentParser(description="Run all the tests, several files at a time.")
    parser.add_argument("--jobs", type=int, default=2 + (os.cpu_count() or 1), metavar="N",
                        help="how many files at a time (default %(default)s)")
    arguments, options = parser.parse_known_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="roger-compiled-") as compiled:
        # What one of them has compiled the others find there, the library and pytest as well: that
        # is done also where the user keeps Python from writing it, as it takes a third of the time.
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": compiled, "PYTHONDONTWRITEBYTECODE": ""}
        counts, failed = run_all(max(1, arguments.jobs), options, environment)
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    print(f"{outcomes} in {time.monotonic() - began:.0f} s")
    if failed:
        print("failed: " + ", ".join(failed))
    return 1 if failed or not counts.get("passed") else 0


if __name__ == "__main__":
    sys.exit(main())
