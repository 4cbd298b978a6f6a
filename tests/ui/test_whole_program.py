"""The whole program in a real terminal, on the demo lab."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from core.lab import Lab, LabSettings
from tests.support.terminal import Terminal

pytestmark = pytest.mark.root

_PROGRAM = [sys.executable, "-m", "tui.cli"]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(LabSettings(traffic=True)) as made:
        yield made


def inside(lab: Lab, *words: str) -> list[str]:
    """Return the command line that runs `words` inside the lab."""
    return ["nsenter", "-t", str(lab.pid), "-n", "-m", "-p", "-u", "-i", f"--wdns={os.getcwd()}", *words]


@pytest.fixture
def terminal(lab: Lab) -> Iterator[Terminal]:
    with Terminal(inside(lab, *_PROGRAM), VNET_ASCII="") as made:
        made.wait_for("br-shop")
        yield made


def test_each_view_opens_by_its_number(terminal: Terminal) -> None:
    for key, text in (
        ("2", "br-data"), ("3", "v-web1"), ("4", "gateway"), ("5", "joined"), ("6", "masquerade"),
        ("7", "ESTABLISHED"), ("8", "kernel"), ("1", "uplink"),
    ):  # fmt: skip
        seen = len(terminal.output)
        terminal.press(key)
        terminal.wait_for(text, since=seen)


def test_a_change_in_a_container_appears_automatically(terminal: Terminal, lab: Lab) -> None:
    terminal.press(":links\r")
    terminal.wait_for("v-blog")
    seen = len(terminal.output)
    subprocess.run(
        inside(lab, "ip", "-n", "blog", "link", "add", "abracadabra", "type", "bridge"), check=True
    )
    terminal.wait_for("abracadabra", since=seen)
    subprocess.run(inside(lab, "ip", "-n", "blog", "link", "del", "abracadabra"), check=True)
    terminal.press("9")
    terminal.wait_for("abracadabra", since=len(terminal.output))


@pytest.mark.parametrize("size", [(40, 10), (80, 24), (200, 60)])
def test_every_view_can_be_resized(terminal: Terminal, size: tuple[int, int]) -> None:
    for key in "123456789":
        terminal.press(key)
        terminal.resize(*size)
        terminal.settle(0.1, 1)
        terminal.resize(130, 40)
        terminal.settle(0.1, 1)
    terminal.press("1")
    terminal.wait_for("br-shop", since=len(terminal.output) - 1)
    assert b"Traceback" not in terminal.output


@pytest.mark.parametrize("keys", ["q", "\x03"])
def test_the_terminal_is_restored_at_the_end(terminal: Terminal, keys: str) -> None:
    terminal.press(keys)
    assert terminal.read_to_the_end() == 0
    ending = terminal.output[-600:]
    assert b"\x1b[?1049l" in ending  # back from the alternate screen
    assert b"\x1b[?25h" in ending  # the cursor shows again
    assert b"\x1b[?1000l" in ending  # the mouse is released
    assert b"Traceback" not in terminal.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_restores_the_terminal_and_sets_the_exit_code(lab: Lab, number: int) -> None:
    with Terminal(inside(lab, *_PROGRAM)) as terminal:
        terminal.wait_for("br-shop")
        process = terminal.program()
        process.send_signal(number)
        assert terminal.read_to_the_end() == 128 + number
        assert b"\x1b[?1049l" in terminal.output[-600:]


def test_random_keys_do_no_harm(terminal: Terminal) -> None:
    terminal.press("jjjjkkGg3\r\r\x1b\x1b-5\r+\t\tssS/web\r\x1b7pp rr!q\x1b?\x1b:veth\r1")
    terminal.settle(0.5)
    for _ in range(3):  # close what is open, one Esc at a time
        terminal.press("\x1b")
        terminal.settle(0.3)
    seen = len(terminal.output)
    terminal.press("1")
    terminal.settle(0.3)
    terminal.press("2")
    terminal.wait_for("br-data", since=seen)
    assert b"Traceback" not in terminal.output


@pytest.mark.parametrize("noise", [b"\xf6", b"\xff\xfe\x80", b"\xc3", b"/\xe4\r", bytes(range(128, 256))])
def test_invalid_utf_8_does_no_harm(terminal: Terminal, noise: bytes) -> None:
    terminal.press(noise)
    terminal.settle(0.2, 2)
    terminal.press(b"\x1b")
    terminal.settle(0.2, 2)
    seen = len(terminal.output)
    terminal.press("2")
    terminal.wait_for("br-data", since=seen)
    assert b"Traceback" not in terminal.output


def test_an_unchanged_host_costs_little_cpu_time() -> None:
    """Compare with the cost of starting, so that the machine's speed does not matter."""
    with Lab(LabSettings(traffic=False)) as quiet, Terminal(inside(quiet, *_PROGRAM)) as terminal:
        terminal.wait_for("br-shop")
        terminal.settle(1.5, 8)
        process = terminal.program()
        starting = sum(process.cpu_times()[:2])
        end = time.monotonic() + 8
        while time.monotonic() < end:
            terminal.read(0.5)
        idle = sum(psutil.Process(process.pid).cpu_times()[:2]) - starting
    assert idle < starting / 2


def test_a_dumb_terminal_gets_an_error() -> None:
    with Terminal([sys.executable, "-m", "tui.cli"], TERM="dumb") as dumb:
        assert dumb.read_to_the_end() == 1
        output = dumb.output.decode()
        assert "TERM=dumb" in output and "vnet-tui show" in output and output.count("\n") == 1
