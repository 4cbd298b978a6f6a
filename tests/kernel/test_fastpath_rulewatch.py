"""What is heard of nftables, and whether the rules may judge otherwise after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from bpf import obstacles
from bpf.rulewatch import RuleWatch
from core.collect.netns import entered
from tests.support.host import ThrowawayHost

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
# Whether the rules must be judged anew after it.
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
def test_after_which_changes_the_rules_are_judged_anew(host: ThrowawayHost, change: str) -> None:
    found = obstacles.find()
    assert not found.reasons
    with closing(RuleWatch()) as watch:
        host.run(["nft", change])
        heard = watch.heard()
    assert (heard.rules or heard.sets) and found.turns(heard) is CHANGES[change]


def test_what_goes_may_take_an_obstacle_away(host: ThrowawayHost) -> None:
    host.run(["nft", "add element inet own verdicts { 10.9.9.9 : jump unknown }"])
    found = obstacles.find()
    assert found.reasons
    with closing(RuleWatch()) as watch:
        host.run(["nft", "delete element inet own verdicts { 10.9.9.9 }"])
        assert found.turns(watch.heard())
    assert not obstacles.find().reasons
