"""Switching on conntrack accounting: plan, apply and undo."""

from __future__ import annotations

import pytest

from core.model import Host, Namespace, Snapshot
from core.operations import SetSysctl, undo_of
from core.operations.executor import Executor
from core.plan import plan
from core.plan.builder import Plan, Refused
from core.plan.requests import CountTraffic
from core.topology import Topology
from tests.support.host import ThrowawayHost

pytestmark = pytest.mark.root
SETTING = "net.netfilter.nf_conntrack_acct"


def planned(host: ThrowawayHost, *namespaces: int) -> Plan | Refused:
    space = Namespace(host.inode, names=(host.name,), entry=f"/run/netns/{host.name}")
    return plan(
        CountTraffic(namespaces), Topology(Snapshot(host=Host(netns=1), namespaces={host.inode: space}))
    )


def test_counting_goes_on_and_off_again(host: ThrowawayHost) -> None:
    host.run(f"sysctl -qw {SETTING}=0")
    made = planned(host, host.inode)
    assert isinstance(made, Plan)
    assert [step.command() for step in made.steps] == [f"ip netns exec {host.name} sysctl -qw {SETTING}=1"]
    for wanted, steps in (("1", made.steps), ("0", undo_of(made.steps))):
        for step in steps:
            assert isinstance(step, SetSysctl)
            with Executor() as executor:
                step.execute(executor)
        assert host.run(f"sysctl -n {SETTING}").strip() == wanted


def test_nothing_to_count_is_refused(host: ThrowawayHost) -> None:
    assert isinstance(planned(host), Refused)
    assert isinstance(planned(host, 12345), Refused)
