"""Read the running kernel's type information (BTF): member offsets, function ids.

Format: Documentation/bpf/btf.rst of the kernel. A module's BTF is split: its type ids and string offsets
continue where the kernel's end. Reading takes a quarter of a second and is part of compiling; the results
are stored with the compiled program. Also detects and loads the module nf_conntrack.
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
    """The type information is missing, damaged or incomplete; the text says which."""


@dataclass(slots=True)
class Btf:
    """Index a BTF blob: names to type ids, and the start of each type.

    Ids from `base_types` on belong to the module that was joined to it.
    """

    data: bytes
    strings: int
    starts: list[int]
    base_types: int = 0
    structs: dict[str, int] = field(default_factory=dict)
    functions: dict[str, int] = field(default_factory=dict)
    enums: dict[str, int] = field(default_factory=dict)
    enumerators: set[str] = field(default_factory=set)

    def function(self, name: str) -> int | None:
        """Return the BTF id of a kernel function, or None."""
        return self.functions.get(name)

    def parameters(self, function: str) -> int:
        """Return the number of parameters of a kernel function.

        Raises BtfError if there is no such function.
        """
        if function not in self.functions:
            raise BtfError(f"this kernel has no function {function}")
        return self._type(self._type(self.functions[function])[2])[1] & 0xFFFF

    def is_of_module(self, type_id: int) -> bool:
        """Return whether a type belongs to the joined module."""
        return type_id >= self.base_types

    def size(self, structure: str) -> int:
        """Return the size of a structure in bytes."""
        return self._type(self._struct(structure))[2]

    def offset(self, structure: str, path: str) -> int:
        """Return the offset of a member in bytes.

        `path` has dots between nested members. Anonymous members are searched, arrays are entered at their
        first element.
        """
        at, type_id = 0, self._struct(structure)
        for name in path.split("."):
            found = self._member(type_id, name)
            if found is None:
                raise BtfError(f"the kernel's struct {structure} has no member {path}")
            at += found[0]
            type_id = found[1]
        return at

    def enumerator(self, enumeration: str, name: str) -> int | None:
        """Return the value of a member of a named enumeration, or None.

        Raises BtfError if there is no such enumeration.
        """
        return self.enumerators_of(enumeration).get(name)

    def enumerators_of(self, enumeration: str) -> dict[str, int]:
        """Return the values of a named enumeration's members.

        Raises BtfError if there is no such enumeration.
        """
        if enumeration not in self.enums:
            raise BtfError(f"the kernel's type information has no enum {enumeration}")
        at = self.starts[self.enums[enumeration]]
        _, info, _ = struct.unpack_from("<III", self.data, at)
        members = (struct.unpack_from("<Ii", self.data, at + 12 + 8 * each) for each in range(info & 0xFFFF))
        return {self._string(text): int(value) for text, value in members}

    def _struct(self, name: str) -> int:
        if name not in self.structs:
            raise BtfError(f"the kernel's type information has no struct {name}")
        return self.structs[name]

    def _type(self, type_id: int) -> tuple[int, int, int]:
        """Return name offset, info word, and size or type."""
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
    """Read the kernel's BTF at `path`, joined with a module's split BTF if given.

    If both have a name, the kernel's counts. Raises BtfError if it is missing or malformed.
    """
    try:
        base = path.read_bytes()
        return _index(base, len(base)) if not module else _index(*_joined(base, module))
    except OSError as error:
        raise BtfError(f"{error.strerror} ({path})") from error
    except (struct.error, IndexError, KeyError, ValueError) as error:
        raise BtfError(f"{path} is damaged or has an unknown format") from error


def _joined(base: bytes, module: bytes) -> tuple[bytes, int]:
    """Join both blobs; return the result and where the module's types begin."""
    parts = []
    for blob in (base, module):
        magic, _, _, header, types, types_length, strings, strings_length = _HEADER.unpack_from(blob)
        if magic != _MAGIC:
            raise BtfError("the type information isn't in this machine's byte order")
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
        raise BtfError("the type information isn't in this machine's byte order")
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


CONNTRACK_MODULE = "nf_conntrack"
BTF = Path("/sys/kernel/btf") / CONNTRACK_MODULE
_LOADED = Path("/sys/module") / CONNTRACK_MODULE / "coresize"  # of loaded modules only, not of built-in ones
_MODULES = Path("/lib/modules")
_SYSCTL = Path("/proc/sys/net/netfilter/nf_conntrack_max")
_LOAD_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class ModuleState:
    """Describe the module nf_conntrack.

    Distributions build connection tracking as a module. The kernel functions that the fast path calls are
    then the module's (/sys/kernel/btf/nf_conntrack), and exist only while it is loaded.

    `present`: connection tracking is in the running kernel. `loaded`: as a module. `has_types`: with type
    information. `loadable`: not present, but a file of the module for this kernel exists.
    """

    present: bool
    loaded: bool = False
    has_types: bool = False
    loadable: bool = False


BUILT_IN = ModuleState(present=True)


def module_state() -> ModuleState:
    """Read the state of the module; loads nothing."""
    present = _SYSCTL.exists()
    return ModuleState(present, _LOADED.exists(), BTF.exists(), not present and _has_file())


def load_module() -> bool:
    """Load the module if it is missing and loadable; return whether it was loaded.

    Never raises: bpf/requirements.py reports what is missing afterwards.
    """
    if not module_state().loadable:
        return False
    try:
        subprocess.run(
            ["modprobe", CONNTRACK_MODULE],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_LOAD_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def _has_file() -> bool:
    """Return whether modprobe(8) would find the module (modules.dep of depmod(8))."""
    if shutil.which("modprobe") is None:
        return False
    try:
        listed = (_MODULES / os.uname().release / "modules.dep").read_text()
    except (OSError, UnicodeDecodeError):
        return False
    return f"/{CONNTRACK_MODULE}.ko" in listed


def types_of_module() -> bytes:
    """Return the module's split BTF, empty if it isn't loaded as a module."""
    try:
        return BTF.read_bytes()
    except OSError:
        return b""


def open_module_btf() -> int:
    """Return a descriptor of the loaded module's BTF.

    BPF_PROG_LOAD takes it to call the module's functions. It may be closed afterwards, as the program holds
    the module. Raises OSError (ENOENT: no such module is loaded).
    """
    at = 0
    while True:
        at = syscall.next_btf_id(at)
        descriptor = syscall.btf_by_id(at)
        if syscall.kernel_btf_name(descriptor) == CONNTRACK_MODULE:
            return descriptor
        os.close(descriptor)
