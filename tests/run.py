"""Runs all the tests, several files at a time: three more than the machine has cores, as they wait
as long as they compute.

    python tests/run.py [--jobs N] [options of pytest, such as -k WORDS]

Each file that takes long is a pytest of its own, and so are a few of the others together. What it
prints is shown when it has failed, and else its last line. The exit code is 0 only when every file
has passed. `pytest` alone runs them one by one.
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
# How many groups the others make.
TOGETHER = 10
NOTHING_CHOSEN = 5


def groups():
    """Lists of files: each of those that take long alone, the longest first, and then all others, a
    few together, as to start a pytest for each takes long as well."""
    files = {file.stem: file
             for file in sorted([HERE.parent / "test_chatproto.py", *HERE.glob("test_*.py")])}
    alone = [[files.pop(name)] for name in LONG]
    others = list(files.values())
    return alone + [others[first::TOGETHER] for first in range(TOGETHER)]


def run(files, options, environment):
    """Run the tests of `files`; return the exit code and all that was printed."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options,
               *map(str, files)]
    done = subprocess.run(command, cwd=HERE.parent, env=environment, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          encoding="utf-8", errors="replace")
    return done.returncode, done.stdout


def run_all(jobs, options, environment):
    """Run every group and print what came of it; return the counts of outcomes, and those groups
    that failed."""
    counts, failed = {}, []
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        began = {pool.submit(run, group, options, environment):
                 " ".join(file.stem for file in group) for group in groups()}
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
    parser.add_argument("--jobs", type=int, default=3 + (os.cpu_count() or 1), metavar="N",
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
