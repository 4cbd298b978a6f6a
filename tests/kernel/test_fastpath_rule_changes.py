"""Changes of nftables, and whether the rules need another analysis."""

from __future__ import annotations

import select
from collections.abc import Iterator
from contextlib import closing

import pytest

from bpf import preconditions
from bpf.hostwatch import RuleWatch
from bpf.preconditions import RuleReader
from bpf.ruleset import RuleCache, read_rules, reread
from core.netlink.netns import entered
from tests.support.host import ThrowawayHost
from tests.support.waiting import wait_until

pytestmark = pytest.mark.root

_RULES = """
table inet own {
    map verdicts { type ipv4_addr : verdict; elements = { 10.1.1.1 : jump known }; }
    map states { type ct_state : verdict; elements = { invalid : drop, established : jump known }; }
    map marks { type ipv4_addr : mark; }
    set blocked { type ipv4_addr; }
    set other { type ipv4_addr; }
    chain known { counter; }
    chain unknown { limit rate 1/second accept; }
    chain forward {
        type filter hook forward priority 0;
        ip saddr @blocked drop
        ip saddr vmap @verdicts
        ct state vmap @states
    }
}
"""
# Whether the rules need another analysis after it.
CHANGES = {
    "add element inet own blocked { 10.9.9.9 }": False,
    "add element inet own other { 10.9.9.9 }": False,
    "add element inet own marks { 10.9.9.9 : 7 }": False,
    "add element inet own verdicts { 10.9.9.9 : drop }": False,
    "add element inet own verdicts { 10.9.9.9 : accept }": False,
    "add element inet own verdicts { 10.9.9.9 : return }": False,
    "add element inet own verdicts { 10.9.9.9 : jump known }": False,
    "add element inet own verdicts { 10.9.9.9 : jump unknown }": True,
    "add element inet own verdicts { 10.9.9.9 : goto unknown }": True,
    "delete element inet own verdicts { 10.1.1.1 }": False,
    "add element inet own states { new : drop }": False,
    "add element inet own states { new : jump unknown }": True,
    "delete element inet own states { established }": True,
    "delete element inet own states { invalid }": True,
    "add rule inet own known drop": True,
    "add set inet own more { type ipv4_addr; }": True,
    "add element inet own blocked { 10.9.9.9 }; add rule inet own known drop": True,
}


@pytest.fixture
def host() -> Iterator[ThrowawayHost]:
    made = ThrowawayHost()
    try:
        made.run(["nft", _RULES])
        with entered(f"/run/netns/{made.name}"):
            yield made
    finally:
        made.close()


@pytest.mark.parametrize("change", CHANGES)
def test_which_changes_need_another_analysis(host: ThrowawayHost, change: str) -> None:
    found = preconditions.read_preconditions()
    assert not found.reasons
    with closing(RuleWatch()) as watch:
        host.run(["nft", change])
        events = watch.read_events()
    assert (events.rules or events.chains or events.sets) and found.needs_analysis(events) is CHANGES[change]


def test_a_removed_rule_may_end_a_pause(host: ThrowawayHost) -> None:
    host.run(["nft", "add element inet own verdicts { 10.9.9.9 : jump unknown }"])
    found = preconditions.read_preconditions()
    assert found.reasons
    with closing(RuleWatch()) as watch:
        host.run(["nft", "delete element inet own verdicts { 10.9.9.9 }"])
        assert found.needs_analysis(watch.read_events())
    assert not preconditions.read_preconditions().reasons


CHAINS = (
    "add rule inet own known ip saddr 10.9.9.9 drop",
    "insert rule inet own forward ip saddr 10.9.9.9 limit rate 1/second drop",
    "flush chain inet own forward",
    "add rule inet own closed ip saddr @blocked accept",
    "flush chain inet own closed",
)


@pytest.mark.parametrize("change", CHAINS)
def test_reading_changed_chains_gives_the_same_as_reading_all(host: ThrowawayHost, change: str) -> None:
    closed = "chain inet own closed { type filter hook forward priority 1; policy drop; }"
    host.run(["nft", f"add {closed}; add rule inet own closed accept"])
    host.run("iptables -A FORWARD -s 10.9.9.9 -j ACCEPT")
    cache = RuleCache()
    before = read_rules(cache=cache)
    with closing(RuleWatch()) as watch:
        for command in (["nft", change], "iptables -I FORWARD -s 10.9.9.8 -j DROP"):
            host.run(command)
        events = watch.read_events()
    assert len(events.chains) == 2 and not events.rules
    assert reread(before, events.chains, cache) == read_rules(cache=RuleCache()) != before


def test_unused_verdict_maps_are_read_before_a_rule_uses_them(host: ThrowawayHost) -> None:
    host.run(["nft", "add map inet own fresh { type ipv4_addr : verdict; }"])
    reading = RuleReader()
    assert not reading.read_now(None).reasons and reading.is_partial
    with closing(RuleWatch()) as watch:
        for change in ("add element inet own fresh { 10.9.9.9 : jump unknown }",
                       "add rule inet own forward ip saddr vmap @fresh"):  # fmt: skip
            host.run(["nft", change])
            reading.note_changes(watch.read_events())
    assert not reading.is_partial
    reading.start(None)
    wait_until(lambda: select.select([reading], [], [], 0)[0], "the reading")
    found = reading.result()
    assert found and "limit" in found.reasons[0]
