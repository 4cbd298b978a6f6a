"""Check `vnet-tui demo` as root: it opens the lab, or a recording with the reason."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from tests.support.machine import PROGRAM
from tests.support.terminal import Terminal

pytestmark = pytest.mark.root

ROOT = Path(__file__).parents[2]
LACKING = ["capsh", "--drop=cap_sys_admin,cap_net_admin,cap_bpf,cap_sys_ptrace", "--", "-c"]
# Root in a user namespace has every capability there, but can't create a pid namespace.
REFUSED = [
    "unshare", "--user", "--map-root-user", "sh", "-c",
    'echo 0 > /proc/sys/user/max_pid_namespaces && exec "$@"', "sh",
]  # fmt: skip
# A machine with only a loopback link.
LONELY = [
    "unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c",
    'umount -a -t nsfs 2>/dev/null; mount -t tmpfs none /run && "$@"; echo "left with $?"', "sh",
]  # fmt: skip


def test_root_without_capabilities_sees_the_recording_and_why() -> None:
    with Terminal([*LACKING, shlex.join([*PROGRAM, "demo"])]) as terminal:
        terminal.wait_for("Recorded demo")
        terminal.wait_for("Can't build the lab: needs CAP_NET_ADMIN and CAP_SYS_ADMIN. Try: docker run")
        terminal.wait_for("br-shop")
        terminal.press("q")
        assert terminal.read_to_the_end() == 0


def test_errors_of_the_kernel_are_shown() -> None:
    with Terminal([*REFUSED, *PROGRAM, "demo"]) as terminal:
        terminal.wait_for("Can't build the lab: the kernel made no new pid namespace (")
        terminal.wait_for("br-shop")
        terminal.press("q")
        assert terminal.read_to_the_end() == 0


@pytest.mark.parametrize("words", [["true"], ["vnet-tui", "show"], ["vnet-tui", "--write", "show"]])
def test_a_command_cannot_run_in_a_recording(words: list[str]) -> None:
    done = subprocess.run(
        [*LACKING, shlex.join([*PROGRAM, "demo", *words])],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    why = "can't build the demo lab: needs CAP_NET_ADMIN and CAP_SYS_ADMIN. Try: docker run --privileged"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"vnet-tui: {why}\n")


def test_without_a_terminal_both_reasons_are_shown() -> None:
    done = subprocess.run(
        [*LACKING, shlex.join([*PROGRAM, "demo"])],
        cwd=ROOT, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 1 and done.stdout == ""
    assert "needs CAP_NET_ADMIN and CAP_SYS_ADMIN" in done.stderr and "needs a terminal" in done.stderr


def test_e_opens_the_lab_and_q_returns_to_the_host() -> None:
    with Terminal([*LONELY, *PROGRAM], VNET_ENGINES="none") as terminal:
        terminal.wait_for("No virtual network on this host yet")
        seen = len(terminal.output)
        terminal.press("E")
        terminal.wait_for("uplink eth0", since=seen)
        assert b"Recorded demo" not in terminal.output
        seen = len(terminal.output)
        terminal.press("q")
        terminal.wait_for("No virtual network on this host yet", since=seen)
        terminal.press("q")
        terminal.wait_for("left with 0")
