"""Tuning: plan and printed commands agree, undo is complete, settings work."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from core.apply import journal, run
from core.collect.snapshot import read_snapshot
from core.model import LinkKey, Part
from core.netlink.netns import entered
from core.plan import Plan, Refused, plan
from core.plan.requests import CreateContainer, CreateNetwork, Detach, RemoveNetwork, Tune
from core.plan.tuning import USUAL_SIZE, TuningState, tuned
from core.topology import Topology
from tests.kernel import test_plan_commands as agree
from tests.kernel.test_plan_commands import (
    BOTH,
    LOG,
    SHOP,
    WEB,
    PlanHost,
    differences,
    key,
    plan_host,
    settled,
    state_directory,
)
from tests.support.state import state
from tests.support.waiting import PATIENCE, eventually

pytestmark = pytest.mark.root
__all__ = ["state_directory"]  # a fixture of every test here

PARTS = (Part.NAMESPACES, Part.LINKS, Part.FIREWALL, Part.CONTAINERS, Part.TUNING)
LOG_ON_SHOP = CreateContainer(LOG, "bridged", "shop")
SHOP_AND_LOG = (*BOTH[:3], LOG_ON_SHOP)
_BRIDGE_SYSCTLS = ("net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables")

# Names in ip-link(8), and the fields of PacketSizes.
SIZES = {
    "gso_max_size": "gso",
    "gro_max_size": "gro",
    "gso_ipv4_max_size": "gso_ipv4",
    "gro_ipv4_max_size": "gro_ipv4",
    "tso_max_size": "tso",
}

CASES: dict[str, dict[str, Any]] = {
    "big-tcp": {"big_tcp": USUAL_SIZE},
    "offloads-off": {"offloads": False},
    "offloads-on": {"offloads": True},
    "br-netfilter-off": {"br_netfilter": False},
    "rps": {"rps": "1"},
    "all-at-once": {"big_tcp": 131072, "offloads": False, "br_netfilter": False, "rps": "all"},
}


@dataclass
class Tuning(PlanHost):
    """The host of test_plan_commands.py with tuning settings in its state."""

    def topology(self) -> Topology:
        return Topology(read_snapshot(PARTS))

    def bridge(self) -> LinkKey:
        return key("br-shop")(self.topology())

    def tuned(self) -> TuningState:
        now = self.topology()
        link = now.snapshot.link(self.bridge())
        assert link
        return tuned(now, link)

    def state(self) -> dict[str, Any]:
        names = {"host": self.host.name, "web": WEB, "log": LOG}
        states = state(names.values())
        return {
            short: agree.stable_state(states[name]) | namespace_settings(name)
            for short, name in names.items()
            if name in states
        }


def namespace_settings(name: str) -> dict[str, Any]:
    """Return offloads, steering and br_netfilter of a namespace by the system's tools."""
    inside = ["ip", "netns", "exec", name]
    links = json.loads(output_of([*inside, "ip", "-j", "link"]))
    features = (json.loads(output_of([*inside, "ethtool", "--json", "-k", one["ifname"]])) for one in links)
    steering = output_of([*inside, "sh", "-c", "grep -r . /sys/class/net/*/queues/rx-*/rps_cpus"])
    return {
        "features": {one[0].pop("ifname"): one[0] for one in features},
        "steering": sorted(steering.split()),
        "bridged": output_of([*inside, "sysctl", *_BRIDGE_SYSCTLS]),
    }


def output_of(words: list[str]) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


@contextmanager
def tuning_host() -> Iterator[Tuning]:
    with plan_host() as here:
        made = Tuning(here.host)
        made.do(*SHOP_AND_LOG)
        yield made


def run_shell(command: str) -> None:
    """Run a command with /sys of the host's namespace."""
    words = ["unshare", "-m", "sh", "-euc", 'mount -t sysfs sysfs /sys; exec bash -euc "$0"', command]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert not done.returncode, f"{command}: {done.stderr}"


@pytest.mark.parametrize("case", CASES)
def test_plan_and_commands_agree(case: str) -> None:
    with tuning_host() as ours:
        untouched = ours.state()
        made = ours.plan(Tune(ours.bridge(), **CASES[case]))
        outcome = run.apply(made.title, made.steps)
        assert outcome.done, outcome
        by_plan = ours.state()
        assert by_plan != untouched
        assert isinstance(plan(Tune(ours.bridge(), **CASES[case]), ours.topology()), Refused)
        entry = next(one for one in journal.history() if one.entry_id == outcome.entry_id)
        assert run.undo(entry).end == "undone"
        assert differences(untouched, ours.state()) == []
        for step in made.steps:
            run_shell(step.command())
        assert differences(settled(by_plan), settled(ours.state())) == []


@contextmanager
def unnamed_process(here: Tuning) -> Iterator[str]:
    """Attach a process in an unnamed namespace to br-shop; yields its pid."""
    words = ["unshare", "-n", "sh", "-c", "echo there; exec sleep 100"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout and process.stdout.readline() == "there\n"
            here.host.run(f"ip link add v-{os.getpid()} type veth peer name eth0 netns {process.pid}")
            here.host.run(f"ip link set v-{os.getpid()} master br-shop up")
            yield str(process.pid)
        finally:
            process.kill()
    # The kernel removes a namespace and its veth pair some time after its last process.
    assert eventually(lambda: f"v-{os.getpid()}" not in here.host.run("ip -br link"))


def settings_of_eth0(pid: str) -> tuple[Any, ...]:
    """Return sizes, offloads and steering of eth0 in the namespace of a process."""
    inside = ["nsenter", "-t", pid, "-n"]
    (link,) = json.loads(output_of([*inside, "ip", "-j", "-d", "link", "show", "dev", "eth0"]))
    (features,) = json.loads(output_of([*inside, "ethtool", "--json", "-k", "eth0"]))
    read = "mount -t sysfs sysfs /sys; cat /sys/class/net/eth0/queues/rx-*/rps_cpus"
    steering = output_of([*inside, "unshare", "-m", "sh", "-c", read])
    return [link[word] for word in SIZES], features, steering


def test_a_container_without_a_name_is_reached_by_its_process() -> None:
    with tuning_host() as here, unnamed_process(here) as pid:
        before = settings_of_eth0(pid)
        made = here.plan(Tune(here.bridge(), 131072, False, rps="1"))
        outcome = run.apply(made.title, made.steps)
        assert outcome.done, outcome
        by_plan = settings_of_eth0(pid)
        assert all(one != other for one, other in zip(before, by_plan, strict=True))
        entry = next(one for one in journal.history() if one.entry_id == outcome.entry_id)
        assert run.undo(entry).end == "undone"
        assert settings_of_eth0(pid) == before
        for step in made.steps:
            run_shell(step.command())
        assert settings_of_eth0(pid) == by_plan


def test_an_undo_skips_removed_links() -> None:
    with tuning_host() as here:
        before = here.state()["log"]
        with unnamed_process(here):
            made = here.plan(Tune(here.bridge(), 131072, False, rps="1"))
            outcome = run.apply(made.title, made.steps)
            assert outcome.done and here.state()["log"] != before
        entry = next(one for one in journal.history() if one.entry_id == outcome.entry_id)
        assert run.undo(entry).end == "undone"
        assert differences(before, here.state()["log"]) == []


def test_sizes_are_read_as_ip_prints_them() -> None:
    with tuning_host() as here:
        here.host.run(f"ip link set v-{WEB} gso_max_size 70000 gro_max_size 80000")
        here.host.run(f"ip link set v-{WEB} gso_ipv4_max_size 90000 gro_ipv4_max_size 100000")
        link = here.topology().snapshot.link(key(f"v-{WEB}")(here.topology()))
        (shown,) = here.host.json(f"ip -j -d link show dev v-{WEB}")
        assert link
        assert {word: getattr(link.sizes, field) for word, field in SIZES.items()} == {
            word: shown[word] for word in SIZES
        }
        before = here.state()
        made = here.plan(Tune(here.bridge(), USUAL_SIZE))
        outcome = run.apply(made.title, made.steps)
        entry = next(one for one in journal.history() if one.entry_id == outcome.entry_id)
        assert here.tuned().big_tcp == USUAL_SIZE
        assert run.undo(entry).end == "undone"
        assert differences(before, here.state()) == []


def all_sizes(here: Tuning) -> dict[tuple[str, str], list[Any]]:
    """Return the sizes of every link by namespace and name."""
    return {
        (place, name): [link.get(word) for word in SIZES]
        for place, state in here.state().items()
        for name, link in state["links"].items()
    }


@pytest.mark.parametrize("goes", ["network", "attachment"])
def test_sizes_are_restored_with_removed_links(goes: str) -> None:
    with tuning_host() as here:
        here.do(Tune(here.bridge(), USUAL_SIZE))
        before = all_sizes(here)
        made = here.plan(RemoveNetwork("shop") if goes == "network" else Detach(WEB, "shop"))
        outcome = run.apply(made.title, made.steps)
        assert outcome.done, outcome
        entry = next(one for one in journal.history() if one.entry_id == outcome.entry_id)
        assert run.undo(entry).end == "undone"
        assert all_sizes(here) == before


def address_of(name: str, family: int = 4) -> str:
    words = ["ip", "-n", name, "-j", f"-{family}", "addr", "show", "dev", "eth0", "scope", "global"]
    return str(json.loads(output_of(words))[0]["addr_info"][0]["local"])


def send_bulk(sender: str, receiver: str, family: int) -> None:
    """Send 16 MiB over TCP from one container to the other."""
    with entered(f"/run/netns/{receiver}"):
        server = socket.create_server(("::", 5001), family=socket.AF_INET6, dualstack_ipv6=True)
    with server:
        with entered(f"/run/netns/{sender}"):
            caller = socket.create_connection((address_of(receiver, family), 5001), timeout=PATIENCE)
        answering, _ = server.accept()
        with caller, answering:
            drain = subprocess.Popen(["cat"], stdin=answering.fileno(), stdout=subprocess.DEVNULL)
            caller.sendall(b"\0" * (1 << 24))
            caller.shutdown(socket.SHUT_WR)
            assert drain.wait(PATIENCE) == 0


def large_packets(here: Tuning) -> int:
    (counter,) = (
        item["counter"]
        for one in here.host.json("nft -j list chain bridge watch forward")["nftables"]
        for item in one.get("rule", {}).get("expr", [])
        if "counter" in item
    )
    return int(counter["packets"])


@pytest.mark.parametrize("family", [4, 6])
def test_large_packets_cross_the_bridge(family: int) -> None:
    with tuning_host() as here:
        here.host.run("nft add table bridge watch")
        here.host.run(["nft", "add chain bridge watch forward { type filter hook forward priority 0; }"])
        here.host.run("nft add rule bridge watch forward meta length > 65549 counter")
        send_bulk(WEB, LOG, family)
        assert not large_packets(here)
        here.do(Tune(here.bridge(), USUAL_SIZE))
        send_bulk(WEB, LOG, family)
        assert large_packets(here)


def reaches(sender: str, receiver: str, seconds: int = 20) -> bool:
    """Whether a ping is answered in that time; it ends with the first answer."""
    words = ["ip", "netns", "exec", sender, "ping", "-c1", f"-w{seconds}", address_of(receiver)]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def test_without_br_netfilter_rules_between_containers_stop_working() -> None:
    with tuning_host() as here:
        here.do(CreateNetwork("other", "internal", (f"10.96.{agree.N}.0/24",)))
        here.host.run("nft add table ip theirs")
        here.host.run(["nft", "add chain ip theirs forward { type filter hook forward priority 0; }"])
        here.host.run("nft add rule ip theirs forward iifname br-shop oifname br-shop drop")
        assert here.tuned().br_netfilter and not reaches(WEB, LOG, 1)
        made = here.plan(Tune(here.bridge(), br_netfilter=False))
        text = " ".join(made.warnings)
        assert "no longer sees packets between containers of br-shop" in text
        assert 'iifname "br-shop" oifname "br-shop" drop' in text
        outcome = run.apply(made.title, made.steps)
        assert outcome.done and not here.tuned().br_netfilter and reaches(WEB, LOG)
        now = here.topology()
        other = now.snapshot.link(key("br-other")(now))
        assert other and tuned(now, other).br_netfilter
        again = here.plan(Tune(here.bridge(), br_netfilter=True))
        assert "pass the host's firewall" in " ".join(again.warnings)
        assert run.apply(again.title, again.steps).done
        assert here.tuned().br_netfilter and not reaches(WEB, LOG, 1)


def online() -> list[int]:
    """Return the online CPUs, from lscpu(1)."""
    output = json.loads(output_of(["lscpu", "--json", "--online", "--extended=CPU"]))
    return [int(one["cpu"]) for one in output["cpus"]]


def test_masks_are_those_of_the_kernel() -> None:
    with tuning_host() as here:
        assert here.tuned().rps == "off"
        here.do(Tune(here.bridge(), rps="all"))
        every = sum(1 << cpu for cpu in online())
        assert int((here.tuned().rps or "").replace(",", ""), 16) == every
        made = here.plan(Tune(here.bridge(), rps="off"))
        assert isinstance(made, Plan) and {step.cpus for step in made.steps} == {"0"}  # type: ignore[attr-defined]


def test_only_bridges_are_tuned() -> None:
    with plan_host() as here:
        made = Tuning(here.host)
        made.do(SHOP)
        found = plan(Tune(key("up0")(made.topology()), 131072), made.topology())
        assert isinstance(found, Refused) and found.reasons == ("can't tune up0: up0 isn't a bridge",)
