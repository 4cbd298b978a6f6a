"""Announce the EVPN routes of many hosts that don't exist, by GoBGP.

ExaBGP 4.2 decodes such routes but can't announce them.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

from core.netlink.netns import entered
from tests.support.underlay import Underlay
from tests.support.waiting import PATIENCE, wait_until

_CONFIG = """
[global.config]
as = {asn}
router-id = "{own}"
[[neighbors]]
[neighbors.config]
neighbor-address = "{peer}"
peer-as = {asn}
[[neighbors.afi-safis]]
[neighbors.afi-safis.config]
afi-safi-name = "l2vpn-evpn"
"""
_PORT = 50051
_AT_ONCE = 8  # commands


class RouteGenerator:
    """Run GoBGP in a namespace of the underlay, with a session to its first host.

    `address` is its own. It announces routes of other hosts as a route reflector passes them on.
    """

    address = "192.0.2.250"

    def __init__(self, under: Underlay, asn: int, vni: int) -> None:
        self._asn, self._vni = asn, vni
        self._under = under
        name = under.middle.namespace("bgp")
        under.middle.run(f"ip link add pgen type veth peer name eth0 netns {name}")
        under.middle.run("ip link set pgen master br0 up")
        for line in (f"addr add {self.address}/24 dev eth0", "link set eth0 up", "link set lo up"):
            under.middle.run(f"ip {line}", inside="bgp")
        self._folder = TemporaryDirectory()
        path = Path(self._folder.name) / "gobgp.conf"
        path.write_text(_CONFIG.format(asn=asn, own=self.address, peer=under.address(under.hosts[0])))
        self._namespace = f"/run/netns/{name}"
        with entered(self._namespace):
            self._daemon = subprocess.Popen(
                ["gobgpd", "-f", str(path), "--api-hosts", f"127.0.0.1:{_PORT}"],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        wait_until(lambda: not self._run(["gobgp", "global"]).returncode, "GoBGP")

    def announce(self, hosts: Iterable[str], macs: Iterable[tuple[str, str, str]]) -> None:
        """Announce hosts by address, and containers: (host, MAC, address)."""
        commands = [*self._hosts(hosts), *self._containers(macs)]
        script = "".join(f"gobgp global rib add -a evpn {each} || exit 255\n" for each in commands)
        words = ["xargs", "-P", str(_AT_ONCE), "-d", "\\n", "-n", "1", "sh", "-c", 'eval "$0"']
        done = self._run(words, script)
        assert not done.returncode, done.stderr + done.stdout

    def _hosts(self, hosts: Iterable[str]) -> Iterator[str]:
        for host in hosts:
            flood = f"pmsi ingress-repl {self._vni} {host}"
            yield f"multicast {host} etag 0 {self._of(host)} {flood} nexthop {host}"

    def _containers(self, macs: Iterable[tuple[str, str, str]]) -> Iterator[str]:
        for host, mac, address in macs:
            for one in ("0.0.0.0", address):
                yield f"macadv {mac} {one} etag 0 label {self._vni} {self._of(host)} nexthop {host}"

    def _of(self, host: str) -> str:
        return f"rd {host}:2 rt {self._asn}:{self._vni} encap vxlan"

    def _run(self, words: list[str], text: str = "") -> subprocess.CompletedProcess[str]:
        with entered(self._namespace):
            return subprocess.run(words, input=text, capture_output=True, text=True, check=False)

    def kill(self) -> None:
        """Kill GoBGP: its session ends."""
        self._daemon.kill()

    def close(self) -> None:
        """End GoBGP."""
        self._daemon.terminate()
        self._daemon.wait(PATIENCE)
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
