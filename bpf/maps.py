"""The maps as the holder keeps them: it knows what they hold, and writes what changed."""

from __future__ import annotations

import ipaddress
import struct
from functools import cache
from pathlib import Path

import numpy as np

from bpf import layout, ports, syscall
from bpf.clock import Clock
from bpf.ct_marks import SHIFT
from bpf.hostwatch import FORWARD_PRIORITY, read, timeouts
from bpf.link_state import RouteFacts
from bpf.loader import SLOTS, Loaded
from bpf.ports import Contents, LinkRow

LEASE = 2  # seconds
RECHECK = 1
_FIRST = struct.pack("=I", 0)


@cache
def possible_cpus() -> int:
    """How many values an entry of a per-CPU map has."""
    text = Path("/sys/devices/system/cpu/possible").read_text().strip()
    pairs = (part.partition("-") for part in text.split(","))
    return sum(int(last or first) - int(first) + 1 for first, _, last in pairs)


class Tables:
    """One loaded program's maps."""

    def __init__(self, loaded: Loaded, recheck: int = RECHECK) -> None:
        self._maps = loaded.maps
        self.clock = Clock()
        self.config = np.zeros(1, layout.CONFIG)[0]
        self.config["recheck"] = recheck * self.clock.hz
        self.config["mark_shift"] = SHIFT
        self.read_sysctls()
        self._owners: dict[bytes, bytes] = {}
        self._macs: dict[bytes, bytes] = {}
        self._rows: dict[bytes, bytes] = {}
        self.captured: list[str] = []
        self.behind: list[tuple[int, bytes]] = []
        self.slots: dict[int, int] = {}
        self.links: dict[int, LinkRow] = {}

    def read_sysctls(self) -> None:
        """Take what the program heeds of sysctls that tell nobody; it counts from the next beat on."""
        for name, milliseconds in timeouts().items():
            self.config[name] = milliseconds
        self.set_flag(layout.KEEP_PRIORITY, read(FORWARD_PRIORITY) == "0")

    def is_late(self) -> bool:
        """Whether the lease ran out before it was renewed."""
        return 0 < int(self.config["deadline"]) < self.clock.now()

    def set_flag(self, flag: int, on: bool) -> None:
        """Set or clear one of the configuration's flags."""
        before = int(self.config["flags"])
        self._set("flags", before | flag if on else before & ~flag)

    def take_routes(self, facts: RouteFacts) -> None:
        """Heed what the program's own lookup of routes does not tell."""
        self.set_flag(layout.HAS_MULTIPATH, facts.multipath)
        self.set_flag(layout.ROUTES_BY_PACKET, facts.by_packet)
        self._set("route_mtu", facts.mtu)

    def _set(self, name: str, value: int) -> None:
        if value != int(self.config[name]):
            self.config[name] = value
            self.ask_again()

    def capture(self, family: int, packed: bytes, on: bool) -> None:
        """Leave the traffic of an address to the kernel, where captures see it; or no longer."""
        key = np.zeros(1, layout.OWNER_KEY)
        key["family"], key["address"] = family, np.frombuffer(packed.ljust(16, b"\0"), np.uint8)
        text = str(ipaddress.ip_address(packed))
        if on:
            syscall.update(self._maps["captured"], key.tobytes(), _FIRST)
        else:
            syscall.delete(self._maps["captured"], key.tobytes())
        kept = [each for each in self.captured if each != text]
        self.captured = [*kept, text] if on else kept
        self.set_flag(layout.HAS_CAPTURES, bool(self.captured))
        self.ask_again()

    def beat(self) -> None:
        """We are alive: forward for another lease."""
        self.config["deadline"] = self.clock.now() + LEASE * self.clock.hz
        self.write_config()

    def write_config(self) -> None:
        """Put the configuration into effect."""
        syscall.update(self._maps["config"], _FIRST, self.config.tobytes())

    def ask_again(self) -> None:
        """Every flow asks conntrack and the routes at its next packet."""
        self.config["epoch"] = (int(self.config["epoch"]) + 1) & 0xFFFFFFFF
        self.write_config()

    def fill(self, contents: Contents) -> bool:
        """Make the maps hold this; whether anything changed."""
        rows = {struct.pack("=I", ifindex): self._row(link) for ifindex, link in contents.links.items()}
        rows |= {struct.pack("=I", ifindex): ports.link_row(out, 0) for ifindex, out in contents.outs.items()}
        changed = self._write("owners", self._owners, contents.owners)
        changed |= self._write("macs", self._macs, contents.macs)
        changed |= self._write("links", self._rows, rows)
        self._owners, self._macs, self._rows = contents.owners, contents.macs, rows
        self.links = dict(contents.links)
        for gone in [ifindex for ifindex in self.slots if ifindex not in self.links]:
            del self.slots[gone]
        return changed

    def _row(self, link: LinkRow) -> bytes:
        slot = self.slots.get(link.ifindex)
        if slot is None:
            slot = self.slots[link.ifindex] = self._free_slot()
        return ports.link_row(link, slot)

    def _free_slot(self) -> int:
        """A row of the counters that no link uses, emptied; the common one, 0, where there is none left."""
        taken = set(self.slots.values())
        slot = next((each for each in range(1, SLOTS) if each not in taken), 0)
        if slot:
            size = layout.SLOT_COUNTERS.itemsize * possible_cpus()
            syscall.update(self._maps["counters"], struct.pack("=I", slot), bytes(size))
        return slot

    def _write(self, name: str, kept: dict[bytes, bytes], wanted: dict[bytes, bytes]) -> bool:
        changed = False
        for key, value in ports.rows(kept, wanted):
            changed = True
            if value is None:
                syscall.delete(self._maps[name], key)
            else:
                syscall.update(self._maps[name], key, value)
        return changed
