"""Count dropped packets in the kernel, and report single ones on request.

The programs (program/drops.c) run at the raw tracepoint kfree_skb, of the whole machine. Links and maps are
descriptors: they end with this process.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import struct
import time
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np

from bpf import syscall
from bpf.btf import VMLINUX
from bpf.build import CACHE, DROP_REASONS, CompiledProgram, CompileError, compiled_program
from bpf.maps import possible_cpus
from bpf.requirements import lockdown_level
from core.collect.host import effective_capabilities
from core.drops import DropsUnavailable
from core.model import Direction, Drop, DroppedPacket

ENTRIES = 8192  # combinations of reason, namespace, interface, function and address
_OWNERS = 8192
_REPORT_BYTES = 1 << 18
KEY = np.dtype(
    [
        ("location", "u8"),
        ("reason", "u4"),
        ("ns", "u4"),
        ("ifindex", "u4"),
        ("ends", "u4"),
        ("address", "u1", (16,)),
    ]
)
_OWNER = struct.Struct("=II16s")
_DROPPED = np.dtype(
    [("at", "u8"), ("key", KEY), ("length", "u4"), ("protocol", "u4"), ("headers", "u1", (64,))]
)
_NO_PREALLOC = 1
_FIRST = struct.pack("=I", 0)
_DIRECTIONS: tuple[Direction, ...] = ("", "to", "from")
_SYS_ADMIN, _PERFMON, _BPF = 21, 38, 39  # linux/capability.h
_SYMBOLS, _MODULES = Path("/proc/kallsyms"), Path("/proc/modules")
_FUNCTION = re.compile(rb"^([0-9a-f]+) [tTwW] ([^\s.]+)", re.MULTILINE)
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp"}
_WITH_PORTS = (6, 17, 132)
_ETHERTYPES = {0x0806: "arp", 0x8100: "vlan", 0x88CC: "lldp", 0x8863: "pppoe", 0x8864: "pppoe"}


class DropCounter:
    """Count dropped packets until it is closed.

    Raises DropsUnavailable if that isn't possible here. Call all methods from one thread.
    """

    def __init__(self, cache: Path = CACHE) -> None:
        program = _compiled(cache, "drops")
        self._cache, self._names = cache, program.names
        self._functions = Functions()
        self._owners: frozenset[tuple[int, str]] = frozenset()
        self._keys = np.zeros(0, KEY)
        self._maps: dict[str, int] = {}
        self._links: list[int] = []
        self._reporting: tuple[list[int], syscall.RingBuffer] | None = None
        try:
            self._load(program)
        except BaseException:
            self.close()
            raise
        self.since = time.time()

    def _load(self, program: CompiledProgram) -> None:
        values = 8 * possible_cpus()
        try:
            for name, arguments in {
                "drops": (syscall.MAP_PERCPU_HASH, KEY.itemsize, 8, ENTRIES),
                "uncounted": (syscall.MAP_PERCPU_ARRAY, 4, 8, 1),
                "owners": (syscall.MAP_HASH, _OWNER.size, 4, _OWNERS),
            }.items():
                flags = _NO_PREALLOC if name == "owners" else 0
                self._maps[name] = syscall.create_map(*arguments, name, flags)
            self._links.append(self._attach(program, "vnet_drops"))
        except OSError as error:
            raise _unavailable(error) from error
        except syscall.Rejected as error:
            raise DropsUnavailable(str(error)) from error
        self._value = np.dtype(("u8", (values // 8,)))

    def _attach(self, program: CompiledProgram, name: str) -> int:
        code = program.with_maps(self._maps)
        descriptor = syscall.load_program(syscall.PROG_RAW_TRACEPOINT, code, name)
        try:
            return syscall.attach_raw_tracepoint(descriptor, "kfree_skb")
        finally:
            os.close(descriptor)

    def set_owners(self, places: Collection[tuple[int, str]]) -> None:
        """Set the addresses of containers by the namespace whose links lead to them.

        Packets there are counted by these addresses, as many as the map has room for.
        """
        wanted = frozenset(places)
        for key in _owner_keys(self._owners) - _owner_keys(wanted):
            syscall.delete(self._maps["owners"], key)
        for key in _owner_keys(wanted) - _owner_keys(self._owners):
            try:
                syscall.update(self._maps["owners"], key, _FIRST)
            except OSError:
                break  # the map is full: further packets are counted without an address
        self._owners = wanted

    def read(self) -> tuple[tuple[Drop, ...], int]:
        """Return what was dropped since the beginning, and how many packets had no room."""
        keys, values = syscall.read_all(self._maps["drops"], KEY, self._value, ENTRIES)
        self._functions.resolve(int(one) for one in keys["location"])
        self._keys = keys
        counts = values.sum(axis=1) if len(values) else np.zeros(0, np.uint64)
        drops = tuple(self._drop(key, int(count)) for key, count in zip(keys, counts, strict=True))
        size = self._value.itemsize
        lost = np.frombuffer(syscall.lookup(self._maps["uncounted"], _FIRST, size) or bytes(size), np.uint64)
        return drops, int(lost.sum())

    def keep_namespaces(self, inodes: Collection[int]) -> None:
        """Delete the counters of all other namespaces if the map is half full.

        They are those of the last reading; those without a namespace stay.
        """
        if len(self._keys) > ENTRIES // 2:
            kept = np.isin(self._keys["ns"], np.array([0, *inodes], np.uint32))
            for key in self._keys[~kept]:
                syscall.delete(self._maps["drops"], key.tobytes())

    def _drop(self, key: np.void, packets: int = 0) -> Drop:
        ends = int(key["ends"])
        address = _address(key["address"].tobytes(), ends >> 8) if ends else ""
        return Drop(
            reason=self._reason(int(key["reason"])),
            ns=int(key["ns"]),
            ifindex=int(key["ifindex"]),
            function=self._functions.name(int(key["location"])),
            address=address,
            direction=_DIRECTIONS[ends & 0xFF],
            packets=packets,
        )

    def _reason(self, number: int) -> str:
        unnamed = f"SUBSYSTEM_{number >> 16}_{number & 0xFFFF}" if number >> 16 else f"REASON_{number}"
        return self._names.get(number) or unnamed

    def report(self, on: bool) -> None:
        """Begin to report each dropped packet, or end that; the buffer holds about 1,500."""
        if on and self._reporting is None:
            program = _compiled(self._cache, "drop_packets")
            try:
                self._maps["packets"] = syscall.create_map(
                    syscall.MAP_RINGBUF, 0, 0, _REPORT_BYTES, "drop_packets"
                )
                link = self._attach(program, "vnet_droppacket")
                ring = syscall.RingBuffer(self._maps["packets"], _REPORT_BYTES)
            except (OSError, syscall.Rejected) as error:
                raise DropsUnavailable(str(error)) from error
            self._reporting = [link], ring
        elif not on and self._reporting is not None:
            links, ring = self._reporting
            self._reporting = None
            ring.close()
            for descriptor in (*links, self._maps.pop("packets")):
                os.close(descriptor)

    def packets(self) -> list[DroppedPacket]:
        """Return the packets that were reported since the last call, oldest first."""
        if self._reporting is None:
            return []
        records = [np.frombuffer(one, _DROPPED, 1)[0] for one in self._reporting[1].read()]
        self._functions.resolve(int(one["key"]["location"]) for one in records)
        booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        return [self._packet(one, booted) for one in records]

    def _packet(self, record: np.void, booted: float) -> DroppedPacket:
        ethertype = int.from_bytes(struct.pack("=H", int(record["protocol"]) & 0xFFFF))
        l4_proto, src, dst, sport, dport = parse_headers(ethertype, record["headers"].tobytes())
        return DroppedPacket(
            at=booted + int(record["at"]) / 1e9,
            where=self._drop(record["key"]),
            length=int(record["length"]),
            l4_proto=l4_proto,
            src=src,
            dst=dst,
            sport=sport,
            dport=dport,
        )

    def close(self) -> None:
        """End counting."""
        self.report(False)
        for descriptor in (*self._links, *self._maps.values()):
            os.close(descriptor)
        self._links, self._maps = [], {}


def parse_headers(ethertype: int, octets: bytes) -> tuple[str, str, str, int, int]:
    """Return protocol, source, destination and ports of a packet.

    `octets` begin with its network header. Never fails: what isn't there is "" or 0. IPv6 extension headers
    are not skipped.
    """
    if ethertype == 0x0800 and octets[0] >> 4 == 4:
        at, number = 4 * (octets[0] & 15), octets[9]
        src, dst, is_first = octets[12:16], octets[16:20], not int.from_bytes(octets[6:8]) & 0x1FFF
    elif ethertype == 0x86DD and octets[0] >> 4 == 6:
        at, number, src, dst, is_first = 40, octets[6], octets[8:24], octets[24:40], True
    else:
        return _ETHERTYPES.get(ethertype, f"0x{ethertype:04x}"), "", "", 0, 0
    ports = octets[at : at + 4] if is_first and number in _WITH_PORTS else b""
    sport, dport = struct.unpack(">HH", ports) if len(ports) == 4 else (0, 0)
    ends = (str(ipaddress.ip_address(one)) for one in (src, dst))
    return _PROTOCOLS.get(number, str(number)), *ends, sport, dport


def _address(octets: bytes, family: int) -> str:
    return str(ipaddress.ip_address(octets[:4] if family == 4 else octets))


def _owner_keys(places: Iterable[tuple[int, str]]) -> set[bytes]:
    """Return the keys of the map `owners`: each address, each namespace with any."""
    found = set()
    for ns, text in places:
        address = ipaddress.ip_address(text)
        found |= {_OWNER.pack(ns, address.version, address.packed), _OWNER.pack(ns, 0, b"")}
    return found


class Functions:
    """Find the names of kernel functions by addresses inside them.

    The kernel's list takes a tenth of a second to read: again only if modules were loaded or unloaded.
    """

    def __init__(self, path: Path = _SYMBOLS, modules: Path = _MODULES) -> None:
        self._path, self._modules_path = path, modules
        self._names: dict[int, str] = {}
        self._modules: bytes | None = None
        # Addresses, ends of names, and these in one text: Rust's names are long, so no array of equal widths.
        self._starts, self._ends, self._text = np.zeros(0, np.uint64), np.zeros(0, np.uint32), b""

    def name(self, address: int) -> str:
        """Return the function's name, "" if the kernel hides it (kptr_restrict)."""
        return self._names.get(address, "")

    def resolve(self, addresses: Iterable[int]) -> None:
        """Look up addresses that weren't looked up before; never fails."""
        wanted = set(addresses) - self._names.keys()
        if wanted:
            self._read_symbols()
        for address in wanted:
            place = int(np.searchsorted(self._starts, np.uint64(address), side="right")) - 1
            self._names[address] = self._symbol(place) if place >= 0 else ""

    def _symbol(self, place: int) -> str:
        start = int(self._ends[place - 1]) if place else 0
        return self._text[start : int(self._ends[place])].decode("ascii", "replace")

    def _read_symbols(self) -> None:
        """Read the list of functions; names have no suffix of the compiler's."""
        try:
            modules = self._modules_path.read_bytes() if self._modules_path.exists() else b""
            names = b" ".join(sorted(line.split(b" ", 1)[0] for line in modules.splitlines()))
            if names == self._modules:
                return
            found = sorted(
                (int(address, 16), name) for address, name in _FUNCTION.findall(self._path.read_bytes())
            )
        except (OSError, ValueError):
            return
        self._modules = names
        if found and found[-1][0]:
            self._starts = np.array([address for address, _ in found], np.uint64)
            self._ends = np.cumsum([len(name) for _, name in found]).astype(np.uint32)
            self._text = b"".join(name for _, name in found)


def _compiled(cache: Path, name: str) -> CompiledProgram:
    """Return a compiled program; raises DropsUnavailable with the reason."""
    _check_rights()
    try:
        return compiled_program(cache, name)
    except CompileError as error:
        text = str(error)
        if DROP_REASONS in text:
            release = os.uname().release
            reason = f"Linux {release} reports no drop reasons"
            raise DropsUnavailable(reason, "Linux 5.17 or newer") from error
        if str(VMLINUX) in text:
            reason = "the kernel has no type information (BTF)"
            raise DropsUnavailable(reason, "a kernel built with CONFIG_DEBUG_INFO_BTF=y") from error
        if os.strerror(errno.EROFS) in text:  # the dashboard with --read-only
            raise DropsUnavailable(f"the program can't be compiled: {text}", _AS_ROOT) from error
        raise DropsUnavailable(text) from error


def _check_rights() -> None:
    held = effective_capabilities()
    if not held & 1 << _SYS_ADMIN and not (held & 1 << _BPF and held & 1 << _PERFMON):
        raise DropsUnavailable("it needs CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN", _AS_ROOT)
    if lockdown_level() == "confidentiality":
        raise DropsUnavailable("the kernel's lockdown forbids it", "boot without lockdown=confidentiality")


_AS_ROOT = "sudo vnet-tui drops"


def _unavailable(error: OSError) -> DropsUnavailable:
    if error.errno in (errno.EPERM, errno.EACCES):
        reason = "the kernel doesn't permit it (in a container, or by a security module)"
        return DropsUnavailable(reason, f"on the host itself: {_AS_ROOT}")
    return DropsUnavailable(f"the kernel refuses the program ({error.strerror})")
