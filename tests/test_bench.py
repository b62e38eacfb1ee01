"""Tests of the benchmark: that it runs and writes what it says, and that it would notice what it
looks for."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import types
import xml.etree.ElementTree

import pytest
from harness import ROOT, TIMEOUT, heed_interrupts

sys.path.insert(0, str(ROOT / "bench"))

import driver                                   # noqa: E402

FANOUT = [sys.executable, str(ROOT / "bench" / "fanout.py"), "--members", "10", "--workload",
          "window-64"]


def test_bench_tiny_run(tmp_path):
    """A tiny run prints its table, writes all its files, and nobody loses anything."""
    results, page, plot = tmp_path / "results.json", tmp_path / "page.md", tmp_path / "plot.svg"
    done = subprocess.run([*FANOUT, "--seconds", "0.05", "--json", results, "--markdown", page,
                           "--svg", plot],
                          capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr
    rows = json.loads(results.read_text())["rows"]
    assert {"Roger", "bare loop", "asyncio"} <= {row["server"] for row in rows}
    assert all(row["wrong"] == "0/0/0" and row["rate"] > 0 and row["members"] == 10
               for row in rows), rows
    assert "| window 64 " in done.stdout and done.stdout.strip() in page.read_text()
    assert "(plot.svg)" in page.read_text()
    assert xml.etree.ElementTree.parse(plot).getroot().tag.endswith("svg")


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc")
def test_bench_leaves_no_process_behind():
    """Ctrl-C, which all processes get, and SIGTERM, which only it gets, end the server and what
    drives it."""
    both = [subprocess.Popen([*FANOUT, "--seconds", "60"], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True,
                             start_new_session=True, preexec_fn=heed_interrupts) for _ in range(2)]
    for process, number, send, code in zip(both, (signal.SIGINT, signal.SIGTERM),
                                           (os.killpg, os.kill), (130, 143)):
        while "speaking" not in process.stderr.readline():
            assert process.poll() is None
        send(process.pid, number)
        try:
            # All that had its stderr has ended, too.
            process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            pytest.fail(f"after signal {number} there is still {members_of(process.pid)}")
        assert process.returncode == code and not members_of(process.pid)


def members_of(group):
    """The command lines of the processes of a group that are not about to end."""
    found = []
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "stat").read_text().rpartition(")")[2].split()[2] == str(group):
                found.append((folder / "cmdline").read_text())
    return list(filter(None, found))


def frame(speaker, number):
    """A message as the driver hears it."""
    return b'{"type":"chat","id":1,"text":"@%02x%06x%06x@xx"}\n' % (speaker, number, 15)


def checked(*streams):
    """What a driver finds wrong when its members hear these."""
    load = driver.Driver(driver.Spec("json", 0, len(streams), late=0))
    for stream in streams:
        load.members.append(driver.Member(None))
        for one in stream:
            load.carve(load.members[-1], one)
    found = load.result(3)
    return found["lost"], found["doubled"], found["reordered"]


def test_bench_notices_what_is_lost_doubled_or_reordered():
    """A frame that is missing at the end or before it, that comes twice, or too early is
    counted."""
    one, two, three = frame(0, 1), frame(0, 2), frame(0, 3)
    assert checked([one, two, three], [one + two[:9], two[9:] + three]) == (0, 0, 0)
    assert checked([one, two, three], [one, two]) == (1, 0, 0)
    assert checked([one, two, three], [one, three]) == (1, 0, 0)
    assert checked([one, three], [one, three]) == (2, 0, 0)
    assert checked([one, two, three], [one, two, two, three]) == (0, 1, 0)
    assert checked([one, three, two], [one, three, two])[2] == 1


def test_bench_acknowledges_what_it_cannot_place_yet():
    """A frame that a member hears before the first member does is acknowledged at once: else its
    window would fill up."""
    load, sent = driver.Driver(driver.Spec("json", 0, 2)), []
    sock = types.SimpleNamespace(send=lambda data: sent.append(bytes(data)) or len(data))
    lead, other = load.members = [driver.Member(sock), driver.Member(sock)]
    load.carve(lead, b'{"type":"joined","name":"a","id":3}\n')
    load.carve(other, b'{"type":"joined","name":"b","id":4}\n')
    assert sent == [b'{"type":"ack","id":4}\n']
