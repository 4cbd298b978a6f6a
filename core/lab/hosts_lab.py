"""Start several lab hosts on one underlay, and end them."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from core.lab import hosts
from core.lab.blueprint import LabSettings
from core.lab.hosts_builder import frr_daemons
from core.lab.lab import Lab, LabError
from core.plan.vxlan import range_of, subnet_by_name
from core.tools import find_tool, python_command, python_environment

_NO_FRR = "FRRouting isn't installed, so the overlay has static tunnels. Try: apt install frr"


class HostsLab:
    """Running lab hosts, as a context manager.

    Each host, and the underlay that connects them, is a Lab, so the kernel removes all of them however this
    process ends. Their networks are made by vnet-tui itself.
    """

    def __init__(
        self, count: int, traffic: bool = True, progress: Callable[[str], None] | None = None
    ) -> None:
        self.count, self._traffic = count, traffic
        self._progress = progress or (lambda _text: None)
        self._stack = ExitStack()
        self.underlay: Lab | None = None
        self.hosts: list[Lab] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Build the hosts and wait until they are complete. Raises LabError."""
        with ExitStack() as stack:
            self._build(stack)
            self._stack = stack.pop_all()

    def close(self) -> None:
        """End all hosts and wait until their processes have ended."""
        self._stack.close()

    def _build(self, stack: ExitStack) -> None:
        frr, etcd = has_frr(), bool(find_tool("etcd"))
        if not frr:
            self._progress(_NO_FRR)
        subnet = subnet_by_name(hosts.OVERLAY, 4)
        numbers = range(1, self.count + 1)
        ranges = tuple(range_of(subnet, hosts.underlay_address(host)) for host in numbers)
        self.underlay = stack.enter_context(
            Lab(LabSettings(traffic=self._traffic, ranges=ranges, etcd=etcd), self._progress)
        )
        netns = os.open(f"/proc/{self.underlay.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            for host in numbers:
                settings = LabSettings(
                    traffic=self._traffic, host=host, ranges=ranges, underlay=netns, frr=frr
                )
                # All hosts take the same steps.
                lab = Lab(settings, self._progress if host == 1 else None)
                stack.callback(lab.close)
                lab.begin()
                self.hosts.append(lab)
        finally:
            os.close(netns)
        for lab in self.hosts:
            lab.wait_until_built()
        self._progress("networks")
        files = {host: hosts.desired_state(host, ranges, frr, etcd) for host in numbers}
        if etcd:  # the first host defines the overlay, the others join it
            self._make_networks({1: files.pop(1)})
        self._make_networks(files)
        if etcd:
            self._progress("agents")
            for lab in self.hosts:
                _start_agent(lab, stack)

    def _make_networks(self, files: Mapping[int, str]) -> None:
        """Make the networks of these hosts at the same time. Raises LabError."""
        with ExitStack() as running:
            commands = {}
            for host, desired in files.items():
                commands[host] = running.enter_context(_apply(self.hosts[host - 1], desired))
                # A lab ends only after its processes were waited for.
                running.callback(commands[host].kill)
            for host, command in commands.items():
                output, _ = command.communicate()
                if command.returncode:
                    raise LabError(f"{hosts.hostname(host)}: {output.strip()}")


def _apply(lab: Lab, desired: str) -> subprocess.Popen[str]:
    """Start `vnet-tui apply` on a host."""
    with tempfile.TemporaryFile("w+") as file:
        file.write(desired)
        file.seek(0)
        return lab.popen_inside(
            python_command("tui.cli", "apply", "-", "--yes"), python_environment(),
            stdin=file, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip


def _start_agent(lab: Lab, stack: ExitStack) -> None:
    """Start `vnet-tui agent` on a host, which renews leases and follows hosts in etcd."""
    null = subprocess.DEVNULL
    agent = lab.popen_inside(
        python_command("tui.cli", "agent"), python_environment(), stdin=null, stdout=null, stderr=null
    )
    stack.callback(agent.wait)
    stack.callback(agent.kill)


def has_frr() -> bool:
    """Return whether the hosts can run FRRouting."""
    return bool(frr_daemons() and find_tool("vtysh"))
