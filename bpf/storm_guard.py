"""Limit broadcast, multicast and unknown unicast of bridge ports, and count them.

    python -m bpf.storm_guard PORT BROADCAST/MULTICAST/BURST

guards a port of the current network namespace, or gives its guard these limits (see StormLimits). The
programs (program/storm_guard.c) are filters at the port's ingress and egress, with maps of their own: these
stay until the filters or the port are deleted, need no process, and nothing is pinned to a file. With "/xdp"
after the limits a third one limits in the NIC's driver what enters; "" removes all.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from bpf import syscall, xdp
from bpf.build import CACHE, CompileError, compiled_program
from core.collect.link_kinds import read_fdb
from core.collect.links import read_links
from core.collect.storm_guard import AttachedGuard, attached_guards
from core.model import GUARDED, GuardCounters, StormLimits
from core.netlink.client import Netlink
from core.netlink.clsact import STORM_GUARD
from core.text import failure_sentence, safe

BUCKET = np.dtype([(name, "u8") for name in ("interval", "burst", "start", "passed", "dropped", "last_drop")])
_SECOND = 1_000_000_000
SEEN = np.dtype([(name, "u8") for name in ("source", "receiver", "is_full", "in_driver")])
_MACS = 8192
_NO_PREALLOC = 1


def attach(ifindex: int, limits: StormLimits) -> None:
    """Guard a link, or replace its limits; if that fails, a guard that it had stays.

    Raises OSError, CompileError and syscall.Rejected; xdp.NotNative if the driver can't limit.
    """
    was_guarded = any(one.ifindex == ifindex for one in STORM_GUARD.attached())
    macs = _senders(ifindex)
    descriptors = _create_maps(limits, macs or ())
    try:
        if limits.xdp:
            descriptors["xdp"] = load("storm_guard_xdp", descriptors)
            xdp.attach(descriptors["xdp"], ifindex, STORM_GUARD.name)
        descriptors["ingress"] = load("storm_guard", descriptors)
        if macs is not None:
            descriptors["egress"] = load("storm_guard_egress", descriptors)
            STORM_GUARD.attach(descriptors["egress"], ifindex, str(limits), egress=True)
        STORM_GUARD.attach(descriptors["ingress"], ifindex, str(limits))
        if not limits.xdp:
            xdp.detach(ifindex, STORM_GUARD.name)
    except BaseException:
        if not was_guarded:
            detach(ifindex)
        raise
    finally:
        for descriptor in descriptors.values():
            os.close(descriptor)


def detach(ifindex: int) -> None:
    """End the guard of a link, if there is one. Raises OSError."""
    xdp.detach(ifindex, STORM_GUARD.name)
    STORM_GUARD.detach(ifindex)


def load(name: str, maps: Mapping[str, int]) -> int:
    """Load a program; raises as `attach` does."""
    code = compiled_program(CACHE, name).with_maps(maps)
    if name == "storm_guard_xdp":
        flags = syscall.XDP_HAS_FRAGS
        return syscall.load_program(syscall.PROG_XDP, code, STORM_GUARD.name, flags=flags)
    return syscall.load_program(syscall.PROG_SCHED_CLS, code, STORM_GUARD.name)


def _senders(ifindex: int) -> list[bytes] | None:
    """Return the MAC addresses that the bridge knows behind a port.

    None for ports behind which there are some that it doesn't learn from frames: it sends frames there that
    only look as if their receiver were unknown.
    """
    with Netlink() as sock:
        link = read_links(sock, 0).get(ifindex)
        if link is None or link.kind == "vxlan" or (link.port and not link.port.learning):
            return None
        entries = read_fdb(sock, set())
    found = {one.mac for one in entries if one.port == ifindex and one.bridge is not None}
    return [bytes.fromhex(mac.replace(":", "")) for mac in sorted(found)]


def _create_maps(limits: StormLimits, senders: Sequence[bytes]) -> dict[str, int]:
    maps: dict[str, int] = {}
    try:
        maps["buckets"] = syscall.create_map(
            syscall.MAP_ARRAY, 4, BUCKET.itemsize, len(GUARDED), "storm_buckets"
        )
        maps["seen"] = syscall.create_map(syscall.MAP_ARRAY, 4, SEEN.itemsize, 1, "storm_seen")
        maps["macs"] = syscall.create_map(syscall.MAP_HASH, 8, 1, _MACS, "storm_macs", _NO_PREALLOC)
        seen = np.array([(0, 0, 0, limits.xdp)], SEEN)
        syscall.update(maps["seen"], struct.pack("=I", 0), seen.tobytes())
        for number, rate in enumerate(limits.rates):
            interval = max(1, _SECOND // rate)
            syscall.update(maps["buckets"], struct.pack("=I", number), _bucket(interval, limits.burst))
        for mac in senders[:_MACS]:
            syscall.update(maps["macs"], _number_of(mac), b"\1")
    except BaseException:
        for descriptor in maps.values():
            os.close(descriptor)
        raise
    return maps


def _number_of(mac: bytes) -> bytes:
    """Return the key of an address, as the program makes it (as_number)."""
    high, middle, low = struct.unpack("=HHH", mac)
    return struct.pack("=Q", high << 32 | middle << 16 | low)


def _bucket(interval: int, burst: int) -> bytes:
    return np.array([(interval, interval * burst, 0, 0, 0, 0)], BUCKET).tobytes()


def read_counters(guards: Iterable[AttachedGuard] | None = None) -> list[GuardCounters]:
    """Return the counters of these guards, by default of all in this namespace.

    Raises OSError.
    """
    return [
        _counters(one.ifindex, limits, buckets)
        for one, limits in (attached_guards() if guards is None else guards)
        if (buckets := _read_buckets(one.program)) is not None
    ]


def _read_buckets(program: int) -> np.ndarray | None:
    """Return the buckets of a guard's program, None if it has been deleted."""
    try:
        descriptor = syscall.program_by_id(program)
    except FileNotFoundError:
        return None
    try:
        buckets = next(_maps_of_size(descriptor, len(GUARDED)), None)
    finally:
        os.close(descriptor)
    if buckets is None:
        return None  # of another version
    try:
        numbers = (struct.pack("=I", number) for number in range(len(GUARDED)))
        values = (syscall.lookup(buckets, number, BUCKET.itemsize) or b"" for number in numbers)
        return np.frombuffer(b"".join(values), BUCKET)
    finally:
        os.close(buckets)


def _maps_of_size(program: int, entries: int) -> Iterator[int]:
    """Yield a program's maps with so many entries; the caller closes them."""
    for map_id in syscall.maps_of_program(program):
        descriptor = syscall.map_by_id(map_id)
        if syscall.max_entries(descriptor) == entries:
            yield descriptor
        else:
            os.close(descriptor)


def _counters(ifindex: int, limits: StormLimits, buckets: np.ndarray) -> GuardCounters:
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    return GuardCounters(
        ifindex,
        limits,
        tuple(map(int, buckets["passed"])),
        tuple(map(int, buckets["dropped"])),
        tuple((now - int(at)) / _SECOND if at else None for at in buckets["last_drop"]),
    )


def main(port: str, limits: str) -> int:
    """Guard a port, or stop that; print the reason if it isn't possible."""
    try:
        ifindex = socket.if_nametoindex(port)
        attach(ifindex, StormLimits.parse(limits)) if limits else detach(ifindex)
    except xdp.NotNative as error:
        remedy = f"vnet-tui storm guard {safe(port)} on, without --xdp"
        print(failure_sentence(f"can't guard {safe(port)}", str(error), remedy), file=sys.stderr)
        return 1
    except (OSError, CompileError, syscall.Rejected) as error:
        why = getattr(error, "strerror", None) or str(error)
        print(failure_sentence(f"can't guard {safe(port)}", why, ""), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
