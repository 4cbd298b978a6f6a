"""Run a program on the terminal while the dashboard is suspended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from core.tools import python_command, python_environment

_SOON = 3.0  # seconds; a command that fails so soon has printed an error


def open_shell(target: str) -> None:
    """Run `vnet-tui shell TARGET`; an error stays on the terminal until Enter."""
    began = time.monotonic()
    if os.getpgrp() == 0:  # outside this PID namespace: a shell couldn't give the terminal back to it
        os.setpgid(0, 0)
    take_terminal()
    with _interrupts_ignored():
        command = python_command("tui.cli", "shell", target)
        code = subprocess.run(command, env=python_environment(), check=False).returncode
        take_terminal()
        if code and time.monotonic() - began < _SOON:
            _wait_for_enter()


def take_terminal() -> None:
    """Make this process group the foreground one of the terminal.

    A shell that was killed hasn't done so. A background process that does so gets SIGTTOU (tcsetpgrp(3))."""
    before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    try:
        with suppress(OSError):
            os.tcsetpgrp(sys.stdin.fileno(), os.getpgrp())
    finally:
        signal.signal(signal.SIGTTOU, before)


def _wait_for_enter() -> None:
    try:
        input("vnet-tui: press Enter to return to the dashboard ")
    except EOFError:
        return


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Leave Ctrl-C and Ctrl-\\ to the program: it gets them as well.

    A handler, unlike an ignored signal, isn't inherited."""
    numbers = (signal.SIGINT, signal.SIGQUIT)
    before = [signal.signal(number, lambda *_: None) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
