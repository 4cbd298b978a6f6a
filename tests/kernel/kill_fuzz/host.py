"""Build a host with networks, containers and a NIC for killed changes; read it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from core.apply.entries import read
from tests.support import forkserver
from tests.support.machine import Machine, ok, uplink
from tests.support.state import by_name, cleaned, in_order
from tests.support.waiting import wait_until

FILE = """\
joined = [["lab", "web"]]
[network.web]
kind = "routed"
subnets = ["10.95.0.0/24", "fd95::/64"]
[network.lab]
kind = "internal"
subnets = ["10.92.0.0/24"]
mtu = 1400
[container.web]
[container.api]
[container.log]
model = "joined"
joined_with = "api"
[[attach]]
container = "api"
network = "web"
[[attach]]
container = "web"
network = "lab"
addresses = ["10.92.0.77"]
[[publish]]
container = "api"
host_ports = 9100
"""
_OBJECTS = (
    "network create shop --subnet 10.91.0.0/24 --subnet fd91::/64",
    "network create lab --kind internal --subnet 10.92.0.0/24",
    "network create dmz --kind routed --subnet 10.94.0.0/24",
    "network create wide --kind overlay --ipv6 --remote 192.0.2.8",
    "network join shop dmz",
    "container create web --network shop",
    "container create db --network lab",
    "container create log --joined-with web",
    "publish web 8080:80",
    "publish web 5300/udp",
)
_NIC = (
    "ip addr add 2001:db8::2/64 dev up0 nodad",
    "ip addr add 192.0.2.7/24 label up0:web dev up0",
    "ip route add 198.51.100.0/24 via 192.0.2.1 metric 50 mtu lock 1400",
    "ip -6 route add default via 2001:db8::1 dev up0",
    "ip neigh add 192.0.2.9 lladdr 02:00:00:00:02:09 dev up0",
)
# Forwarding is off except for one link: what a change switches on, it must switch off again.
_FORWARDING = ("net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0", "net.ipv4.conf.up0.forwarding=1")
_SHOW = r"""
one() { echo "@$1 of $name"; shift; "$@"; }
show() {
    name=$1
    one links ip -j -d link show
    one addresses ip -j addr show
    one routes ip -j route show table all
    one routes6 ip -j -6 route show table all
    one routing ip -j rule show
    one neighbours ip -j neigh show nud permanent
    one ports bridge -j -d link show
    one remotes bridge -j fdb show
    one vlans bridge -j vlan show
    one fdb bridge -j fdb show state static
    one qdiscs tc -j qdisc show
    one rules nft -j list ruleset
    one sysctls grep -rs . /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf /proc/sys/net/ipv6/conf
    mount -t sysfs none /sys
    one steering grep -s . /sys/class/net/*/queues/rx-*/rps_cpus
    [ -z "$2" ] || for link in /sys/class/net/*; do one "offloads ${link##*/}" ethtool -k "${link##*/}"; done
}
if [ "$1" ]; then show "$1" "$2"; exit; fi
show host "$2"
for space in $(ls /run/netns); do
    [ "$space" = world ] || nsenter "--net=/run/netns/$space" sh "$0" "$space" "$2"
done
"""
# Values that the kernel counts, chooses or detects are no difference. A bridge takes its segment size from
# its first port and keeps it; port ids are counted from the lowest free one; "link" is printed as a name if
# this namespace happens to have the index that a veth's other end has elsewhere.
_LEFT_OUT = frozenset(["link", "tso_max_size", "tso_max_segs", "port_id", "port_no", "designated_cost",
                       "promiscuity", "allmulti", "fdb_n_learned", "mcast_n_groups"])  # fmt: skip


class Host:
    """A small machine with vnet's networks, on which forwarding is off."""

    def __init__(self) -> None:
        self.machine, self.furniture = Machine(), len(_OBJECTS)
        try:
            self._create_objects()
        except BaseException:
            self.close()
            raise

    def _create_objects(self) -> None:
        uplink(self.machine)
        for command in _NIC:
            self.machine.run(command)
        for command in _OBJECTS:
            ok(self.machine, command)
        (self.machine.folder / "other.toml").write_text(FILE)
        self.machine.run(["sysctl", "-qw", *_FORWARDING])
        wait_until(lambda: "tentative" not in self.machine.run("ip addr"), "duplicate address detection")

    def vnet(self, command: str, **environment: str) -> Any:
        """Run a vnet-tui command whose words contain no blanks."""
        words = command.format(file=self.machine.folder / "other.toml").split()
        return forkserver.run(words, self.machine.environment | environment, self.machine.namespaces)

    def state(self, with_offloads: bool = True) -> dict[str, Any]:
        """Return what vnet-tui may change, of the host and each named namespace."""
        script = self.machine.folder / "show"
        script.write_text(_SHOW)
        words = ["unshare", "-m", "sh", str(script), "", "yes" if with_offloads else ""]
        printed = self.machine.run(words, check=False)
        found: dict[str, Any] = {"namespaces": sorted(self.machine.run("ls /run/netns").split())}
        for what, text in re.findall(r"^@(.*)\n((?:[^@\n].*\n|\n)*)", printed, re.MULTILINE):
            found[what] = _read(what.split()[0], text)
        return found

    def last_change(self) -> str:
        """Return the id of the last completed change since the host exists, "" for none."""
        files = sorted(Path(self.machine.environment["VNET_STATE"], "journal").iterdir())
        found = [entry for path in files[self.furniture :] if (entry := read(path))]
        return next((entry.entry_id for entry in reversed(found) if entry.end != "undone"), "")

    def guards(self) -> list[str]:
        """Return the processes that watch a guarded change."""
        return self.machine.run("pgrep -x vnet-guard", check=False).split()

    def close(self) -> None:
        """End the machine."""
        self.machine.close()


def _read(kind: str, text: str) -> Any:
    if kind in ("sysctls", "steering", "offloads"):
        return sorted(line for line in text.splitlines() if "stable_secret" not in line)
    values = _without(json.loads(text or "[]"))
    if kind == "rules":
        return cleaned(values)
    if kind == "remotes":  # others are learned
        values = [one for one in values if "dst" in one]
    return by_name(values) if kind in ("links", "addresses", "ports", "vlans") else in_order(values)


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without(item) for key, item in value.items() if key not in _LEFT_OUT}
    return [_without(item) for item in value if not _is_automatic(item)] if isinstance(value, list) else value


def _is_automatic(item: Any) -> bool:
    """Return whether the kernel adds an address to a link by itself.

    Link-local and multicast addresses are added to each link that is up, a moment later. Routers' anycast
    addresses are added to links that forward, and sometimes removed when they no longer do.
    """
    if not isinstance(item, dict):
        return False
    where = str(item.get("dst") or item.get("local"))
    return where.startswith(("fe80:", "ff00:")) or item.get("type") == "anycast"


def differences(before: Any, after: Any, where: str = "") -> list[str]:
    """Return the differences of two states, one line each."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = sorted({*before, *after}, key=str)
        return [
            line for key in keys for line in differences(before.get(key), after.get(key), f"{where}/{key}")
        ]
    if isinstance(before, list) and isinstance(after, list):
        gone = [f"{where}: - {one}" for one in before if one not in after]
        return gone + [f"{where}: + {one}" for one in after if one not in before]
    return [] if before == after else [f"{where}: {before!r} -> {after!r}"]
