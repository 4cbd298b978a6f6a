"""The end of a command that can't write its output, or that gets Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from core.serialize import pack
from tests.support.snapshots import small_host
from tui import cli
from tui.cli import drops
from tui.cli.parser import make_parser

FULL = "vnet-tui: can't write the output: No space left on device\n"
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "words",
    [("--help",), ("--version",), ("why", "--help"), ("--from", "FILE", "show", "links"),
     ("--from", "FILE", "doctor")],
)  # fmt: skip
def test_a_full_disk_is_an_error_with_a_reason(tmp_path: Path, words: tuple[str, ...]) -> None:
    dump = tmp_path / "host.vnet"
    dump.write_bytes(pack(small_host()))
    given = [str(dump) if word == "FILE" else word for word in words]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "tui.cli", *given], cwd=ROOT, stdout=full, stderr=subprocess.PIPE,
            text=True, check=False, env=os.environ | {"VNET_STATE": str(tmp_path)},
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, FULL)


def test_ctrl_c_while_modules_are_imported_prints_nothing() -> None:
    for code, wanted in (("raise KeyboardInterrupt", -signal.SIGINT), ("raise ValueError(7)", 1)):
        done = subprocess.run(
            [sys.executable, "-c", f"import tui\n{code}"], cwd=ROOT, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == wanted and ("Traceback" in done.stderr) == (wanted == 1), done.stderr


def test_ctrl_c_while_arguments_are_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "make_parser", interrupted)
    assert cli.main(["doctor"]) == 130


@pytest.mark.root
@pytest.mark.needs("bcc")
def test_ctrl_c_prints_the_drops_so_far(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    # Only the command's own wait ends: compiling and locks may sleep before it.
    clock = SimpleNamespace(sleep=interrupted, monotonic=time.monotonic, time=time.time)
    monkeypatch.setattr(drops, "time", clock)
    options = make_parser().parse_args(["drops", "--over", "60", "ct:no-such-container"])
    with pytest.raises(KeyboardInterrupt):
        drops.run(options)
    assert "no packet was dropped that matches the filter" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "most"), [((), 3600), (("--packets",), 60)])
def test_the_help_names_the_longest_time(words: tuple[str, ...], most: int) -> None:
    parser = make_parser()
    assert drops._seconds(parser.parse_args(["drops", *words, "--over", str(most)])) == most
    with pytest.raises(cli.CommandError, match=f"at most {most}"):
        drops._seconds(parser.parse_args(["drops", *words, "--over", str(most + 1)]))


def test_the_help_of_drops_names_both_limits(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        make_parser().parse_args(["drops", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "at most 3600; with --packets 10, at most 60" in shown
