"""The terminal is restored after the demo lab is killed while the dashboard runs."""

from __future__ import annotations

import os
import signal
import sys
import time

import psutil
import pytest

from tests.support.terminal import Terminal
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.root

# The shell keeps running: a terminal whose session has ended accepts no more output.
_SHELL = ["sh", "-c", '"$@"; echo "left with $?"; exec cat', "sh"]


@pytest.mark.parametrize("hosts", ["1", "2"])
def test_killing_the_demo_restores_the_terminal(hosts: str) -> None:
    words = [sys.executable, "-m", "tui.cli", "demo", "--no-traffic", "--hosts", hosts]
    with Terminal([*_SHELL, *words]) as terminal:
        terminal.wait_for("br-shop")
        (launcher,) = psutil.Process(terminal.pid).children()
        inside = launcher.children(recursive=True)
        os.kill(launcher.pid, signal.SIGKILL)
        terminal.wait_for("left with 137")
        end = time.monotonic() + PATIENCE
        while not all(mode in terminal.output for mode in (b"\x1b[?1049l", b"\x1b[?25h", b"\x1b[?1000l")):
            assert time.monotonic() < end, terminal.output[-600:]
            terminal.read(0.5)
        _, alive = psutil.wait_procs(inside, timeout=PATIENCE)
        assert not alive
        assert b"Traceback" not in terminal.output
