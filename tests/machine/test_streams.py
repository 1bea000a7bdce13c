"""Ends and streams: closed ones, pipes that nobody reads, terminals that are gone, disks of logs that are full."""

import os
import subprocess
import sys
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
from survival import status, words

from flowimg.cli import main

ROOT = Path(__file__).parents[2]
BOARD = "configs/checkerboard.yaml"


@pytest.mark.parametrize("closed", [">&-", "2>&- <&-"])
def test_a_verb_that_starts_without_streams_ends_with_0(closed, tmp_path):
    command = f'"$0" -m flowimg config {BOARD} --run "$1" {closed}'
    done = subprocess.run(["sh", "-c", command, sys.executable, tmp_path / "run"], cwd=ROOT, capture_output=True)
    assert done.returncode == 0 and done.stderr == b""
    assert (b"run: " in done.stdout) == (">&-" not in closed.split())


def test_a_mistake_has_its_exit_status_without_streams():
    command = f'"$0" -m flowimg config {BOARD} --seed x <&- >&- 2>&-'
    done = subprocess.run(["sh", "-c", command, sys.executable], cwd=ROOT, capture_output=True)
    assert done.returncode == 2 and b"Traceback" not in done.stderr


def test_no_file_gets_the_number_of_a_stream(tmp_path):
    """Else what a library writes to file 2 lands in a checkpoint."""
    look = (
        "import os, subprocess, sys\nfrom flowimg.machine.streams import open_streams\nopen_streams()\n"
        f"file = os.open({str(tmp_path / 'file')!r}, os.O_WRONLY | os.O_CREAT)\nprint('words')\nos.write(2, b'noise')\n"
        "child = subprocess.run([sys.executable, '-c', 'import os; [os.fstat(n) for n in range(3)]'])\n"
        "sys.exit(10 * file + child.returncode)"
    )
    done = subprocess.run(["sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, look], cwd=ROOT)
    assert done.returncode >= 30 and done.returncode % 10 == 0
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.parametrize("args", [["config", BOARD], ["config", BOARD, "--json"], ["--help"], ["train", "--help"]])
def test_streams_that_are_none_are_no_fault(args, monkeypatch):
    """As Python sets them under pythonw."""
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    with suppress(SystemExit) if "train" in args else nullcontext():
        main(args)


def broken(why):
    """A stream that fails at its first line, or when it is flushed."""
    if why == "reader gone":
        reader, file = os.pipe()
        os.close(reader)
    elif why == "terminal closed":
        terminal, file = os.openpty()
        os.close(terminal)
    else:
        file = os.open(*{"disk full": ("/dev/full", os.O_WRONLY), "not for writing": (os.devnull, os.O_RDONLY)}[why])
    return open(file, "w", buffering=1)


WHYS = ["reader gone", "terminal closed", "disk full", "not for writing"]
needs_linux = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full and terminals of Linux")


@needs_linux
@pytest.mark.parametrize("name", ["stdout", "stderr"])
@pytest.mark.parametrize("why", WHYS)
def test_a_run_ends_well_when_nobody_can_read_what_it_says(name, why, tmp_path, monkeypatch, sketches):
    """`flowimg train ... | head -3`, a terminal that is closed, a log on a full disk."""
    with broken(why) as stream:
        monkeypatch.setattr(sys, name, stream)
        # a bar is drawn where a terminal is
        main([str(word) for word in words(tmp_path / "run", "--train.steps", "2")])
    told = status(tmp_path / "run")
    assert (told["state"], told["exit"], told["saved"]) == ("done", 0, 2)


@needs_linux
@pytest.mark.parametrize(("why", "code"), [("reader gone", 141), ("disk full", 4), ("not for writing", 4)])
def test_a_verb_whose_words_are_its_result_says_that_they_are_lost(why, code, monkeypatch, capsys):
    with broken(why) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with pytest.raises(SystemExit) as stop:
            main(["config", BOARD])
    assert stop.value.code == code
    assert ("flowimg: [Errno " in capsys.readouterr().err) == (code == 4)


@needs_linux
@pytest.mark.parametrize("why", WHYS)
def test_a_mistake_on_a_broken_stream_has_its_exit_status(why, monkeypatch):
    with broken(why) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with pytest.raises(SystemExit) as stop:
            main(["config", BOARD, "--seed", "x"])
    assert stop.value.code == 2
