"""Join throw-away hosts by an underlay, each with FRRouting, a bridge and a VXLAN port."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

from tests.support.frr import Frr
from tests.support.host import ThrowawayHost

VNI = 100
GATEWAY, GATEWAY6 = "10.77.0.1", "fd77::1"
GATEWAY_MAC = "02:00:0a:4d:00:01"


class EvpnHost(ThrowawayHost):
    """A host with the addresses 192.0.2.N and 2001:db8::N on the underlay."""

    def __init__(self, number: int, wire: ThrowawayHost) -> None:
        super().__init__()
        self.number = number
        self.address, self.address6 = f"192.0.2.{number}", f"2001:db8::{number}"
        port = f"p{number}"
        wire.run(f"ip link add {port} master wire type veth peer name eth0 netns {self.name}")
        wire.run(f"ip link set {port} up")
        self.run("ip link set eth0 up")
        self.run(f"ip addr add {self.address}/24 dev eth0")
        self.run(f"ip addr add {self.address6}/64 dev eth0 nodad")
        self.frr = Frr(self)

    def add_network(self, vtep: str = "", anycast: bool = True) -> None:
        """Create the bridge br0 with the VXLAN port vx0, whose FDB is FRR's."""
        self.run("ip link add br0 type bridge mcast_snooping 0")
        self.run(f"ip link add vx0 type vxlan id {VNI} local {vtep or self.address} dstport 4789 nolearning")
        self.run("ip link set vx0 mtu 1400 master br0 up")
        self.run("ip link set vx0 addrgenmode none")
        self.run("bridge link set dev vx0 learning off neigh_suppress on")
        if anycast:
            self.run(f"ip link set br0 address {GATEWAY_MAC}")
            self.run(f"ip addr add {GATEWAY}/24 dev br0")
            self.run(f"ip addr add {GATEWAY6}/64 dev br0 nodad")
        self.run("ip link set br0 up")

    def add_container(self, short: str, number: int) -> None:
        """Attach a container with 10.77.0.N and fd77::N to br0."""
        self.container(short, "br0", f"10.77.0.{number}/24", GATEWAY)
        self.run(f"ip addr add fd77::{number}/64 dev eth0 nodad", inside=short)

    def inside[T](self, function: Callable[..., T], *arguments: object) -> T:
        """Call a function in a thread that is in the host's namespaces."""

        def call() -> T:
            os.unshare(os.CLONE_FS)  # a thread that shares its root can't change mount namespaces
            for path in (f"/run/netns/{self.name}", self.mounts):
                namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                os.setns(namespace)
                os.close(namespace)
            return function(*arguments)

        with ThreadPoolExecutor(1) as pool:
            return pool.submit(call).result()

    def mac(self, short: str) -> str:
        """Return the MAC of a container's eth0."""
        return str(self.json("ip -j link show dev eth0", inside=short)[0]["address"])

    def close(self) -> None:
        self.frr.close()
        super().close()


class Underlay:
    """A segment in a namespace of its own, and the hosts on it."""

    def __init__(self, hosts: int) -> None:
        self.wire = ThrowawayHost()
        self.wire.run("ip link add wire type bridge mcast_snooping 0")
        self.wire.run("ip link set wire up")
        self.hosts: list[EvpnHost] = []
        try:
            for number in range(1, hosts + 1):
                self.hosts.append(EvpnHost(number, self.wire))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for host in self.hosts:
            host.close()
        self.wire.close()
