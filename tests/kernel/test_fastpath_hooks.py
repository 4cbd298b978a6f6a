"""Other programs at netfilter hooks: they are named, and drop accelerated packets."""

from __future__ import annotations

import os
import shlex
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bpf import hooks, syscall
from core.netlink.client import ROUTE, Netlink, attribute
from core.netlink.netns import entered
from tests.kernel.fastlab import V4, FastLab
from tests.kernel.streams import Stream, is_fast, talks_fast
from tests.support.fastpath import FastPath, Talk
from tests.support.host import ThrowawayHost
from tests.support.netfilter_bpf import dropping_all_that_is_forwarded
from tests.support.waiting import eventually

pytestmark = pytest.mark.root


@pytest.mark.kernel_has("bpf_netfilter")
def test_a_bpf_program_at_a_netfilter_hook_drops_packets(lab: FastLab) -> None:
    with Stream(lab, "a", "far", V4["far"]) as flow:
        assert flow.flows()
        assert is_fast(lab, "v-a", "up0")
        with dropping_all_that_is_forwarded(lab.host.name):
            assert flow.is_cut(flow.there)
            if lab.fast:
                (reason,) = lab.fast.status()["reasons"]
                assert "BPF program at a netfilter hook" in reason
        assert flow.flows()
        assert is_fast(lab, "v-a", "up0")


@pytest.mark.kernel_has("bpf_netfilter", "nfnetlink_hook")
def test_a_bpf_program_in_another_namespace_does_not_pause_it(lab: FastLab) -> None:
    """The kernel lists hooks by network namespace, unlike BPF links."""
    with (
        Talk(lab.host, "a", "far", V4["far"]) as talk,
        dropping_all_that_is_forwarded(lab.host.full("c")),
        entered(f"/run/netns/{lab.host.name}"),
    ):
        assert hooks.foreign_hooks() == ()
        assert talks_fast(lab, talk, "v-a", "up0")
        with dropping_all_that_is_forwarded(lab.host.name):
            (found,) = hooks.foreign_hooks()
            assert "nf_hook_run_bpf" in found


@pytest.mark.kernel_has("nfnetlink_hook")
def test_hook_functions_at_links_are_found(tmp_path: Path) -> None:
    """Chains of nftables stand in for a function of an unknown module."""
    unknown = "import re; from bpf import hooks; hooks._KNOWN_AT_LINKS = re.compile('none')"
    with FastLab() as lab, changed_daemon(lab, tmp_path, unknown) as fast:
        assert set(fast.status()["refused"]) == set()
        lab.run("nft add table netdev t")
        lab.run(["nft", "add chain netdev t in { type filter hook ingress device v-a priority 0; }"])
        lab.run(["nft", "add chain netdev t out { type filter hook egress device up0 priority 0; }"])
        assert eventually(lambda: set(fast.status()["refused"]) == {"v-a", "up0"})
        refused = fast.status()["refused"]
        assert "at its ingress" in refused["v-a"] and "at its egress" in refused["up0"]
        lab.run("nft delete table netdev t")
        assert eventually(lambda: not fast.status()["refused"])


def test_chains_of_nftables_at_links_are_analysed_by_their_rules(lab: FastLab) -> None:
    lab.run("nft add table netdev t")
    for place, link in (("ingress", "v-a"), ("egress", "up0")):
        lab.run(
            ["nft", f"add chain netdev t {place} {{ type filter hook {place} device {link} priority 0; }}"]
        )
    with Stream(lab, "a", "far", V4["far"]) as flow:
        assert flow.flows()
        assert is_fast(lab, "v-a", "up0")
        lab.run("nft add rule netdev t ingress udp dport 6000 drop")
        assert flow.is_cut(flow.there)


_CHANGED = """
import sys
from bpf import {module}
{change}
sys.exit({module}.main(sys.argv[{skipped}:]))
"""


@contextmanager
def changed_daemon(lab: FastLab, folder: Path, change: str) -> Iterator[FastPath]:
    """Start the fast path of a lab after a line of Python that changes its process."""
    python = folder / "python"  # stands in for the interpreter: `python -P -m bpf.daemon TARGET...`
    code = _CHANGED.format(module="daemon", change=change, skipped=4)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -c {shlex.quote(code)} "$@"\n')
    python.chmod(0o755)
    supervisor = _CHANGED.format(module="supervisor", change=f"sys.executable = {str(python)!r}", skipped=1)
    with FastPath(lab.host, "all", run=["-c", supervisor]) as fast:
        lab.fast = fast
        assert eventually(fast.is_on), fast.status()
        yield fast


def _drop_from(ifindex: int) -> bytes:
    """Return a tc program that drops packets by __sk_buff.ingress_ifindex."""
    return b"".join(
        struct.pack("<BBhi", code, registers, offset, value)
        for code, registers, offset, value in (
            (0x61, 0x10, 36, 0), (0x55, 0, 2, ifindex), (0xB7, 0, 0, 2), (0x95, 0, 0, 0),
            (0xB7, 0, 0, -1), (0x95, 0, 0, 0),
        )
    )  # fmt: skip


# Commands of tc(8) for each place, and its number. A class is asked for filters if one of the queue leads
# to it.
_PLACES = {
    "clsact": (("qdisc replace dev up0 clsact",), 0xFFFFFFF3),  # it is there where our program sits at it
    "a queue": (("qdisc add dev up0 root handle 1: htb default 1",), 1 << 16),
    "a class": (
        (
            "qdisc add dev up0 root handle 1: htb default 1",
            "class add dev up0 parent 1: classid 1:1 htb rate 10gbit",
            "class add dev up0 parent 1:1 classid 1:2 htb rate 10gbit",
            "filter add dev up0 parent 1: protocol all prio 9 u32 match u32 0 0 flowid 1:1",
        ),
        1 << 16 | 1,
    ),
}


@contextmanager
def at_egress(lab: FastLab, by: str, program: int, ifindex: int) -> Iterator[None]:
    """Attach the program to the egress of up0 while the body runs; then close it."""
    held = -1
    commands, parent = _PLACES.get(by, ((), 0))
    with entered(f"/run/netns/{lab.host.name}"):
        for each in commands:
            lab.run(f"tc {each}")
        if commands:
            _add_filter(program, ifindex, parent)
        else:
            held = syscall.attach_tcx(program, ifindex, syscall.TCX_EGRESS)
    try:
        yield
    finally:
        if commands:
            lab.run(f"tc {'filter del dev up0 egress' if by == 'clsact' else 'qdisc del dev up0 root'}")
        else:
            os.close(held)
        os.close(program)


def _add_filter(program: int, ifindex: int, parent: int) -> None:
    """Run the equivalent of tc filter add ... bpf direct-action, by a descriptor."""
    options = attribute(6, struct.pack("=I", program)) + attribute(7, b"drop\0")
    info = 5 << 16 | socket.htons(3)  # priority, ETH_P_ALL
    body = struct.pack("=BxxxiIII", 0, ifindex, 0, parent, info) + attribute(1, b"bpf\0")
    with Netlink(ROUTE) as kernel:
        kernel.request(44, body + attribute(2, options + attribute(8, struct.pack("=I", 1))), 0x600)


@pytest.mark.parametrize("by", [pytest.param("tcx", marks=pytest.mark.kernel_has("tcx")), *_PLACES])
def test_an_egress_filter_sees_packets_as_without_the_fast_path(lab: FastLab, by: str) -> None:
    """It sees the bridge as input link, as in the kernel, not the container's link."""
    (bridge,) = lab.host.json("ip -j link show docker0")
    (uplink,) = lab.host.json("ip -j link show up0")
    program = syscall.load_program(syscall.PROG_SCHED_CLS, _drop_from(bridge["ifindex"]), "drop")
    with Stream(lab, "a", "far", V4["far"]) as flow:
        assert flow.flows()
        assert is_fast(lab, "v-a", "up0")
        with at_egress(lab, by, program, uplink["ifindex"]):
            assert flow.is_cut(flow.there)
            if lab.fast:
                assert "at its egress" in lab.fast.status()["refused"]["up0"]
        assert flow.flows()
        assert is_fast(lab, "v-a", "up0")


def test_hook_functions_of_the_kernels_modules_are_known(lab: FastLab) -> None:
    """Conntrack, translation, nftables, both kinds of iptables and br_netfilter."""
    lab.run("iptables-legacy -t mangle -A FORWARD -s 198.51.100.77 -j DROP")
    lab.run("nft add table inet t")
    lab.run(["nft", "add chain inet t c { type filter hook forward priority 0; }"])
    with entered(f"/run/netns/{lab.host.name}"):
        assert hooks.foreign_hooks() == ()
    with Talk(lab.host, "a", "far", V4["far"]) as talk:
        assert talks_fast(lab, talk, "v-a", "up0")


def test_selinux_hooks_are_known_only_without_labels(
    inside_host: ThrowawayHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel reports NetLabel's labels only in its first network namespace."""
    assert hooks.may_label()
    assert not hooks._is_known("selinux_ip_forward")
    monkeypatch.setattr(hooks, "_LISTS", {})
    assert hooks._is_known("selinux_ip_forward")


@pytest.mark.parametrize("direction", ["out", "fwd"])
def test_a_blocking_ipsec_policy_stops_a_flow(lab: FastLab, direction: str) -> None:
    source = V4["a"] if direction == "fwd" else "0.0.0.0/0"
    with Stream(lab, "a", "far", V4["far"]) as flow:
        assert flow.flows()
        assert is_fast(lab, "v-a", "up0")
        lab.run(f"ip xfrm policy add src {source} dst {V4['far']} dir {direction} action block")
        assert flow.is_cut(flow.there)
        if lab.fast:
            assert eventually(lambda: "IPsec" in "".join(lab.fast.status()["reasons"]))
        lab.run("ip xfrm policy flush")
        assert flow.flows()
        assert is_fast(lab, "v-a", "up0")


def test_new_ipsec_policies_cause_a_pause(tmp_path: Path) -> None:
    """The kernel sends an event: a process that never polls pauses too."""
    with (
        FastLab() as lab,
        changed_daemon(lab, tmp_path, "daemon.POLL_EVERY = 1e6") as fast,
        Stream(lab, "a", "far", V4["far"]) as flow,
    ):
        assert flow.flows()
        assert is_fast(lab, "v-a", "up0")
        lab.run(f"ip xfrm policy add src 0.0.0.0/0 dst {V4['far']} dir out action block")
        assert flow.is_cut(flow.there)
        assert eventually(lambda: "IPsec" in "".join(fast.status()["reasons"]))
        lab.run("ip xfrm policy flush")
        assert flow.flows()
        assert is_fast(lab, "v-a", "up0")
