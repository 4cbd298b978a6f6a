"""Run FRRouting on throw-away hosts, each with its own /run/frr and /etc/frr."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

from core.collect.frr import VTYSH
from tests.support.host import ThrowawayHost
from tests.support.needs import FRR_FOLDERS
from tests.support.waiting import PATIENCE, scaled, wait_until

PROGRAMS = next((path for path in map(Path, FRR_FOLDERS) if path.exists()), Path(FRR_FOLDERS[0]))
# In the order of their start; older versions have no mgmtd.
DAEMONS = tuple(name for name in ("mgmtd", "zebra", "bgpd") if (PROGRAMS / name).exists())
_FOLDERS = ("/etc/frr", "/run/frr", "/var/lib/frr")
# Further mounts must not show on the machine, but names in /run/netns must. A mount below a shared one would
# be copied there, so its parents are made private first.
_MOUNTS = (
    "for each in / /etc /run /var /var/lib; do mount --make-private $each 2>/dev/null; done; "
    f"for each in {' '.join(_FOLDERS)}; do "
    "mkdir -p $each && mount -t tmpfs -o mode=755 none $each && chown frr:frr $each || exit; done; "
    "touch /etc/frr/vtysh.conf /etc/frr/frr.conf; echo ready; exec sleep infinity"
)


class Frr:
    """FRR's daemons in a host's network namespace and a mount namespace of its own.

    What the host runs afterwards, vnet-tui too, is in that mount namespace, where plain vtysh reaches them.
    """

    def __init__(self, host: ThrowawayHost, daemons: tuple[str, ...] = DAEMONS) -> None:
        self.host = host
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "unchanged", "sh", "-c", _MOUNTS],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n"
        host.mounts = f"/proc/{self._holder.pid}/ns/mnt"
        for name in daemons:
            self.start(name)

    def start(self, name: str, *options: str) -> None:
        """Start a daemon and wait until vtysh can reach it."""
        words = ["nsenter", f"--net=/run/netns/{self.host.name}", f"--mount={self.host.mounts}"]
        socket = Path(f"/proc/{self._holder.pid}/root/run/frr/{name}.vty")
        socket.unlink(missing_ok=True)
        self._daemons[name] = subprocess.Popen(
            [*words, str(PROGRAMS / name), "-A", "127.0.0.1", "--log", "file:/run/frr/log", *options],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wait_until(socket.exists, f"{name} on {self.host.name}")

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """End a daemon by a signal."""
        daemon = self._daemons.pop(name)
        daemon.send_signal(number)
        daemon.wait(PATIENCE)

    def pid(self, name: str) -> int:
        """Return the pid of a daemon."""
        return self._daemons[name].pid

    def vtysh(self, *commands: str) -> str:
        """Run vtysh commands and return their output."""
        return self.host.run([*VTYSH, *(word for each in commands for word in ("-c", each))])

    def configure(self, *lines: str) -> None:
        """Type configuration lines."""
        self.vtysh("configure terminal", *lines)

    def json(self, command: str) -> Any:
        """Run a show command that prints JSON and decode it."""
        return json.loads(self.vtysh(f"{command} json"))

    def running_config(self) -> str:
        """Return the running configuration."""
        return self.vtysh("show running-config")

    def is_established(self, peer: str) -> bool:
        """Return whether the EVPN session with a peer is established."""
        found = self.json("show bgp l2vpn evpn summary").get("peers", {}).get(peer, {})
        return bool(found.get("state") == "Established")

    def close(self) -> None:
        """End all daemons and the mount namespace."""
        for each in (*reversed(self._daemons.values()), self._holder):
            each.kill()
            each.wait(scaled(10))
        self.host.mounts = ""
