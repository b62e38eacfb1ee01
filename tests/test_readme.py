"""The README says what is: each command, option and sample of it is compared with reality."""

import pathlib
import re
import subprocess
import sys
import unittest.mock

import pytest

import chat_client
import chat_server
from harness import ROOT, TIMEOUT, run_python, start_server

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
# Options in the README that are another program's.
FOREIGN = {"--add-port"}


def options_of(script):
    """The options that a program's help lists."""
    return set(OPTION.findall(run_python(script, "--help").stdout))


@pytest.fixture(scope="module")
def options():
    """Of every program that the README runs, by its path."""
    scripts = set(re.findall(r"python3? ((?:tests/|bench/)?\w+\.py)", README))
    assert {"chat_server.py", "chat_client.py"} <= scripts
    return {script: options_of(script) for script in scripts}


def commands():
    """The command lines of the README: a program's path and what follows it."""
    shown = [line for _, block in BLOCKS for line in block.split("\n")]
    shown += re.findall(r"`([^`\n]*)`", README)
    found = [re.search(r"python3? ((?:tests/|bench/)?\w+\.py)([^#|<]*)", line) for line in shown]
    return [(each[1], each[2]) for each in found if each]


def test_readme_commands(options):
    """Each program is there, and has the options that it is called with."""
    assert len(commands()) >= 8
    for script, rest in commands():
        assert (ROOT / script).is_file(), script
        assert set(OPTION.findall(rest)) <= options[script] | {"--help"}, (script, rest)


def test_readme_options(options):
    """Each option is one of some program's, and none of the server's is left out."""
    written = set(OPTION.findall(README))
    assert written - FOREIGN <= set().union(*options.values())
    unwritten = options["chat_server.py"] - written - {"--verbose", "--version", "--help"}
    assert not unwritten, "the README does not say these of the server's"


def test_readme_console_commands():
    """The commands of the server's console are those that there are."""
    (section,) = re.findall(r"^The host keeps the room\..*?;\s+what is logged", README,
                            re.MULTILINE | re.DOTALL)
    assert set(re.findall(r"`(/[\w-]+)", section)) == set(chat_server.Console.COMMANDS)


def test_readme_client_commands():
    """The table has no command that the client does not know."""
    (table,) = re.findall(r"^\| `/nick.*?\n\n", README, re.MULTILINE | re.DOTALL)
    words = set(re.findall(r"`(/\w+)", table))
    assert "/nick" in words and words <= set(chat_client.Commands(unittest.mock.Mock()).table)


def tamed(line):
    """A line with its addresses, ports and secret replaced, as they differ."""
    line = re.sub(r"\d+\.\d+\.\d+\.\d+", "ADDRESS", line)
    line = re.sub(r"ADDRESS( |:)\d+", r"ADDRESS\1PORT", line)
    return re.sub(r"python3?", "python3", re.sub(r"#host=.*", "#host=...", line))


def test_readme_first_lines():
    """What the server prints is what the README shows."""
    (shown,) = [block for _, block in BLOCKS if block.startswith("$ python3 chat_server.py")]
    with_its_port = start_server("--bind", "127.0.0.1")
    with_its_port.printed("Host's page: ")
    with_its_port.stop()
    assert [tamed(line) for line in with_its_port.lines] == [
        tamed(line) for line in shown.split("\n")[1:-1]]


def test_readme_bot():
    """The bot of the README runs as it stands there, but for the address."""
    (bot,) = [block for language, block in BLOCKS if language == "python"]
    server = start_server("--bind", "127.0.0.1")
    program = bot.replace('"192.168.1.20", 8087', f'"127.0.0.1", {server.port}')
    assert program != bot
    done = subprocess.run([sys.executable, "-c", program + "\nprint(said.state)"], cwd=ROOT,
                          capture_output=True, text=True, timeout=TIMEOUT)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("there\n") and "text='hello'" in done.stdout
    server.stop()


def test_readme_files():
    """Each file that is named is there."""
    named = set(re.findall(r"`((?:tests/|bench/)?\w+\.(?:py|html))`", README))
    named |= set(re.findall(r"\]\(([\w/.]+)\)", README))
    assert len(named) >= 8
    missing = {name for name in named if not pathlib.Path(ROOT, name).exists()}
    assert not missing


def test_readme_first_screen_has_no_jargon():
    """What is explained later is not used before."""
    first = README.partition("\n## ")[0].lower()
    for word in ("ack", "grace", "p50", "frame", "socket", "sequencer", "session"):
        assert not re.search(rf"\b{word}s?\b", first), word
