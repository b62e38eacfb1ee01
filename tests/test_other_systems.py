"""Roger on sockets like those of Windows and macOS: no send() that does not wait on a blocking
socket, no poll(), a shutdown() that wakes nobody. A core part of the suite is run again in a Python
that has them (harness.sockets_of), servers and clients: what a socket is asked, delivery, resumes
after cuts and silence, close() and server_close(), signals.

ROGER_LONG=1 has the storm of a hostile network go through it as well.
"""

import os
import subprocess
import sys

import pytest

from harness import ROOT, TIMEOUT, sockets_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="turns Linux into other systems")

CORE = ["tests/test_socket.py", "tests/test_chat_client.py",
        "tests/test_delivery.py::test_server_killed_and_restarted_clients_go_on",
        "tests/test_delivery.py::test_receipts_reach_all",
        "tests/test_storms.py::test_server_close_ends_every_thread",
        "tests/test_storms.py::test_signal_tells_everybody_and_frees_the_port",
        "tests/test_storms.py::test_member_that_stops_reading_is_dropped_and_resumes"]
if os.environ.get("ROGER_LONG"):
    CORE.append("tests/test_delivery.py::test_nothing_lost_or_twice_over_a_hostile_network")


@pytest.fixture(scope="module")
def runs():
    """pytest on each system, all at once: most of it is waiting."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *CORE]
    runs = {system: subprocess.Popen(command, cwd=ROOT, env=sockets_of(system), text=True,
                                     stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                     stderr=subprocess.STDOUT) for system in ("windows", "macos")}
    yield runs
    for run in runs.values():
        run.kill()
        run.communicate()


@pytest.mark.parametrize("system", ["windows", "macos"])
def test_core_on_the_sockets_of(runs, system):
    """Everything that holds on Linux holds there."""
    output, _ = runs[system].communicate(timeout=4 * TIMEOUT)
    assert runs[system].returncode == 0, output
    assert " passed" in output and "skipped" not in output.splitlines()[-1]
