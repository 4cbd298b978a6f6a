"""Start several hosts on one network, the underlay of their tunnels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

from tests.support.host import ThrowawayHost
from tests.support.machine import Machine, ok
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


@contextmanager
def underlay(count: int = 2, family: int = 4, mtu: int = 1500) -> Iterator[Underlay]:
    """Start `count` hosts on an underlay of that address family."""
    with ExitStack() as stack:
        found = stack.enter_context(closing(Underlay(family)))
        for _ in range(count):
            found.connect(stack.enter_context(closing(Machine(VNET_ENGINES="none"))), mtu)
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
