"""Others at netfilter's hooks: a BPF program that drops forwarded packets drops those of accelerated
connections as well, and is named."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from bpf import hooks, syscall
from core.collect.netlink import ROUTE, Netlink, attribute
from core.collect.netns import entered
from tests.kernel.fastlab import V4, FastLab
from tests.kernel.streams import Stream, is_fast, talks_fast
from tests.support.fastpath import Talk
from tests.support.waiting import eventually

pytestmark = pytest.mark.root
_PROG_LOAD, _LINK_CREATE = 5, 28
_NETFILTER, _AT_NETFILTER = 32, 45  # BPF_PROG_TYPE_NETFILTER, BPF_NETFILTER: Linux 6.4
_FORWARD, _IPV4 = 2, 2
_RETURN_0 = struct.pack("<BBhi", 0xB7, 0, 0, 0) + struct.pack("<BBhi", 0x95, 0, 0, 0)  # NF_DROP


def _drop_program() -> int:
    code, licence = np.frombuffer(_RETURN_0, np.uint8), ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack(
        "<IIQQIIQII16sII", _NETFILTER, 2, code.ctypes.data, ctypes.addressof(licence), 0, 0, 0, 0, 0,
        b"drop", 0, _AT_NETFILTER,
    )  # fmt: skip
    return syscall.bpf(_PROG_LOAD, attributes)


@contextmanager
def dropping_all_that_is_forwarded(lab: FastLab) -> Iterator[None]:
    """A BPF program at the forward hook of IPv4, as long as the body runs."""
    program = _drop_program()
    with entered(f"/run/netns/{lab.host.name}"):
        link = syscall.bpf(
            _LINK_CREATE, struct.pack("<IIIIIIiI", program, 0, _AT_NETFILTER, 0, _IPV4, _FORWARD, 17, 0)
        )
    try:
        yield
    finally:
        os.close(link)
        os.close(program)


def test_a_bpf_program_at_a_hook_drops_as_without_the_fast_path(lab: FastLab) -> None:
    try:
        os.close(_drop_program())
    except OSError as error:
        pytest.skip(f"this kernel has no BPF programs at netfilter's hooks: {error.strerror}")
    with Stream(lab, "a", "far", V4["far"]) as flow:
        assert flow.flows()
        assert is_fast(lab, "v-a", "up0")
        with dropping_all_that_is_forwarded(lab):
            assert flow.is_cut(flow.there)
            if lab.fast:
                (reason,) = lab.fast.status()["reasons"]
                assert "BPF program at a netfilter hook" in reason
        assert flow.flows()
        assert is_fast(lab, "v-a", "up0")


def _drop_from(ifindex: int) -> bytes:
    """A program for tc that drops what came in by that link (__sk_buff.ingress_ifindex)."""
    return b"".join(
        struct.pack("<BBhi", code, registers, offset, value)
        for code, registers, offset, value in (
            (0x61, 0x10, 36, 0), (0x55, 0, 2, ifindex), (0xB7, 0, 0, 2), (0x95, 0, 0, 0),
            (0xB7, 0, 0, -1), (0x95, 0, 0, 0),
        )
    )  # fmt: skip


# tc's words for a place, and its number.
_PLACES = {"clsact": ("clsact", 0xFFFFFFF3), "a queue": ("root handle 1: htb default 1", 1 << 16)}


@contextmanager
def at_egress(lab: FastLab, by: str, program: int, ifindex: int) -> Iterator[None]:
    """The program at the egress of up0, as long as the body runs; its descriptor is closed at the end."""
    held = -1
    qdisc, parent = _PLACES.get(by, ("", 0))
    with entered(f"/run/netns/{lab.host.name}"):
        if qdisc:
            lab.run(f"tc qdisc add dev up0 {qdisc}")
            _add_filter(program, ifindex, parent)
        else:
            held = syscall.attach_tcx(program, ifindex, syscall.TCX_EGRESS)
    try:
        yield
    finally:
        if qdisc:
            lab.run(f"tc qdisc del dev up0 {qdisc.split()[0]}")
        else:
            os.close(held)
        os.close(program)


def _add_filter(program: int, ifindex: int, parent: int) -> None:
    """tc filter add ... bpf direct-action, by a descriptor."""
    options = attribute(6, struct.pack("=I", program)) + attribute(7, b"drop\0")
    info = 5 << 16 | socket.htons(3)  # priority, ETH_P_ALL
    body = struct.pack("=BxxxiIII", 0, ifindex, 0, parent, info) + attribute(1, b"bpf\0")
    with Netlink(ROUTE) as kernel:
        kernel.request(44, body + attribute(2, options + attribute(8, struct.pack("=I", 1))), 0x600)


@pytest.mark.parametrize("by", ["tcx", *_PLACES])
def test_a_filter_at_the_way_out_sees_packets_as_the_kernel_has_them(lab: FastLab, by: str) -> None:
    """It tells them by the link that they came in by: the bridge, as in the kernel, not the container's."""
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


def test_what_the_kernel_and_its_own_modules_put_at_hooks_is_known(lab: FastLab) -> None:
    """Conntrack, translation, nftables, both kinds of iptables and br_netfilter do not stand in the way."""
    lab.run("iptables-legacy -t mangle -A FORWARD -s 198.51.100.77 -j DROP")
    lab.run("nft add table inet t")
    lab.run(["nft", "add chain inet t c { type filter hook forward priority 0; }"])
    with entered(f"/run/netns/{lab.host.name}"):
        assert hooks.strangers() == ()
    with Talk(lab.host, "a", "far", V4["far"]) as talk:
        assert talks_fast(lab, talk, "v-a", "up0")


@pytest.mark.parametrize("direction", ["out", "fwd"])
def test_an_ipsec_policy_that_blocks_stops_what_runs(lab: FastLab, direction: str) -> None:
    """It is heard of, not found by looking: nothing goes out in clear meanwhile."""
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
