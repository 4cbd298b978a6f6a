"""`vnet-tui show` without rights: what can't be read is reported as unreadable."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.host import ThrowawayHost
from tests.support.needs import AS_NOBODY

pytestmark = pytest.mark.root

ROOT = Path(__file__).parents[2]


@pytest.fixture
def web(host: ThrowawayHost) -> ThrowawayHost:
    """Yield a host with one container on a bridge."""
    host.run("ip link add br-shop type bridge")
    host.run("ip link set br-shop up")
    host.container("web", "br-shop", "10.20.0.2/24", "10.20.0.1")
    return host


def show(host: ThrowawayHost, topic: str) -> str:
    """Return what a user without rights is shown on that host."""
    done = subprocess.run(
        [
            "nsenter", f"--net=/run/netns/{host.name}", *AS_NOBODY,
            sys.executable, "-m", "tui.cli", "show", topic,
        ],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout


@pytest.mark.parametrize("topic", ["nat", "conntrack"])
def test_tables_name_the_capabilities_that_they_need(web: ThrowawayHost, topic: str) -> None:
    assert show(web, topic).startswith("Can't read this: it needs CAP_NET_ADMIN and CAP_SYS_ADMIN.")


def test_if_process_1_is_unreadable_the_own_namespace_is_the_host(host: ThrowawayHost) -> None:
    """Root with one capability less than process 1 may not read it.

    The rest is shown nevertheless.
    """
    host.run("ip link add br-own type bridge")
    done = subprocess.run(
        [
            "nsenter", f"--net=/run/netns/{host.name}", "capsh", "--drop=cap_sys_ptrace,cap_syslog", "--",
            "-c", f"{sys.executable} -m tui.cli show bridges",
        ],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    line = next(line for line in done.stdout.splitlines() if line.startswith("br-own"))
    assert " in " not in line
    assert "can't read the network namespace of process 1 and others" in done.stderr
    assert "this program's own namespace is shown as the host's" in done.stderr
    assert "start it with all capabilities, in a container with --privileged" in done.stderr


def test_the_model_of_a_container_that_cannot_be_entered_is_unknown(web: ThrowawayHost) -> None:
    line = next(line for line in show(web, "containers").splitlines() if line.startswith(web.full("web")))
    assert "unknown" in line and "closed" not in line


def test_the_links_of_a_namespace_that_cannot_be_entered_are_not_counted(web: ThrowawayHost) -> None:
    line = next(line for line in show(web, "namespaces").splitlines() if line.startswith(web.full("web")))
    assert "?" in line.split()


def test_the_state_of_the_fast_path_is_unknown() -> None:
    """The folder of root's state exists on most hosts, with or without the fast path."""
    folder = 'mount -t tmpfs none /run && mkdir -m 700 /run/vnet-tui && exec "$@"'
    as_nobody = ["unshare", "--net", "--mount", "sh", "-c", folder, "sh", *AS_NOBODY]
    done = subprocess.run(
        [*as_nobody, sys.executable, "-m", "tui.cli", "fastpath", "status"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "fast path: unknown: only root may ask. Try: sudo vnet-tui fastpath status\n"
