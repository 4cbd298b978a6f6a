"""Create throw-away hosts: namespaces that play a host and its containers."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

from tests.support import forkserver

_numbers = itertools.count(1)


class ThrowawayHost:
    """A network namespace that plays the host, and further ones connected to it."""

    def __init__(self) -> None:
        self.prefix = f"v{os.getpid():x}x{next(_numbers):x}"  # short: container names have at most 15 bytes
        self.names: list[str] = []
        self.mounts = ""  # the path of a mount namespace in which the host's commands run
        self.name = self.namespace("host")
        self.inode = self.inode_of("host")
        self.run("ip link set lo up")

    def full(self, short: str) -> str:
        """Return the machine-wide name of the namespace that the test calls `short`."""
        return f"{self.prefix}-{short}"

    def namespace(self, short: str) -> str:
        """Create a named namespace and return its machine-wide name."""
        name = self.full(short)
        subprocess.run(["ip", "netns", "add", name], check=True)
        self.names.append(name)
        return name

    def remove(self, short: str) -> None:
        """Remove a namespace made by `namespace`."""
        subprocess.run(["ip", "netns", "del", self.full(short)], check=True)
        self.names.remove(self.full(short))

    def inode_of(self, short: str) -> int:
        """Return the inode of a namespace made by `namespace`."""
        return Path(f"/run/netns/{self.full(short)}").stat().st_ino

    def run(self, command: str | list[str], inside: str = "host", check: bool = True) -> str:
        """Run a command inside one of the namespaces and return its output."""
        words = shlex.split(command) if isinstance(command, str) else command
        mounts = [f"--mount={self.mounts}"] if self.mounts and inside == "host" else []
        done = subprocess.run(
            ["nsenter", f"--net=/run/netns/{self.full(inside)}", *mounts, *words],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(f"{shlex.join(words)} in {inside}: {done.stderr or done.stdout}")
        return done.stdout

    def vnet(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run vnet-tui on the host, with pipes as its standard streams."""
        namespaces = [f"/run/netns/{self.name}", *filter(None, [self.mounts])]
        return forkserver.run(arguments, os.environ | environment, namespaces)

    def json(self, command: str, inside: str = "host") -> Any:
        """Run a command that prints JSON, such as `ip -j` or `nft -j`, and decode it."""
        return json.loads(self.run(command, inside) or "[]")

    def container(self, short: str, bridge: str, address: str, gateway: str = "") -> str:
        """Create a namespace with a veth to `bridge`: eth0 inside, `v-SHORT` on the host."""
        name = self.namespace(short)
        port = f"v-{short}"[:15]
        self.run(f"ip link add {port} type veth peer name eth0 netns {name}")
        self.run(f"ip link set {port} master {bridge} up")
        self.run(f"ip addr add {address} dev eth0", inside=short)
        self.run("ip link set eth0 up", inside=short)
        self.run("ip link set lo up", inside=short)
        if gateway:
            self.run(f"ip route add default via {gateway}", inside=short)
        return name

    def loop(self, bridge: str) -> None:
        """Join a bridge to another one, of the namespace `far`, by two veth pairs: p1 and p2 are its ports.

        Without IPv6 there, which multicasts by itself.
        """
        self.namespace("far")
        self.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1", inside="far")
        self.run("ip link add brf type bridge", inside="far")
        self.run("ip link set brf up", inside="far")
        for number in (1, 2):
            self.run(f"ip link add p{number} type veth peer name q{number} netns {self.full('far')}")
            self.run(f"ip link set q{number} master brf up", inside="far")
            self.run(f"ip link set p{number} master {bridge} up")

    def close(self) -> None:
        """Remove every namespace made."""
        for name in reversed(self.names):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
