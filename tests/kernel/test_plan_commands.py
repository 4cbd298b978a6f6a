"""A plan and its printed commands have the same effect, and undo restores all."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from core.apply import journal, run
from core.collect.snapshot import read_snapshot
from core.model import LinkKey, Part, link_ref
from core.plan import Plan, Refused, plan, plan_all
from core.plan.requests import (
    Attach,
    ChangeBridge,
    ChangeLink,
    ChangePort,
    CreateContainer,
    CreateNetwork,
    Delete,
    Detach,
    Join,
    JoinOverlay,
    LeaveOverlay,
    Move,
    Publish,
    RemoveContainer,
    RemoveNetwork,
    Request,
    Separate,
    Unpublish,
)
from core.topology import Topology
from tests.support.host import ThrowawayHost
from tests.support.state import state

pytestmark = pytest.mark.root

WEB, LOG = f"w{os.getpid()}", f"l{os.getpid()}"
# Subnets of this run only: an address in any namespace of the machine is in use.
N = os.getpid() % 256
SHOP = CreateNetwork("shop", subnets=(f"10.91.{N}.0/24", f"fd91:{N}::/64"), nat66=True)
VAULT = CreateNetwork("vault", "internal", (f"10.92.{N}.0/24",))
ROUTED = CreateNetwork("lan", "routed", (f"10.93.{N}.0/24",), mtu=1400)
WIDE = CreateNetwork("wide", "overlay", (f"10.96.{N}.0/24",), remotes=("192.0.2.8", "192.0.2.9"))
WEB_ON_SHOP = CreateContainer(WEB, "bridged", "shop")
LOG_ON_VAULT = CreateContainer(LOG, "bridged", "vault")
BOTH = (SHOP, VAULT, WEB_ON_SHOP, LOG_ON_VAULT)

Place = Callable[[Topology], Request]


def key(name: str) -> Callable[[Topology], LinkKey]:
    """Return the key of the host's link of that name."""

    def find(topology: Topology) -> LinkKey:
        return next(
            one.key for one in topology.snapshot.nets[topology.host].links.values() if one.name == name
        )

    return find


CASES: dict[str, tuple[tuple[Request, ...], Request | Place]] = {
    "nat": ((), SHOP),
    "internal": ((), VAULT),
    "routed": ((), ROUTED),
    "smallest": ((), CreateNetwork("vl", "internal", (f"10.94.{N}.0/31",))),
    "chosen": (
        (),
        CreateNetwork("c", subnets=(f"10.95.{N}.0/24",), gateways=(f"10.95.{N}.254",), bridge="own0"),
    ),
    "second": ((SHOP,), VAULT),
    "rm-network": (BOTH, RemoveNetwork("shop")),
    "rm-network-with-ports": ((*BOTH, Publish(WEB, "8080", "80")), RemoveNetwork("shop")),
    "attach": ((SHOP, CreateContainer(WEB)), Attach(WEB, "shop")),
    "attach-chosen": (
        (SHOP, CreateContainer(WEB)),
        Attach(WEB, "shop", (f"10.91.{N}.77", f"fd91:{N}::77"), "lan0"),
    ),
    "attach-internal": ((VAULT, CreateContainer(WEB)), Attach(WEB, "vault")),
    "attach-second": (BOTH, Attach(WEB, "vault")),
    "detach": (BOTH, Detach(WEB, "shop")),
    "move": (BOTH, Move(WEB, "shop", "vault")),
    "closed": ((), CreateContainer(WEB)),
    "bridged": ((SHOP,), WEB_ON_SHOP),
    "joined": ((CreateContainer(WEB),), CreateContainer(LOG, "joined", joined_with=WEB)),
    "open": ((), CreateContainer(WEB, "open")),
    "rm-container": (BOTH, RemoveContainer(WEB)),
    "rm-joined": (
        (CreateContainer(WEB), CreateContainer(LOG, "joined", joined_with=WEB)),
        RemoveContainer(LOG),
    ),
    "rm-open": ((CreateContainer(WEB, "open"),), RemoveContainer(WEB)),
    "publish": (BOTH, Publish(WEB, "8080", "80")),
    "publish-range": (BOTH, Publish(WEB, "8000-8010", "80-90", "udp")),
    "publish-same-range": (BOTH, Publish(WEB, "8000-8010", l4_proto="sctp")),
    "publish-local": (BOTH, Publish(WEB, "8080", "80", host_ip="127.0.0.1")),
    "publish-more": ((*BOTH, Publish(WEB, "53", l4_proto="udp")), Publish(WEB, "53", l4_proto="tcp")),
    "unpublish": ((*BOTH, Publish(WEB, "8080", "80")), Unpublish("8080")),
    "join": (BOTH, Join("shop", "vault")),
    "part": ((*BOTH, Join("shop", "vault")), Separate("shop", "vault")),
    "link-mtu": ((SHOP,), lambda now: ChangeLink(key("br-shop")(now), mtu=1300)),
    "link-down": ((SHOP,), lambda now: ChangeLink(key("up0")(now), up=False)),
    "link-rename": ((SHOP,), lambda now: ChangeLink(key("br-shop")(now), name="br-new")),
    "link-alias": ((), lambda now: ChangeLink(key("up0")(now), alias="to the world; $(x) 'y'")),
    "bridge-stp": ((SHOP,), lambda now: ChangeBridge(key("br-shop")(now), "stp_state", 1)),
    "bridge-ageing": ((SHOP,), lambda now: ChangeBridge(key("br-shop")(now), "ageing_time", 1000)),
    "bridge-priority": ((SHOP,), lambda now: ChangeBridge(key("br-shop")(now), "priority", 4096)),
    "port-isolated": (BOTH, lambda now: ChangePort(key(f"v-{WEB}")(now), "isolated", True)),
    "port-hairpin": (BOTH, lambda now: ChangePort(key(f"v-{WEB}")(now), "hairpin", True)),
    "port-learning": (BOTH, lambda now: ChangePort(key(f"v-{WEB}")(now), "learning", False)),
    "delete-bridge": (BOTH, lambda now: Delete(link_ref(key("br-shop")(now)))),
    "delete-port": (BOTH, lambda now: Delete(link_ref(key(f"v-{WEB}")(now)))),
    "delete-foreign": ((), lambda now: Delete(link_ref(key("up0")(now)))),
    "overlay": ((), WIDE),
    "overlay-ipv6": (
        (),
        CreateNetwork("w6", "overlay", ipv6=True, mtu=1300, remotes=("2001:db8:2::9",), vni=77),
    ),
    "rm-overlay": ((WIDE, CreateContainer(WEB, "bridged", "wide")), RemoveNetwork("wide")),
    "join-overlay": (
        (WIDE,),
        JoinOverlay(CreateNetwork("wide", "overlay", remotes=("192.0.2.7", "192.0.2.8"))),
    ),
    "leave-host": ((WIDE,), LeaveOverlay("wide", ("192.0.2.8",))),
    "nic-bridged": ((), CreateNetwork("wire", "nic-bridged", uplink="up0")),
    "rm-nic-bridged": ((CreateNetwork("wire", "nic-bridged", uplink="up0"),), RemoveNetwork("wire")),
}


@dataclass
class PlanHost:
    """Hold an entered host with an uplink, and the containers that plans create."""

    host: ThrowawayHost

    def topology(self) -> Topology:
        return Topology(read_snapshot((Part.NAMESPACES, Part.LINKS, Part.FIREWALL, Part.CONTAINERS)))

    def plan(self, request: Request | Place) -> Plan:
        now = self.topology()
        made = plan(request if not callable(request) else request(now), now)
        assert isinstance(made, Plan), made
        return made

    def do(self, *requests: Request) -> None:
        made = plan_all(requests, self.topology())
        assert isinstance(made, Plan), made
        outcome = run.apply(made.title, made.steps)
        assert outcome.done, outcome

    def state(self) -> dict[str, Any]:
        """Return the state of host, world and containers, by stable names."""
        names = {"host": self.host.name, "world": self.host.full("world"), "web": WEB, "log": LOG}
        found = state(names.values())
        return {short: stable_state(found[name]) for short, name in names.items() if name in found}

    def names(self) -> list[str]:
        return sorted(name for name in (WEB, LOG) if Path(f"/run/netns/{name}").exists())


@contextmanager
def plan_host() -> Iterator[PlanHost]:
    """Yield a host with an uplink `up0`.

    It has two addresses, one secondary, IPv6, a default route and one more.
    """
    host = ThrowawayHost()
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        host.namespace("world")
        host.run(f"ip link add up0 type veth peer name far netns {host.full('world')}")
        host.run("ip addr add 192.0.2.2/24 brd + dev up0")
        host.run("ip addr add 192.0.2.3/24 dev up0")
        host.run("ip addr add 2001:db8:2::2/64 dev up0 nodad")
        host.run("ip addr add 192.0.2.1/24 dev far", inside="world")
        host.run("ip link set far up", inside="world")
        host.run("ip link set up0 up")
        host.run("ip route add default via 192.0.2.1 dev up0 proto static metric 50")
        host.run("ip route add 198.51.100.0/24 via 192.0.2.1 dev up0 proto static src 192.0.2.3")
        host.run("ip -6 route add default via 2001:db8:2::1 dev up0 proto static")
        host.run("ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev up0 nud permanent")
        with open(f"/run/netns/{host.name}") as there:
            os.setns(there.fileno(), os.CLONE_NEWNET)
        yield PlanHost(host)
    finally:
        os.setns(home, os.CLONE_NEWNET)
        os.close(home)
        for name in (WEB, LOG):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        host.close()


@pytest.fixture(autouse=True)
def state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VNET_STATE", str(tmp_path / "state"))


_MAC = re.compile(r"\b(?:[0-9a-f]{1,2}:){5}[0-9a-f]{1,2}\b")
# Values that the kernel learns, or sets some time after a link is up.
_LEARNED = ("fdb_n_learned", "mcast_n_groups", "tso_max_size", "tentative", "nodad", "link")
_BY_ITSELF = ("fe80::", "ff00::/8")


def stable_state(value: Any) -> Any:
    """Return a state without values that the kernel adds later."""
    if isinstance(value, dict):
        return {name: stable_state(item) for name, item in value.items() if name not in _LEARNED}
    if isinstance(value, list):
        return [stable_state(item) for item in value if not _by_itself(item)]
    return value


def _by_itself(item: Any) -> bool:
    """Return whether the kernel makes the route.

    This includes the one after duplicate address detection.
    """
    if not isinstance(item, dict):
        return False
    address = str(item.get("dst") or item.get("local") or "")
    local6 = item.get("type") == "local" and ":" in address
    return address.startswith(_BY_ITSELF) or item.get("type") == "anycast" or local6


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Return the differences of two states, one line each."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted({*one, *other}, key=str)
        return [line for key in keys for line in differences(one.get(key), other.get(key), f"{path}.{key}")]
    if isinstance(one, list) and isinstance(other, list):
        gone = [f"{path}: only the first has {item}" for item in one if item not in other]
        return gone + [f"{path}: only the second has {item}" for item in other if item not in one]
    return [] if one == other else [f"{path}: {one} and {other}"]


def settled(value: Any) -> Any:
    """Return the state without addresses that the kernel chose at random."""
    if isinstance(value, dict):
        return {name: settled(item) for name, item in value.items()}
    if isinstance(value, list):
        return sorted((settled(item) for item in value), key=repr)
    return _MAC.sub("MAC", value) if isinstance(value, str) else value


@pytest.mark.parametrize("case", CASES)
def test_plan_and_commands_agree(case: str) -> None:
    before, request = CASES[case]
    with plan_host() as ours:
        ours.do(*before)
        untouched, names = ours.state(), ours.names()
        made = ours.plan(request)
        outcome = run.apply(made.title, made.steps)
        assert outcome.done, outcome
        by_plan, made_names = ours.state(), ours.names()
        assert by_plan != untouched or made_names != names
        entry = next(one for one in journal.history() if one.entry_id == outcome.entry_id)
        assert run.undo(entry).end == "undone"
        assert differences(untouched, ours.state()) == []
        assert ours.names() == names
    with plan_host() as typed:
        typed.do(*before)
        for step in typed.plan(request).steps:
            done = subprocess.run(
                ["bash", "-euc", step.command()], capture_output=True, text=True, check=False
            )
            assert not done.returncode, f"{step.command()}: {done.stderr}"
        assert differences(settled(by_plan), settled(typed.state())) == []
        assert typed.names() == made_names


def test_existing_objects_are_refused() -> None:
    with plan_host() as here:
        here.do(SHOP)
        assert isinstance(plan(SHOP, here.topology()), Refused)
