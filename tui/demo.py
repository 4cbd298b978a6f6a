"""`vnet-tui demo`: the dashboard on the demo lab, or on a recording of it where the lab can't be built."""

from __future__ import annotations

from pathlib import Path

from core.lab import LabError, LabSettings, check_rights
from core.tools import own_python, with_packages
from tui.command import CommandError, need_a_terminal

RECORDING = Path(__file__).with_name("demo.vnetrec")  # `make demo-recording` writes it

_CHANGES = 15.0  # seconds between the lab's changes, so that the events view has something to tell


def open_dashboard(ascii_only: bool = False, write: bool = False, traffic: bool = True) -> int:
    """Open the dashboard on the lab, or else on the recording; returns the exit code. Raises CommandError."""
    flags = ["--ascii"] * ascii_only + ["--write"] * write

    try:
        check_rights()
        need_a_terminal()  # before the lab is built for nothing
        return _run_in_lab(["vnet-tui", *flags], traffic)
    except LabError as error:
        return _replay(error, ascii_only)


def run_command(words: list[str], traffic: bool) -> int:
    """Run a command in the lab, `vnet-tui` being this program; returns its exit code. Raises CommandError
    where the lab can't be built."""
    try:
        return _run_in_lab(words, traffic)
    except LabError as error:
        raise CommandError(str(error)) from None


def _run_in_lab(words: list[str], traffic: bool) -> int:
    from core.lab import lab

    settings = LabSettings(traffic=traffic, changes=_CHANGES if traffic else 0.0)
    if words[0] == "vnet-tui":
        return lab.main(own_python("tui.cli", *words[1:]), settings, with_packages())
    return lab.main(words, settings)


def _replay(error: LabError, ascii_only: bool) -> int:
    """Replay the recording over and over, and say why it is not the lab itself."""
    from tui.app import run
    from tui.record import opened

    try:
        need_a_terminal()
        source = opened(RECORDING)
    except CommandError as second:
        raise CommandError(f"{error}; and can't show its recording: {second}") from None
    source.present("Recorded demo", _sentence(error))
    return run(source, ascii_only)


def _sentence(error: LabError) -> str:
    """Why the lab itself is not shown, as a sentence for the screen."""
    return f"Can't build the lab: {error.reason}." + (f" Try: {error.try_}" if error.try_ else "")
