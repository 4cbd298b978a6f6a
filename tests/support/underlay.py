"""Start several hosts on one network, the underlay of their tunnels."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any

from core.collect.frr import VTYSH
from core.model.link import ALL_ZERO
from tests.support.frr import DAEMONS, PROGRAMS
from tests.support.host import ThrowawayHost
from tests.support.machine import PROGRAM, Machine, machine_state, ok
from tests.support.waiting import wait_until

PREFIXES = {4: "192.0.2.", 6: "2001:db8:2::"}


class Underlay:
    """Connect hosts to a common bridge by their links up0.

    Their addresses there end with 1, 2, ...
    """

    def __init__(self, family: int = 4) -> None:
        self.family = family
        self.middle = ThrowawayHost()
        self.middle.run("ip link add br0 type bridge")
        self.middle.run("ip link set br0 up")
        self.hosts: list[Machine] = []

    def address(self, host: Machine) -> str:
        """Return a host's address in the underlay."""
        return f"{PREFIXES[self.family]}{self.hosts.index(host) + 1}"

    def remotes(self) -> str:
        """Return the option --remote for each host."""
        return " ".join(f"--remote {self.address(one)}" for one in self.hosts)

    def peers(self) -> str:
        """Return the option --peer for each host."""
        return self.remotes().replace("--remote", "--peer")

    def connect(self, host: Machine, mtu: int = 1500) -> Machine:
        """Add a host to the underlay."""
        self.hosts.append(host)
        port = self.port(host)
        self.middle.run(f"ip link add {port} mtu {mtu} type veth peer name up0 mtu {mtu} netns {host.pid}")
        self.middle.run(f"ip link set {port} master br0 up")
        length = 24 if self.family == 4 else 64
        host.run(f"ip addr add {self.address(host)}/{length} dev up0 {'' if self.family == 4 else 'nodad'}")
        host.run("ip link set up0 up")
        return host

    def port(self, host: Machine) -> str:
        """Return the name of the bridge's port that leads to a host."""
        return f"p{self.hosts.index(host) + 1}"

    def close(self) -> None:
        self.middle.close()


class FrrDaemons:
    """Run FRRouting on a host, with configuration and sockets of its own."""

    def __init__(self, host: Machine) -> None:
        self.host = host
        for folder in ("/etc/frr", "/var/lib/frr"):
            host.run(f"mount -t tmpfs -o mode=755 none {folder}")
        host.run("mkdir -p /run/frr")
        host.run("chown -R frr:frr /etc/frr /var/lib/frr /run/frr")
        host.run("touch /etc/frr/vtysh.conf /etc/frr/frr.conf")
        self.start(*DAEMONS)

    def start(self, *names: str) -> None:
        """Start daemons and wait until vtysh can reach them."""
        for name in names:
            words = f"{PROGRAMS / name} -d -A 127.0.0.1 --log file:/run/frr/log"
            self.host.run(["sh", "-c", f"{words} </dev/null >/dev/null 2>&1"])
            wait_until(lambda name=name: name in self.vtysh("show daemons"), name)  # type: ignore[misc]

    def kill(self, *names: str) -> None:
        """Kill daemons by SIGKILL."""
        for name in names:
            self.host.run(f"pkill -KILL -x {name}")
            wait_until(lambda name=name: not self.host.run(f"pgrep -x {name}", check=False), name)  # type: ignore[misc]

    def vtysh(self, *commands: str) -> str:
        """Run vtysh commands and return their output."""
        words = [word for each in commands for word in ("-c", each)]
        return self.host.run([*VTYSH, *words], check=False)

    def established(self) -> set[str]:
        """Return the peers with an established session."""
        found = json.loads(self.vtysh("show bgp l2vpn evpn summary json") or "{}").get("peers", {})
        return {name for name, row in found.items() if row["state"] == "Established"}


@contextmanager
def underlay(count: int = 2, family: int = 4, mtu: int = 1500, **environment: str) -> Iterator[Underlay]:
    """Start `count` hosts on an underlay of that address family, vnet-tui with that environment."""
    with ExitStack() as stack:
        found = stack.enter_context(closing(Underlay(family)))
        for _ in range(count):
            found.connect(stack.enter_context(closing(Machine(VNET_ENGINES="frr", **environment))), mtu)
        yield found


@contextmanager
def joined(count: int = 2, options: str = "") -> Iterator[Underlay]:
    """Start `count` hosts that have joined the static overlay `blue`, with those options."""
    with underlay(count) as found:
        for host in found.hosts:
            ok(host, f"network join blue {options} {found.remotes()}")
        yield found


def container(host: Machine, name: str, network: str) -> str:
    """Create a container on a network; return its address."""
    ok(host, f"container create {name} --network {network}")
    return addresses_of(host, name)[0]


def addresses_of(host: Machine, name: str) -> list[str]:
    """Return the global addresses of a container's eth0."""
    (found,) = host.json("ip -j addr show eth0", name)
    return [one["local"] for one in found["addr_info"] if one["scope"] == "global"]


def reaches(host: Machine, name: str, address: str, size: int = 56) -> bool:
    """Return whether one ping of a container is answered."""
    words = f"ping -c 1 -W 1 -M do -s {size} {address}"
    return ", 1 received" in host.run(words, name, check=False)


def wait_for_ping(host: Machine, name: str, address: str, size: int = 56) -> None:
    """Wait until a container reaches an address."""
    wait_until(lambda: reaches(host, name, address, size), f"the way from {name} to {address}")


def connect_containers(hosts: Sequence[Machine], network: str) -> list[tuple[Machine, str]]:
    """Create a container on each host; wait until each reaches all addresses."""
    ends = [(host, f"c{number}") for number, host in enumerate(hosts)]
    for host, name in ends:
        container(host, name, network)
    for host, name in ends:
        for other, far in ends:
            for address in addresses_of(other, far):
                wait_for_ping(host, name, address)
    return ends


def destinations(host: Machine, tunnel: str, mac: str) -> set[str]:
    """Return the hosts to which the kernel sends a MAC by a tunnel."""
    entries = host.json(f"bridge -j fdb show dev {tunnel}")
    return {one["dst"] for one in entries if one["mac"] == mac and "dst" in one}


def flood_list(host: Machine, tunnel: str) -> set[str]:
    """Return the hosts to which the kernel sends broadcasts by a tunnel."""
    return destinations(host, tunnel, ALL_ZERO)


def overlay_state(host: Machine) -> dict[str, Any]:
    """Return what commands may change on a host, with its tunnels and their flood lists."""
    tunnels = {
        one["ifname"]: one["linkinfo"]["info_data"] for one in host.json("ip -j -d link show type vxlan")
    }
    return machine_state(host) | {name: (flood_list(host, name), data) for name, data in tunnels.items()}


@contextmanager
def agent(host: Machine) -> Iterator[subprocess.Popen[str]]:
    """Run the agent on a host."""
    words = host.words("setpriv", "--pdeathsig", "TERM", *PROGRAM, "agent")
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=host.environment) as started:
        try:
            yield started
        finally:
            started.terminate()
