"""The running kernel's type information (BTF): offsets of members, ids of functions.

Format: Documentation/bpf/btf.rst of the kernel. A module's is split: its type ids and string offsets go on
where the kernel's end. Reading it once takes a quarter of a second and is part of compiling; the results are
kept with the compiled program.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from bpf import syscall

VMLINUX = Path("/sys/kernel/btf/vmlinux")

_HEADER = struct.Struct("<HBBIIIII")
_MAGIC = 0xEB9F
_STRUCT, _UNION, _ENUM, _FUNC, _ARRAY, _ENUM64 = 4, 5, 6, 12, 3, 19
# Bytes after the 12 of struct btf_type, by kind: fixed, and for each of `vlen` members.
_EXTRA = {1: (4, 0), 3: (12, 0), 4: (0, 12), 5: (0, 12), 6: (0, 8), 13: (0, 8), 14: (4, 0), 15: (0, 12),
          17: (4, 0), 19: (0, 12)}  # fmt: skip
_MODIFIERS = {8, 9, 10, 11, 18}  # typedef, volatile, const, restrict, type tag


class BtfError(Exception):
    """The type information is missing, damaged, or lacks what was asked for; the text says which."""


@dataclass(slots=True)
class Btf:
    """An index over a BTF blob: names to type ids, and where each type starts. Ids from `base_types` on are
    the module's that was joined to it."""

    data: bytes
    strings: int
    starts: list[int]
    base_types: int = 0
    structs: dict[str, int] = field(default_factory=dict)
    functions: dict[str, int] = field(default_factory=dict)
    enums: dict[str, int] = field(default_factory=dict)
    enumerators: set[str] = field(default_factory=set)

    def function(self, name: str) -> int | None:
        """The BTF id of a kernel function; None where this kernel has none of that name."""
        return self.functions.get(name)

    def is_of_module(self, type_id: int) -> bool:
        """Whether a type is the joined module's, not the kernel's own."""
        return type_id >= self.base_types

    def size(self, structure: str) -> int:
        """The size of a structure in bytes."""
        return self._type(self._struct(structure))[2]

    def offset(self, structure: str, path: str) -> int:
        """The offset of a member in bytes: `path` has dots between nested members; anonymous ones are looked
        through, arrays are entered at their first element."""
        at, type_id = 0, self._struct(structure)
        for name in path.split("."):
            found = self._member(type_id, name)
            if found is None:
                raise BtfError(f"the kernel's struct {structure} has no member {path}")
            at += found[0]
            type_id = found[1]
        return at

    def enumerator(self, enumeration: str, name: str) -> int | None:
        """The value of a member of a named enumeration; None where it has none of that name. Raises
        BtfError where there is no such enumeration."""
        if enumeration not in self.enums:
            raise BtfError(f"the kernel's type information has no enum {enumeration}")
        at = self.starts[self.enums[enumeration]]
        _, info, _ = struct.unpack_from("<III", self.data, at)
        for index in range(info & 0xFFFF):
            text, value = struct.unpack_from("<Ii", self.data, at + 12 + 8 * index)
            if self._string(text) == name:
                return int(value)
        return None

    def _struct(self, name: str) -> int:
        if name not in self.structs:
            raise BtfError(f"the kernel's type information has no struct {name}")
        return self.structs[name]

    def _type(self, type_id: int) -> tuple[int, int, int]:
        """Name offset, info word, and size or type."""
        name, info, size = struct.unpack_from("<III", self.data, self.starts[type_id])
        return name, info, size

    def _resolved(self, type_id: int) -> int:
        while True:
            _, info, other = self._type(type_id)
            kind = info >> 24 & 31
            if kind == _ARRAY:
                (other,) = struct.unpack_from("<I", self.data, self.starts[type_id] + 12)
            elif kind not in _MODIFIERS:
                return type_id
            type_id = other

    def _member(self, type_id: int, wanted: str) -> tuple[int, int] | None:
        type_id = self._resolved(type_id)
        _, info, _ = self._type(type_id)
        if info >> 24 & 31 not in (_STRUCT, _UNION):
            return None
        for index in range(info & 0xFFFF):
            name, member, bits = struct.unpack_from("<III", self.data, self.starts[type_id] + 12 + 12 * index)
            at = (bits & 0xFFFFFF if info >> 31 else bits) // 8
            text = self._string(name)
            if text == wanted:
                return at, member
            inner = None if text else self._member(member, wanted)
            if inner is not None:
                return at + inner[0], inner[1]
        return None

    def _string(self, offset: int) -> str:
        start = self.strings + offset
        return self.data[start : self.data.index(b"\0", start)].decode("ascii", "replace")


def read_btf(path: Path = VMLINUX, module: bytes = b"") -> Btf:
    """The kernel's at `path`, joined with the split BTF of one of its modules where that is given; what both
    have is the kernel's. Raises BtfError where there is none or it cannot be understood."""
    try:
        base = path.read_bytes()
        return _index(base, len(base)) if not module else _index(*_joined(base, module))
    except OSError as error:
        raise BtfError(f"{path} cannot be read: {error.strerror}") from error
    except (struct.error, IndexError, KeyError, ValueError) as error:
        raise BtfError(f"{path} is damaged or of a form this program does not know") from error


def _joined(base: bytes, module: bytes) -> tuple[bytes, int]:
    """Both as one blob, and where the module's types begin in it."""
    parts = []
    for blob in (base, module):
        magic, _, _, header, types, types_length, strings, strings_length = _HEADER.unpack_from(blob)
        if magic != _MAGIC:
            raise BtfError("this is no BTF of this machine's byte order")
        at, text = header + types, header + strings
        parts.append((blob[at : at + types_length], blob[text : text + strings_length]))
    (base_types, base_strings), (types, strings) = parts
    length = len(base_types) + len(types)
    whole = _HEADER.pack(_MAGIC, 1, 0, _HEADER.size, 0, length, length, len(base_strings) + len(strings))
    begin = _HEADER.size + len(base_types)
    return b"".join((whole, base_types, types, base_strings, strings)), begin


def _index(data: bytes, module_at: int) -> Btf:
    magic, _, _, header, types, types_length, strings, _ = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise BtfError("this is no BTF of this machine's byte order")
    btf = Btf(data, header + strings, [0])
    at, end = header + types, header + types + types_length
    unpack = struct.Struct("<II").unpack_from
    while at < end:
        if at < module_at:
            btf.base_types = len(btf.starts) + 1
        name, info = unpack(data, at)
        kind, members = info >> 24 & 31, info & 0xFFFF
        if kind == _STRUCT and name:
            btf.structs.setdefault(btf._string(name), len(btf.starts))
        elif kind == _FUNC:
            btf.functions.setdefault(btf._string(name), len(btf.starts))
        elif kind == _ENUM and name:
            btf.enums.setdefault(btf._string(name), len(btf.starts))
        elif kind == _ENUM:
            names = (struct.unpack_from("<I", data, at + 12 + 8 * each)[0] for each in range(members))
            btf.enumerators.update(map(btf._string, names))
        elif kind == _ENUM64 and not name:
            names = (struct.unpack_from("<I", data, at + 12 + 12 * each)[0] for each in range(members))
            btf.enumerators.update(map(btf._string, names))
        btf.starts.append(at)
        fixed, each = _EXTRA.get(kind, (0, 0))
        at += 12 + fixed + each * members
    return btf


# The kernel module nf_conntrack: whether it is there, its types, and loading it.
#
# Distributions build connection tracking as a module, so the kernel functions that the fast path calls are
# the module's (/sys/kernel/btf/nf_conntrack), and are there only once it is loaded.

NAME = "nf_conntrack"
BTF = Path("/sys/kernel/btf") / NAME
_LOADED = Path("/sys/module") / NAME / "coresize"  # of loaded modules alone, not of those built in
_MODULES = Path("/lib/modules")
_SYSCTL = Path("/proc/sys/net/netfilter/nf_conntrack_max")
_LOAD_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class ModuleState:
    """`present`: connection tracking is in the running kernel; `loaded`: as a module; `has_types`: that has
    type information; `loadable`: it is not present, but a file of the module for this kernel is."""

    present: bool
    loaded: bool = False
    has_types: bool = False
    loadable: bool = False


BUILT_IN = ModuleState(present=True)


def module_state() -> ModuleState:
    """Look; loads nothing."""
    present = _SYSCTL.exists()
    return ModuleState(present, _LOADED.exists(), BTF.exists(), not present and _has_file())


def load_module() -> bool:
    """Load it where it is not present and can be; whether it was loaded. Never raises: what is missing
    afterwards is named by bpf/requirements.py."""
    if not module_state().loadable:
        return False
    try:
        subprocess.run(
            ["modprobe", NAME],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_LOAD_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def _has_file() -> bool:
    """Whether modprobe(8) would find the module (modules.dep of depmod(8))."""
    if shutil.which("modprobe") is None:
        return False
    try:
        listed = (_MODULES / os.uname().release / "modules.dep").read_text()
    except (OSError, UnicodeDecodeError):
        return False
    return f"/{NAME}.ko" in listed


def types_of_module() -> bytes:
    """The module's split BTF; empty where it is not loaded as a module."""
    try:
        return BTF.read_bytes()
    except OSError:
        return b""


def open_module_btf() -> int:
    """A descriptor of the loaded module's BTF, which BPF_PROG_LOAD takes to call its functions; the program
    holds the module afterwards, so it may be closed. Raises OSError (ENOENT: no such module is loaded)."""
    at = 0
    while True:
        at = syscall.next_btf_id(at)
        descriptor = syscall.btf_by_id(at)
        if syscall.kernel_btf_name(descriptor) == NAME:
            return descriptor
        os.close(descriptor)
