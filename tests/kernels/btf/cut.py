"""Cut the kernel types (BTF) that the fast path reads into small files for tests.

`python -m tests.kernels.btf.cut [KERNEL...]` reads the unpacked kernels of tests/kernels/packages.py and
writes NAME.vmlinux.xz, NAME.nf_conntrack.xz and NAME.json beside itself. Every other type becomes a nameless
forward declaration and every other string zeros, so that all ids and offsets stay the same. The JSON holds
what bpftool(8) reads from the complete data; it is compared with what bpf/btf.py reads from the cut.
"""

from __future__ import annotations

import json
import lzma
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bpf.build import KFUNCS
from tests.kernels.packages import SUITES, Kernel, kernel

HERE = Path(__file__).parent
STRUCTURES = ("nf_conn", "nf_conntrack_tuple_hash", "nf_conntrack_tuple", "ip_ct_tcp_state", "nf_ct_ext")
ENUMERATION, FLAG = "nf_ct_ext_id", "BPF_F_IPV6"
MEMBERS = (
    ("nf_conn", "status"), ("nf_conn", "mark"), ("nf_conn", "tuplehash"), ("nf_conn", "ext"),
    ("nf_conn", "proto.tcp.state"), ("nf_conn", "proto.tcp.seen"), ("nf_conntrack_tuple_hash", "tuple"),
    ("nf_conntrack_tuple", "src.u3"), ("nf_conntrack_tuple", "src.u.all"),
    ("nf_conntrack_tuple", "dst.u3"), ("nf_conntrack_tuple", "dst.u.all"), ("nf_ct_ext", "offset"),
    ("ip_ct_tcp_state", "flags"),
)  # fmt: skip

_COMPRESSED = ((b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"\x1f\x8b\x08", "gzip"))
_HEADER, _TYPE = struct.Struct("<HBBIIIII"), struct.Struct("<III")
_ARRAY, _STRUCT, _UNION, _ENUM, _FWD, _FUNC, _ENUM64 = 3, 4, 5, 6, 7, 12, 19
_THROUGH = {8, 9, 10, 11, 18}  # typedef, volatile, const, restrict, type tag
_FIXED = {1: 4, _ARRAY: 12, 14: 4, 17: 4}
_EACH = {_STRUCT: 12, _UNION: 12, _ENUM: 8, 13: 8, 15: 12, _ENUM64: 12}


def main(names: list[str]) -> None:
    """Write the files of these kernels, or of all."""
    for name in names or SUITES:
        found = kernel(name)
        whole = _section(_vmlinux(found.image)), _section(_module(found))
        (HERE / f"{name}.json").write_text(json.dumps(_facts(found, *whole), indent=1) + "\n")
        base = _Cut(whole[0])
        module = _Cut(whole[1], base)
        for part, cut in (("vmlinux", base), ("nf_conntrack", module)):
            path = HERE / f"{name}.{part}.xz"
            path.write_bytes(lzma.compress(cut.written(), preset=9 | lzma.PRESET_EXTREME))
            print(f"{path.name}: {path.stat().st_size} bytes")


def _vmlinux(image: Path) -> bytes:
    """Return the ELF file that a bzImage holds compressed."""
    data = image.read_bytes()
    for magic, program in _COMPRESSED:
        at = -1
        while (at := data.find(magic, at + 1)) >= 0:
            # More data follows, so the program ends with an error although all is well.
            words = [program, "-dcq"]
            found = subprocess.run(words, input=data[at:], capture_output=True, check=False).stdout
            if found[:4] == b"\x7fELF":
                return found
    raise SystemExit(f"{image} holds no kernel in a compression that is known here")


def _module(found: Kernel) -> bytes:
    folder = found.folder / "root/lib/modules" / found.release / "kernel/net/netfilter"
    (path,) = folder.glob("nf_conntrack.ko*")
    return lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()


def _section(elf: bytes, wanted: str = ".BTF") -> bytes:
    """Return a section of a 64-bit ELF file."""
    at, size, count, names = struct.unpack_from("<Q10xHHH", elf, 0x28)
    headers = [struct.unpack_from("<II4Q", elf, at + size * number) for number in range(count)]
    strings = headers[names][4]
    for name, _, _, _, offset, length in headers:
        start = strings + name
        if elf[start : elf.index(b"\0", start)].decode() == wanted:
            return elf[offset : offset + length]
    raise SystemExit(f"there is no section {wanted}")


class _Cut:
    """Hold one BTF blob, and which types and strings are kept.

    A module's ids continue where `base` ends.
    """

    def __init__(self, blob: bytes, base: _Cut | None = None) -> None:
        _, _, _, header, types, self._size, strings, self._length = _HEADER.unpack_from(blob)
        self._types = blob[header + types : header + types + self._size]
        self._strings = blob[header + strings : header + strings + self._length]
        self._first_string = base._first_string + base._length if base else 0
        self._first = base._first + len(base._starts) if base else 1
        self._starts = list(self._walk())
        self._kept: set[int] = set()
        for type_id in range(self._first, self._first + len(self._starts)):
            if self._is_wanted(type_id):
                self._keep(type_id)

    def _walk(self) -> Iterator[int]:
        at = 0
        while at < len(self._types):
            yield at
            _, info, _ = _TYPE.unpack_from(self._types, at)
            kind = info >> 24 & 31
            at += 12 + _FIXED.get(kind, 0) + _EACH.get(kind, 0) * (info & 0xFFFF)

    def _read(self, type_id: int) -> tuple[str, int, int, int]:
        """Return name, kind, number of members, and size or type."""
        name, info, other = _TYPE.unpack_from(self._types, self._starts[type_id - self._first])
        return self._text(name), info >> 24 & 31, info & 0xFFFF, other

    def _text(self, offset: int) -> str:
        start = offset - self._first_string
        if start < 0:
            return ""  # one of the base's
        return self._strings[start : self._strings.index(b"\0", start)].decode()

    def _members(self, type_id: int) -> Iterator[tuple[int, int]]:
        """Return name and type of each member; of an enumeration, name and value."""
        _, kind, count, _ = self._read(type_id)
        for number in range(count):
            at = self._starts[type_id - self._first] + 12 + _EACH[kind] * number
            yield struct.unpack_from("<II", self._types, at)

    def _is_wanted(self, type_id: int) -> bool:
        name, kind, _, _ = self._read(type_id)
        if kind == _STRUCT:
            return name in STRUCTURES
        if kind == _FUNC:
            return name in KFUNCS
        if kind == _ENUM and name:
            return name == ENUMERATION
        if kind not in (_ENUM, _ENUM64):
            return False
        return FLAG in (self._text(text) for text, _ in self._members(type_id))

    def _keep(self, type_id: int) -> None:
        """Keep this type and the types of its members, but not what it points to."""
        if type_id in self._kept or type_id < self._first:
            return
        self._kept.add(type_id)
        _, kind, _, other = self._read(type_id)
        if kind in _THROUGH:
            self._keep(other)
        elif kind == _ARRAY:
            self._keep(struct.unpack_from("<I", self._types, self._starts[type_id - self._first] + 12)[0])
        elif kind in (_STRUCT, _UNION):
            for _, member in self._members(type_id):
                self._keep(member)

    def written(self) -> bytes:
        """Return the blob with everything else emptied."""
        types, strings = bytearray(), bytearray(self._length)
        ends = [*self._starts[1:], len(self._types)]
        for number, (start, end) in enumerate(zip(self._starts, ends, strict=True)):
            if self._first + number not in self._kept:
                types += _TYPE.pack(0, _FWD << 24, 0)
                continue
            types += self._types[start:end]
            for text in self._names(self._first + number):
                self._copy_text(text, strings)
        header = _HEADER.pack(0xEB9F, 1, 0, _HEADER.size, 0, len(types), len(types), len(strings))
        return header + types + strings

    def _names(self, type_id: int) -> Iterator[int]:
        yield _TYPE.unpack_from(self._types, self._starts[type_id - self._first])[0]
        if self._read(type_id)[1] in (_STRUCT, _UNION, _ENUM, _ENUM64):
            yield from (text for text, _ in self._members(type_id))

    def _copy_text(self, offset: int, strings: bytearray) -> None:
        text, start = self._text(offset).encode(), offset - self._first_string
        if text:
            strings[start : start + len(text)] = text


def _facts(found: Kernel, base: bytes, module: bytes) -> dict[str, Any]:
    """Return ids and offsets as bpftool reads them from the complete data."""
    with tempfile.TemporaryDirectory() as folder:
        paths = Path(folder, "vmlinux"), Path(folder, "nf_conntrack")
        for path, blob in zip(paths, (base, module), strict=True):
            path.write_bytes(blob)
        kernels = _dumped(str(paths[0]))
        modules = _dumped(str(paths[1]), "-B", str(paths[0]))
    types = {each["id"]: each for each in (*kernels, *modules)}
    first = {}
    for each in types.values():
        first.setdefault((each["kind"], each["name"]), each)
    return {
        "release": found.release,
        "types": len(kernels) + 1,  # void included
        "functions": {name: first["FUNC", name]["id"] for name in KFUNCS},
        "sizes": {name: first["STRUCT", name]["size"] for name in STRUCTURES},
        "offsets": {
            f"{name} {path}": _offset(types, first["STRUCT", name], path.split(".")) for name, path in MEMBERS
        },
        "extensions": {each["name"]: each["val"] for each in first["ENUM", ENUMERATION]["values"]},
    }


def _dumped(path: str, *options: str) -> list[dict[str, Any]]:
    words = ["bpftool", "-j", *options, "btf", "dump", "file", path, "format", "raw"]
    done = subprocess.run(words, capture_output=True, check=True)
    return list(json.loads(done.stdout)["types"])


def _offset(types: dict[int, dict[str, Any]], of: dict[str, Any], path: list[str]) -> int:
    """Return the bytes to a member, through anonymous ones; -1 if there is none."""
    while of["kind"] in ("TYPEDEF", "CONST", "VOLATILE"):
        of = types[of["type_id"]]
    for member in of.get("members", ()):
        at = member["bits_offset"] // 8
        if member["name"] == path[0]:
            return at if len(path) == 1 else at + _offset(types, types[member["type_id"]], path[1:])
        if member["name"] == "(anon)":
            inner = _offset(types, types[member["type_id"]], path)
            if inner >= 0:
                return at + inner
    return -1


if __name__ == "__main__":
    main(sys.argv[1:])
