"""Create the maps, load the program with them, and keep their contents."""

from __future__ import annotations

import ipaddress
import os
import struct
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from bpf import layout, ports, syscall
from bpf.btf import open_module_btf
from bpf.build import CACHE, CompiledProgram, compiled_program
from bpf.clock import Clock
from bpf.connections import SHIFT
from bpf.hostwatch import FORWARD_PRIORITY, conntrack_timeouts, read_sysctl
from bpf.link_state import RouteInfo
from bpf.ports import LinkRow, MapContents

# Links with their own counters; slot 0 counts for all others.
SLOTS = 1024
CAPTURED = 1024
_LEAST_FLOWS, _FLOW_BYTES = 1 << 14, 440  # kernel memory of one IPv4 and one IPv6 entry
_PART_OF_MEMORY = 100
_INDEX = np.dtype("u4")
_NO_TYPE = np.dtype("V0")
LEASE = 2  # seconds
RECHECK = 1
_FIRST = struct.pack("=I", 0)


@dataclass(frozen=True, slots=True)
class MapSpec:
    """Describe a map: its type, key and value (bpf/layout.py), and capacity."""

    kind: int
    key: np.dtype
    value: np.dtype
    entries: int


def flow_capacity() -> int:
    """Return the capacity for flows of each family, a power of two.

    Two for each connection that conntrack can hold, but no more than a hundredth of the machine's memory,
    which the kernel allocates at once.
    """
    connections = int(read_sysctl("net.netfilter.nf_conntrack_max") or _LEAST_FLOWS)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    most = max(min(2 * connections, memory // _PART_OF_MEMORY // _FLOW_BYTES), _LEAST_FLOWS)
    return 1 << most.bit_length() - 1


def map_specs(flows: int) -> dict[str, MapSpec]:
    """Return all maps by their names in program/maps.c, for `flows` flows per family."""
    return {
        "config": MapSpec(syscall.MAP_ARRAY, _INDEX, layout.CONFIG, 1),
        "counters": MapSpec(syscall.MAP_PERCPU_ARRAY, _INDEX, layout.SLOT_COUNTERS, SLOTS),
        "scratch": MapSpec(syscall.MAP_PERCPU_ARRAY, _INDEX, layout.LEARNED, 1),
        "links": MapSpec(syscall.MAP_HASH, _INDEX, layout.LINK, layout.LINKS),
        "owners": MapSpec(syscall.MAP_HASH, layout.OWNER_KEY, layout.OWNER, layout.OWNERS),
        "macs": MapSpec(syscall.MAP_HASH, layout.MAC_KEY, layout.MAC_VALUE, layout.MACS),
        "captured": MapSpec(syscall.MAP_HASH, layout.OWNER_KEY, _INDEX, CAPTURED),
        "flows4": MapSpec(syscall.MAP_LRU_HASH, layout.KEY4, layout.FLOW, flows),
        "flows6": MapSpec(syscall.MAP_LRU_HASH, layout.KEY6, layout.FLOW, flows),
        "wanted": MapSpec(syscall.MAP_RINGBUF, _NO_TYPE, _NO_TYPE, layout.WANTED_BYTES),
        "young": MapSpec(syscall.MAP_ARRAY, _INDEX, layout.YOUNG, layout.YOUNG_ENTRIES),
        "tunnels": MapSpec(syscall.MAP_HASH, layout.TUNNEL_KEY, _INDEX, layout.TUNNELS),
        "outers": MapSpec(syscall.MAP_LRU_HASH, layout.KEY6, layout.OUTER, layout.OUTERS),
        "inlets": MapSpec(syscall.MAP_LRU_HASH, layout.KEY6, layout.INLET, layout.OUTERS),
    }


@dataclass(slots=True)
class Loaded:
    """Own the loaded programs and their maps: descriptors, with which all of it ends.

    `observer` is the program for the egress of uplinks (program/tunnels.c).
    """

    program: int
    observer: int
    maps: dict[str, int]

    def close(self) -> None:
        """Close the descriptors; the kernel frees the program once no link has it."""
        for descriptor in (self.program, self.observer, *self.maps.values()):
            os.close(descriptor)


def load(flows: int, cache_dir: Path = CACHE) -> Loaded:
    """Load the fast path with maps for `flows` flows per family.

    Compiles it first if it isn't in the cache. Raises CompileError, syscall.Rejected (the verifier),
    OSError (privileges, memory).
    """
    code = compiled_program(cache_dir)
    made: dict[str, int] = {}
    try:
        for name, each in map_specs(flows).items():
            made[name] = syscall.create_map(
                each.kind, each.key.itemsize, each.value.itemsize, each.entries, name
            )
        program, observer = _load_programs(code, made)
    except BaseException:
        for descriptor in made.values():
            os.close(descriptor)
        raise
    return Loaded(program, observer, made)


def reload(loaded: Loaded, cache_dir: Path = CACHE) -> tuple[int, int]:
    """Load other copies of program and observer with the same maps (an upgrade).

    Returns their descriptors.
    """
    return _load_programs(compiled_program(cache_dir), loaded.maps)


def _load_programs(code: CompiledProgram, descriptors: dict[str, int]) -> tuple[int, int]:
    program = _load_program(code, descriptors, "vnet_fastpath")
    try:
        return program, _load_program(code.others[0], descriptors, "vnet_observer")
    except BaseException:
        os.close(program)
        raise


def _load_program(program: CompiledProgram, descriptors: dict[str, int], name: str) -> int:
    module = open_module_btf() if program.calls_module else None
    try:
        code = program.with_maps(descriptors)
        return syscall.load_program(syscall.PROG_SCHED_CLS, code, name, module)
    finally:
        if module is not None:
            os.close(module)


@cache
def possible_cpus() -> int:
    """Return the number of values in an entry of a per-CPU map."""
    text = Path("/sys/devices/system/cpu/possible").read_text().strip()
    pairs = (part.partition("-") for part in text.split(","))
    return sum(int(last or first) - int(first) + 1 for first, _, last in pairs)


class Maps:
    """Write the maps of one loaded program.

    `config` is the entry of the map `config`; changes take effect with write_config(). `slots` are rows of
    the map `counters` by ifindex, `port_macs` MACs by port, `tunnel_reasons` why the kernel writes and
    removes the outer headers of every packet.
    """

    def __init__(self, loaded: Loaded, recheck: int = RECHECK) -> None:
        self._descriptors = loaded.maps
        self.clock = Clock()
        self.config = np.zeros(1, layout.CONFIG)[0]
        self.config["recheck"] = recheck * self.clock.hz
        self.config["mark_shift"] = SHIFT
        self.read_sysctls()
        self._owners: dict[bytes, bytes] = {}
        self._macs: dict[bytes, bytes] = {}
        self._rows: dict[bytes, bytes] = {}
        self._tunnels: dict[bytes, bytes] = {}
        self.tunnel_reasons: tuple[str, ...] = ()
        self.captured: list[str] = []
        self.port_macs: list[tuple[int, bytes]] = []
        self.slots: dict[int, int] = {}
        self.links: dict[int, LinkRow] = {}

    def read_sysctls(self) -> None:
        """Read the sysctls that send no event; they take effect with the next renewal."""
        for name, milliseconds in conntrack_timeouts().items():
            self.config[name] = milliseconds
        self.set_flag(layout.KEEP_PRIORITY, read_sysctl(FORWARD_PRIORITY) == "0")

    def lease_expired(self) -> bool:
        """Return whether the lease ended before it was renewed."""
        return 0 < int(self.config["deadline"]) < self.clock.now()

    def set_flag(self, flag: int, on: bool) -> None:
        """Set or clear one of the configuration's flags."""
        before = int(self.config["flags"])
        self._set("flags", before | flag if on else before & ~flag)

    def set_route_info(self, facts: RouteInfo) -> None:
        """Set what the program's own route lookup doesn't report."""
        self.set_flag(layout.HAS_MULTIPATH, facts.multipath)
        self.set_flag(layout.ROUTES_BY_PACKET, facts.by_packet)
        self._set("route_mtu", facts.mtu)

    def set_tunnel_reasons(self, reasons: tuple[str, ...]) -> None:
        """Set why outer headers of tunnels can't be remembered; nothing: they can."""
        self.tunnel_reasons = reasons
        self.set_flag(layout.HAS_TUNNELS, bool(self._tunnels) and not reasons)

    @property
    def tunnels(self) -> list[int]:
        """The tunnels whose outer headers may be remembered, by ifindex."""
        return [int.from_bytes(value, sys.byteorder) for value in self._tunnels.values()]

    def _set(self, name: str, value: int) -> None:
        if value != int(self.config[name]):
            self.config[name] = value
            self.raise_epoch()

    def capture(self, family: int, packed: bytes, on: bool) -> None:
        """Leave an address's traffic to the kernel, where captures see it, or no longer."""
        key = np.zeros(1, layout.OWNER_KEY)
        key["family"], key["address"] = family, np.frombuffer(packed.ljust(16, b"\0"), np.uint8)
        text = str(ipaddress.ip_address(packed))
        if on:
            syscall.update(self._descriptors["captured"], key.tobytes(), _FIRST)
        else:
            syscall.delete(self._descriptors["captured"], key.tobytes())
        current = [each for each in self.captured if each != text]
        self.captured = [*current, text] if on else current
        self.set_flag(layout.HAS_CAPTURES, bool(self.captured))
        self.raise_epoch()

    def renew_lease(self) -> None:
        """Let the program forward for another lease."""
        self.config["deadline"] = self.clock.now() + LEASE * self.clock.hz
        self.write_config()

    def write_config(self) -> None:
        """Write the configuration to its map."""
        syscall.update(self._descriptors["config"], _FIRST, self.config.tobytes())

    def raise_epoch(self) -> None:
        """Make every flow ask conntrack and the routes at its next packet."""
        self.config["epoch"] = (int(self.config["epoch"]) + 1) & 0xFFFFFFFF
        self.write_config()

    def fill(self, contents: MapContents) -> bool:
        """Write these contents to the maps; return whether anything changed."""
        rows = {struct.pack("=I", ifindex): self._row(link) for ifindex, link in contents.links.items()}
        rows |= {
            struct.pack("=I", ifindex): ports.link_row(out, 0) for ifindex, out in contents.egress.items()
        }
        changed = self._write("owners", self._owners, contents.owners)
        changed |= self._write("macs", self._macs, contents.macs)
        changed |= self._write("links", self._rows, rows)
        changed |= self._write("tunnels", self._tunnels, contents.tunnels)
        self._owners, self._macs, self._rows = contents.owners, contents.macs, rows
        self._tunnels = contents.tunnels
        self.set_tunnel_reasons(self.tunnel_reasons)
        self.links = dict(contents.links)
        for deleted in [ifindex for ifindex in self.slots if ifindex not in self.links]:
            del self.slots[deleted]
        return changed

    def _row(self, link: LinkRow) -> bytes:
        slot = self.slots.get(link.ifindex)
        if slot is None:
            slot = self.slots[link.ifindex] = self._free_slot()
        return ports.link_row(link, slot)

    def _free_slot(self) -> int:
        """Return an unused row of the counters, set to zero, or row 0 if there is none."""
        used = set(self.slots.values())
        slot = next((each for each in range(1, SLOTS) if each not in used), 0)
        if slot:
            size = layout.SLOT_COUNTERS.itemsize * possible_cpus()
            syscall.update(self._descriptors["counters"], struct.pack("=I", slot), bytes(size))
        return slot

    def _write(self, name: str, current: dict[bytes, bytes], wanted: dict[bytes, bytes]) -> bool:
        changed = False
        for key, value in ports.rows(current, wanted):
            changed = True
            if value is None:
                syscall.delete(self._descriptors[name], key)
            else:
                syscall.update(self._descriptors[name], key, value)
        return changed
