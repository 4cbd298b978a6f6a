"""Build a host with Docker 26's rules: two bridges with containers, two uplinks.

Containers a and b are on docker0, c is on br-two; `world` is the router at the other end of both uplinks,
`far` a host behind it. Whatever happens, no private source address may leave by an uplink: see Guard.
"""

from __future__ import annotations

import socket
import subprocess
from typing import Self

from core.netlink.netns import entered
from tests.support.fastpath import FastPath, Guard, leftovers
from tests.support.host import ThrowawayHost
from tests.support.waiting import eventually

V4 = {"a": "172.17.0.2", "b": "172.17.0.3", "c": "172.18.0.2", "world": "192.0.2.2", "far": "198.51.100.2"}
V6 = {"a": "fd17::2", "b": "fd17::3", "c": "fd18::2", "world": "2001:db8::2", "far": "2001:db8:1::2"}
HOST4, HOST6 = "192.0.2.1", "2001:db8::1"
SECOND4, SECOND6 = "203.0.113.1", "2001:db8:cb::1"
BRIDGES = {"a": "docker0", "b": "docker0", "c": "br-two"}
MACS = {
    "docker0": "02:00:00:00:17:01",
    "br-two": "02:00:00:00:18:01",
    "up0": "02:00:00:00:c0:01",
    "up1": "02:00:00:00:cb:01",
    "a": "02:00:00:00:17:02",
    "b": "02:00:00:00:17:03",
    "c": "02:00:00:00:18:02",
    "world": "02:00:00:00:c0:02",
    "far": "02:00:00:00:c6:02",
    "router": "02:00:00:00:c6:01",
}
PUBLISHED = 8080  # port 80 of a, TCP and UDP
_SYSCTLS = (
    "net.ipv4.ip_forward=1",
    "net.ipv6.conf.all.forwarding=1",
    "net.ipv4.icmp_ratelimit=0",
    "net.ipv6.icmp.ratelimit=0",
    "net.ipv4.conf.all.rp_filter=0",
    "net.ipv4.conf.default.rp_filter=0",
)

_HOST = f"""
link add docker0 address {MACS["docker0"]} type bridge
link add br-two address {MACS["br-two"]} type bridge
addr add 172.17.0.1/16 dev docker0
addr add 172.18.0.1/16 dev br-two
addr add fd17::1/64 dev docker0 nodad
addr add fd18::1/64 dev br-two nodad
link set docker0 up
link set br-two up
link add up0 address {MACS["up0"]} type veth peer name eth0 address {MACS["world"]} netns WORLD
link add up1 address {MACS["up1"]} type veth peer name eth1 netns WORLD
addr add {HOST4}/24 dev up0
addr add {HOST6}/64 dev up0 nodad
addr add {SECOND4}/24 dev up1
addr add {SECOND6}/64 dev up1 nodad
link set up0 up
link set up1 up
route add default via 192.0.2.2
route add default via 2001:db8::2
"""
_CONTAINER = """
link add v-NAME type veth peer name eth0 address MAC netns SPACE
link set v-NAME master BRIDGE up
link set v-NAME type bridge_slave hairpin on
"""
_INSIDE = """
link set lo up
addr add ADDRESS4/16 dev eth0
addr add ADDRESS6/64 dev eth0 nodad
link set eth0 up
route add default via GATEWAY4
route add default via GATEWAY6
"""
_WORLD = f"""
link add down0 address {MACS["router"]} type veth peer name eth0 address {MACS["far"]} netns FAR
addr add 192.0.2.2/24 dev eth0
addr add 203.0.113.2/24 dev eth1
addr add 198.51.100.1/24 dev down0
addr add 2001:db8::2/64 dev eth0 nodad
addr add 2001:db8:cb::2/64 dev eth1 nodad
addr add 2001:db8:1::1/64 dev down0 nodad
link set lo up
link set eth0 up
link set eth1 up
link set down0 up
"""
_FAR = """
link set lo up
addr add 198.51.100.2/24 dev eth0
addr add 2001:db8:1::2/64 dev eth0 nodad
link set eth0 up
route add default via 198.51.100.1
route add default via 2001:db8:1::1
"""

# As Docker 26 writes them with its userland proxy off; the user allows the two networks to reach each other.
_RULES = """
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -o docker0 -m addrtype --src-type LOCAL -j MASQUERADE
-A POSTROUTING -s NET1 ! -o docker0 -j MASQUERADE
-A POSTROUTING -o br-two -m addrtype --src-type LOCAL -j MASQUERADE
-A POSTROUTING -s NET2 ! -o br-two -j MASQUERADE
-A POSTROUTING -s ONE -d ONE -p tcp -m tcp --dport 80 -j MASQUERADE
-A POSTROUTING -s ONE -d ONE -p udp -m udp --dport 80 -j MASQUERADE
-A DOCKER -p tcp -m tcp --dport 8080 -j DNAT --to-destination TARGET:80
-A DOCKER -p udp -m udp --dport 8080 -j DNAT --to-destination TARGET:80
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A FORWARD -o br-two -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o br-two -j DOCKER
-A FORWARD -i br-two ! -o br-two -j ACCEPT
-A FORWARD -i br-two -o br-two -j ACCEPT
-A DOCKER -d ONE -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT
-A DOCKER -d ONE -o docker0 -p udp -m udp --dport 80 -j ACCEPT
-A DOCKER-USER -i docker0 -o br-two -j ACCEPT
-A DOCKER-USER -i br-two -o docker0 -j ACCEPT
-A DOCKER-USER -j RETURN
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -i br-two ! -o br-two -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -o br-two -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
COMMIT
"""
_RULES4 = {"NET1": "172.17.0.0/16", "NET2": "172.18.0.0/16", "ONE": "172.17.0.2/32", "TARGET": "172.17.0.2"}
_RULES6 = {"NET1": "fd17::/64", "NET2": "fd18::/64", "ONE": "fd17::2/128", "TARGET": "[fd17::2]"}


def _filled(text: str, words: dict[str, str]) -> str:
    for name, value in words.items():
        text = text.replace(name, value)
    return text


class FastLab:
    """Hold the host and all namespaces connected to it."""

    def __init__(self) -> None:
        self.host = ThrowawayHost()
        self.fast: FastPath | None = None
        self._guards: list[Guard] = []
        try:
            self._build()
        except BaseException:
            self.host.close()
            raise

    def _build(self) -> None:
        spaces = {short: self.host.namespace(short) for short in V4}
        for short in ("host", "world"):
            self.host.run(["sysctl", "-qw", *_SYSCTLS], inside=short)
        self.ip("host", _HOST.replace("WORLD", spaces["world"]))
        for short, bridge in BRIDGES.items():
            self.join(short, bridge, V4[short], V6[short], MACS[short])
        self.ip("world", _WORLD.replace("FAR", spaces["far"]))
        self.ip("far", _FAR)
        self.run_with("iptables-nft-restore", _filled(_RULES, _RULES4))
        self.run_with("ip6tables-nft-restore", _filled(_RULES, _RULES6))
        self._guards = [Guard(self.host, "world", link) for link in ("eth0", "eth1")]

    def join(self, short: str, bridge: str, v4: str, v6: str, mac: str) -> None:
        """Give the namespace its eth0 on that bridge."""
        words = {"NAME": short, "MAC": mac, "SPACE": self.host.full(short), "BRIDGE": bridge}
        self.ip("host", _filled(_CONTAINER, words))
        net = "17" if bridge == "docker0" else "18"
        gateways = {"GATEWAY4": f"172.{net}.0.1", "GATEWAY6": f"fd{net}::1"}
        self.ip(short, _filled(_INSIDE, {"ADDRESS4": v4, "ADDRESS6": v6, **gateways}))

    def run_with(self, command: str, text: str, inside: str = "host") -> None:
        """Run a command that reads `text`."""
        words = ["nsenter", f"--net=/run/netns/{self.host.full(inside)}", *command.split()]
        done = subprocess.run(words, input=text, text=True, capture_output=True, check=False)
        assert not done.returncode, f"{command}: {done.stderr}"

    def ip(self, inside: str, lines: str) -> None:
        """Run several ip(8) commands."""
        self.run_with("ip -batch -", lines, inside)

    def run(self, command: str | list[str], inside: str = "host", check: bool = True) -> str:
        """Run a command as ThrowawayHost.run does."""
        return self.host.run(command, inside, check)

    def accelerate(self, *targets: str) -> FastPath:
        """Turn the fast path on."""
        self.fast = FastPath(self.host, *(targets or ("all",))).__enter__()
        assert eventually(self.fast.is_on), self.fast.status()
        return self.fast

    def end_fast(self) -> None:
        """Turn it off, and check that nothing is left of it."""
        if self.fast is not None:
            self.fast.end()
            self.fast = None
        assert eventually(lambda: not leftovers(self.host)), leftovers(self.host)

    def took_fast(self, port: str = "", least: int = 1, since: int = 0) -> bool:
        """Return whether at least that many packets went fast at the port.

        Always true without the fast path.
        """
        return self.fast is None or self.fast.count("FAST", port) >= since + least

    def counted(self, port: str = "", verdict: str = "FAST") -> int:
        """Return the packets of that verdict; 0 without the fast path."""
        return 0 if self.fast is None else self.fast.count(verdict, port)

    def leaked(self) -> list[bytes]:
        """Return the frames with a private source that left the host by an uplink."""
        return [frame for guard in self._guards for frame in guard.leaked()]

    def socket(self, inside: str, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """Create a socket in one of the namespaces."""
        with entered(f"/run/netns/{self.host.full(inside)}"):
            return socket.socket(family, kind, protocol)

    def conntrack(self, *filters: str) -> list[str]:
        """Return the lines of `conntrack -L` with these words."""
        lines = self.run(["conntrack", "-L", "-f", "ipv4"], check=False).splitlines()
        lines += self.run(["conntrack", "-L", "-f", "ipv6"], check=False).splitlines()
        return [line for line in lines if all(word in line.split() for word in filters)]

    def close(self) -> None:
        """End the fast path and remove everything."""
        try:
            if self.fast is not None:
                self.fast.end()
        finally:
            for guard in self._guards:
                guard.close()
            self.host.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Close; without an error, check the final state too."""
        try:
            if kind is None:
                self.end_fast()
                assert self.leaked() == []
        finally:
            self.close()
