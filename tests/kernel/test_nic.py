"""A NIC with all kinds of settings becomes a bridge port, and gets them back."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from core.apply import journal, run
from core.model import link_ref
from core.operations import Operation
from core.operations.executor import Executor
from core.plan import Refused, plan
from core.plan.requests import ChangeLink, CreateNetwork, Delete, RemoveNetwork
from tests.kernel.test_plan_commands import (
    PlanHost,
    differences,
    key,
    plan_host,
    settled,
    stable_state,
    state_directory,
)
from tui.cli import perform

pytestmark = pytest.mark.root
__all__ = ["state_directory"]

# Seconds: each reading and each conversion in the kernel rounds to whole ones.
_ROUNDING = 6
WIRE = CreateNetwork("wire", "nic-bridged", uplink="up0")
# In addition to what `stage` gives up0: settings of DHCP clients, network managers and policy routing.
ADDRESSES = (
    "ip addr add 192.0.2.4/24 label up0:web dev up0",
    "ip addr add 198.51.100.9/25 brd 198.51.100.127 dev up0 valid_lft 3600 preferred_lft 1800",
    "ip addr add 198.51.101.9/25 dev up0 metric 77",
    "ip addr add 198.51.102.9/25 dev up0 noprefixroute",
    "ip addr add 203.0.113.1 peer 203.0.113.2/32 dev up0",
    "ip addr add 2001:db8:3::2/64 dev up0 nodad valid_lft 7200 preferred_lft 3600",
    "ip addr add 2001:db8:4::2/64 dev up0 nodad preferred_lft 0",
)
ROUTES = (
    "ip link add up1 type veth peer name other",
    "ip addr add 10.1.0.2/24 dev up1",
    "ip addr add 2001:db8:9::2/64 dev up1 nodad",
    "ip link set other up",
    "ip link set up1 up",
    "ip route add 198.51.102.0/25 dev up0 proto kernel scope link src 198.51.102.9 metric 100",
    "ip route add default via 192.0.2.1 dev up0 table 100 proto static",
    "ip route add 192.0.2.0/24 dev up0 table 100 scope link",
    "ip route add 10.2.0.0/16 via 192.0.2.7 dev up0 table 4000 metric 9",
    "ip route add 10.3.0.0/16 via 192.0.2.1 dev up0 mtu lock 1400 advmss 1360 rtt 80 rto_min 50 features ecn"
    " congctl reno quickack 1",
    "ip route add 10.4.0.0/16 via 10.99.0.1 dev up0 onlink tos 0x10",
    "ip route add 10.5.0.0/16 proto zebra metric 20 mtu 1300"
    " nexthop via 192.0.2.1 dev up0 weight 3 nexthop via 10.1.0.1 dev up1 weight 2",
    "ip route add 10.6.0.0/16 nexthop via 192.0.2.1 dev up0 nexthop via 192.0.2.8 dev up0",
    "ip route add 10.7.0.0/16 via inet6 2001:db8:2::7 dev up0",
    "ip route add local 10.8.0.0/16 dev up0 table 100",
    "ip -6 route add 2001:db8:a::/48 via 2001:db8:2::7 dev up0 pref high mtu 1400 hoplimit 9",
    "ip -6 route add 2001:db8:b::/48 via 2001:db8:2::7 dev up0 table 100 proto static",
    "ip -6 route add 2001:db8:c::/48"
    " nexthop via 2001:db8:2::7 dev up0 nexthop via 2001:db8:9::7 dev up1 weight 4",
    "ip -6 route add 2001:db8:d::/48 via 2001:db8:2::7 dev up0 expires 5000",
    "ip rule add from 192.0.2.4 lookup 100 priority 900",
    "ip rule add iif up0 lookup 100 priority 901",
)  # fmt: skip


@pytest.fixture
def configured() -> Iterator[PlanHost]:
    with plan_host() as made:
        configure(made)
        yield made


def configure(made: PlanHost) -> None:
    for command in (*ADDRESSES, *ROUTES):
        made.host.run(command)


def read_state(made: PlanHost) -> Any:
    """Return the state, including the routes of other IPv6 tables."""
    more = ("ip -j -d -6 route show table all", "ip -j -d route show table all")
    return made.state() | {command: stable_state(_undated(made.host.json(command))) for command in more}


def _undated(routes: Any) -> Any:
    """Return routes without lifetimes; `lifetimes_of` compares those."""
    return [{name: value for name, value in one.items() if name != "expires"} for one in routes]


def lifetimes_of(made: PlanHost, link: str) -> dict[str, int]:
    """Return the remaining seconds of expiring addresses and routes of a link."""
    found = {}
    for address in made.host.json(f"ip -j -d addr show dev {link}")[0]["addr_info"]:
        for name in ("valid_life_time", "preferred_life_time"):
            if address[name] != 0xFFFFFFFF:
                found[f"{address['local']} {name}"] = address[name]
    for route in made.host.json(f"ip -j -6 route show dev {link}"):
        if route.get("expires"):
            found[route["dst"]] = route["expires"]
    return found


def same_lifetimes(before: dict[str, int], after: dict[str, int], since: float) -> bool:
    """Whether lifetimes are equal, except for the elapsed time and rounding."""
    least = time.monotonic() - since + _ROUNDING
    return before.keys() == after.keys() and all(
        before[name] - least <= after[name] <= before[name] + _ROUNDING for name in before
    )


def settings_of(made: PlanHost, link: str) -> list[str]:
    """Return the host's settings of a link, with the link's name replaced."""
    found: list[str] = []
    for family in ("-4", "-6"):
        for route in made.host.json(f"ip -j -d {family} route show table all"):
            text = json.dumps({**route, "flags": "", "expires": ""}, sort_keys=True)
            if f'"{link}"' in text and not any(word in text for word in ("fe80::", "ff00::", "anycast")):
                found.append(text.replace(f'"{link}"', '"LINK"'))
    ages = ("valid_life_time", "preferred_life_time")
    for address in made.host.json(f"ip -j -d addr show dev {link}")[0]["addr_info"]:
        if not address["local"].startswith("fe80::"):
            plain = {name: value for name, value in address.items() if name not in ages}
            found.append(json.dumps(plain, sort_keys=True).replace(f'"{link}', '"LINK'))
    return sorted(found)


def test_all_settings_are_moved_and_restored(configured: PlanHost) -> None:
    untouched, lifetimes, since = read_state(configured), lifetimes_of(configured, "up0"), time.monotonic()
    by_card = settings_of(configured, "up0")
    assert len(by_card) > 30
    made = configured.plan(WIRE)
    assert made.guarded
    warned = " ".join(made.warnings)
    assert "198.51.100.9/25" in warned and "2001:db8:3::2/64" in warned and "is leased" in warned
    assert "routing rules with priority 901 match up0" in warned
    outcome = run.apply(made.title, made.steps)
    assert outcome.done, outcome
    assert settings_of(configured, "br-wire") == by_card
    assert [one for one in settings_of(configured, "up0") if "local" not in one] == []
    assert same_lifetimes(lifetimes, lifetimes_of(configured, "br-wire"), since)
    assert run.undo(next(journal.history())).end == "undone"
    assert differences(untouched, read_state(configured)) == []
    assert same_lifetimes(lifetimes, lifetimes_of(configured, "up0"), since)


def test_the_printed_commands_do_the_same(configured: PlanHost) -> None:
    for step in configured.plan(WIRE).steps:
        done = subprocess.run(["bash", "-euc", step.command()], capture_output=True, text=True, check=False)
        assert not done.returncode, f"{step.command()}: {done.stderr}"
    typed, lifetimes, since = (
        settled(read_state(configured)),
        lifetimes_of(configured, "br-wire"),
        time.monotonic(),
    )
    with plan_host() as other:
        configure(other)
        other.do(WIRE)
        assert differences(typed, settled(read_state(other))) == []
        assert lifetimes_of(other, "br-wire").keys() == lifetimes.keys()
        assert all(
            abs(seconds - lifetimes[name]) < 60 for name, seconds in lifetimes_of(other, "br-wire").items()
        )
    assert same_lifetimes(lifetimes, lifetimes_of(configured, "br-wire"), since)


def test_removing_the_network_restores_all_settings(configured: PlanHost) -> None:
    by_card, lifetimes, since = (
        settings_of(configured, "up0"),
        lifetimes_of(configured, "up0"),
        time.monotonic(),
    )
    configured.do(WIRE)
    bridged = read_state(configured)
    made = configured.plan(RemoveNetwork("wire"))
    assert run.apply(made.title, made.steps).done
    assert settings_of(configured, "up0") == by_card
    assert same_lifetimes(lifetimes, lifetimes_of(configured, "up0"), since)
    assert run.undo(next(journal.history())).end == "undone"
    assert differences(bridged, read_state(configured)) == []


def test_a_change_refused_half_way_changes_nothing(
    configured: PlanHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    untouched, steps, real = read_state(configured), configured.plan(WIRE).steps, run.execute
    for at in range(2, len(steps), 5):

        def refusing(operation: Operation, kernel: Executor, refused: Operation = steps[at]) -> None:
            if operation == refused:
                raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
            real(operation, kernel)

        monkeypatch.setattr(run, "execute", refusing)
        assert run.apply("bridge up0", steps).end == "undone"
        assert differences(untouched, read_state(configured)) == [], steps[at].command()


def test_two_readings_have_the_same_expiry_times(configured: PlanHost) -> None:
    def addresses() -> Any:
        now = configured.topology()
        return {link.name: link.addresses for link in now.snapshot.nets[now.host].links.values()}["up0"]

    before = addresses()
    assert sum(bool(one.valid_until) for one in before) == 2
    time.sleep(1.1)  # the remaining lifetime has decreased
    assert addresses() == before


def test_a_renewed_lease_does_not_change_the_plan(configured: PlanHost) -> None:
    shown = configured.plan(WIRE)
    configured.host.run(
        "ip addr change 198.51.100.9/25 brd 198.51.100.127 dev up0 valid_lft 9000 preferred_lft 8000"
    )
    now = configured.plan(WIRE)
    assert now.steps != shown.steps and perform.same_steps(now, shown)
    configured.host.run("ip addr del 198.51.100.9/25 dev up0")
    assert not perform.same_steps(configured.plan(WIRE), shown)


@pytest.mark.parametrize("link", ["up1", "other"])
def test_a_link_with_one_of_several_next_hops_is_restored(configured: PlanHost, link: str) -> None:
    untouched = read_state(configured)
    made = configured.plan(lambda now: Delete(link_ref(key(link)(now))))
    assert run.apply(made.title, made.steps).done
    assert "up0" in configured.host.run("ip route show 10.5.0.0/16")
    assert run.undo(next(journal.history())).end == "undone"
    assert differences(untouched, read_state(configured)) == []


def test_setting_a_link_down_loses_no_settings(configured: PlanHost) -> None:
    untouched = read_state(configured)
    made = configured.plan(lambda now: ChangeLink(key("up0")(now), up=False))
    assert run.apply(made.title, made.steps).done
    assert run.undo(next(journal.history())).end == "undone"
    assert differences(untouched, read_state(configured)) == []


@pytest.mark.parametrize(
    ("commands", "reason"),
    [
        (
            ("ip nexthop add id 5 via 192.0.2.1 dev up0", "ip route add 10.9.0.0/16 nhid 5"),
            "vnet-tui couldn't add the route to 10.9.0.0/16 (nhid 5) again",
        ),
        (
            ("ip route add 10.9.0.0/16 via 192.0.2.1 dev up0 realms 3/4",),
            "vnet-tui couldn't add the route to 10.9.0.0/16 (realms 3/4) again",
        ),
        (
            ("ip link add mv0 link up0 type macvlan",),
            "the kernel refuses to attach up0 to a bridge because of the macvlan mv0 in host",
        ),
    ],
)
def test_settings_that_cannot_be_moved_are_refused(commands: tuple[str, ...], reason: str) -> None:
    with plan_host() as here:
        for command in commands:
            here.host.run(command)
        refused = plan(WIRE, here.topology())
        assert isinstance(refused, Refused)
        assert any(reason in one for one in refused.reasons), refused.reasons


def test_a_label_too_long_for_the_bridge_is_reported() -> None:
    with plan_host() as here:
        here.host.run("ip addr add 192.0.2.4/24 label up0:webshop dev up0")
        made = here.plan(CreateNetwork("longername", "nic-bridged", uplink="up0"))
        assert any("loses its label up0:webshop" in one for one in made.warnings)
        untouched = here.state()
        assert run.apply(made.title, made.steps).done
        assert run.undo(next(journal.history())).end == "undone"
        assert differences(untouched, here.state()) == []


VLANS = (
    "bridge vlan del dev port0 vid 1",
    "bridge vlan add dev port0 vid 7 pvid untagged",
    "bridge vlan add dev port0 vid 20-30",
    "bridge vlan add dev port1 vid 1",
    "bridge vlan add dev br0 vid 40-41 self",
)


@pytest.fixture
def switched() -> Iterator[PlanHost]:
    """A VLAN-aware bridge with two ports that have VLANs of their own."""
    with plan_host() as made:
        made.host.run("ip link add br0 type bridge vlan_filtering 1")
        for number in (0, 1):
            made.host.run(f"ip link add port{number} type veth peer name far{number}")
            made.host.run(f"ip link set port{number} master br0 up")
        for command in VLANS:
            made.host.run(command)
        yield made


def both_ways(made: PlanHost, request: Any) -> None:
    """Apply and undo, then apply by the printed commands: the same result each time."""
    untouched = made.state()
    plan_made = made.plan(request)
    assert run.apply(plan_made.title, plan_made.steps).done
    by_plan = made.state()
    assert run.undo(next(journal.history())).end == "undone"
    assert differences(untouched, made.state()) == []
    for step in made.plan(request).steps:
        subprocess.run(["bash", "-euc", step.command()], check=True, capture_output=True)
    assert differences(by_plan, made.state()) == []


@pytest.mark.kernel_has("bridge_vlans")
@pytest.mark.parametrize("link", ["port0", "port1", "far0", "br0"])
def test_vlans_of_ports_are_restored(switched: PlanHost, link: str) -> None:
    both_ways(switched, lambda now: Delete(link_ref(key(link)(now))))


@pytest.mark.kernel_has("bridge_vlans")
def test_a_bridge_with_another_default_vlan_is_restored(switched: PlanHost) -> None:
    for command in (
        "ip link set br0 type bridge vlan_filtering 0",
        "ip link set br0 type bridge vlan_default_pvid 5",
        "ip link set br0 type bridge vlan_filtering 1",
    ):
        switched.host.run(command)
    both_ways(switched, lambda now: Delete(link_ref(key("br0")(now))))


@pytest.mark.kernel_has("bridge_vlans")
def test_vlans_of_the_nic_are_restored() -> None:
    with plan_host() as here:
        here.do(CreateNetwork("wire", "nic-bridged", uplink="up0", vlan_filtering=True))
        for command in ("bridge vlan add dev up0 vid 7", "bridge vlan add dev br-wire vid 7 self"):
            here.host.run(command)
        both_ways(here, RemoveNetwork("wire"))
