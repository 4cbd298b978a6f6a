"""A router between two containers, each on a bridge of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.host import ThrowawayHost
from tests.support.waiting import wait_until


@contextmanager
def router(net: int) -> Iterator[ThrowawayHost]:
    """Make a host that routes between containers a (on br1) and b (on br2), over IPv4 and IPv6.

    a has 10.NET.1.2 and fdNET:1::2, its gateway 10.NET.1.1 and fdNET:1::1; b has 2 instead of 1 there.
    """
    host = ThrowawayHost()
    try:
        host.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
        for number, name in ((1, "a"), (2, "b")):
            host.run(f"ip link add br{number} type bridge")
            host.run(f"ip addr add 10.{net}.{number}.1/24 dev br{number}")
            host.run(f"ip addr add fd{net}:{number}::1/64 dev br{number} nodad")
            host.run(f"ip link set br{number} up")
            host.container(name, f"br{number}", f"10.{net}.{number}.2/24", f"10.{net}.{number}.1")
            host.run(f"ip addr add fd{net}:{number}::2/64 dev eth0 nodad", inside=name)
            host.run(f"ip route add default via fd{net}:{number}::1", inside=name)
        # IPv6 isn't used before the bridges' link-local addresses are.
        ping = f"ping -c 1 -W 1 fd{net}:2::2"
        wait_until(lambda: "1 received" in host.run(ping, "a", check=False), "the route to b")
        yield host
    finally:
        host.close()
