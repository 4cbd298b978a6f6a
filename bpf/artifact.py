"""A compiled program as a value: instructions, and what must be put into them before the kernel takes
them."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from bpf.btf import Btf, BtfError

# The kernel functions that the program calls; compiled as calls of helpers with these made-up numbers.
KFUNC_BASE = 900_000
KFUNCS = ("bpf_skb_ct_lookup", "bpf_ct_release", "bpf_ct_change_timeout")

_INSTRUCTION = struct.Struct("<BBhi")
_LD_IMM64, _CALL = 0x18, 0x85
_PSEUDO_MAP_FD, _PSEUDO_KFUNC_CALL = 1, 2
_MODULE = 1  # the index of the module's BTF in fd_array: see syscall.load_program


@dataclass(frozen=True, slots=True)
class Artifact:
    """`code` has zeros where descriptors of maps belong: at each index of `map_uses`, that map's. Kernel
    functions are in place already, for the kernel that it was compiled on; `calls_module` where they are
    those of the module nf_conntrack."""

    code: bytes
    map_uses: tuple[tuple[int, str], ...]
    calls_module: bool = False

    def with_maps(self, descriptors: Mapping[str, int]) -> bytes:
        """The instructions, ready to load."""
        code = bytearray(self.code)
        for index, name in self.map_uses:
            opcode, registers, offset, _ = _INSTRUCTION.unpack_from(code, 8 * index)
            _INSTRUCTION.pack_into(code, 8 * index, opcode, registers, offset, descriptors[name])
        return bytes(code)

    def to_json(self) -> str:
        """As a file keeps it."""
        code = base64.b64encode(self.code).decode()
        return json.dumps({"code": code, "map_uses": self.map_uses, "calls_module": self.calls_module})

    @classmethod
    def from_json(cls, text: str) -> Artifact:
        """Raises ValueError where the text is none of to_json's."""
        try:
            found = json.loads(text)
            uses = tuple((int(index), str(name)) for index, name in found["map_uses"])
            return cls(base64.b64decode(found["code"], validate=True), uses, bool(found["calls_module"]))
        except (KeyError, TypeError) as error:
            raise ValueError("not a compiled program") from error


def artifact_of(dumped: bytes, names: Mapping[int, str], btf: Btf) -> Artifact:
    """From the instructions as BCC gives them, in which maps stand by descriptor (`names` says which) and
    kernel functions by made-up number; raises BtfError where the kernel lacks one of these."""
    code = bytearray(dumped)
    uses: list[tuple[int, str]] = []
    calls_module = False
    for index in range(len(code) // 8):
        opcode, registers, offset, immediate = _INSTRUCTION.unpack_from(code, 8 * index)
        if opcode == _LD_IMM64 and registers >> 4 == _PSEUDO_MAP_FD:
            uses.append((index, names[immediate]))
            _INSTRUCTION.pack_into(code, 8 * index, opcode, registers, offset, 0)
        elif opcode == _CALL and immediate >= KFUNC_BASE:
            function = _function(btf, KFUNCS[immediate - KFUNC_BASE])
            of_module = btf.is_of_module(function)
            calls_module |= of_module
            callee = registers & 15 | _PSEUDO_KFUNC_CALL << 4
            _INSTRUCTION.pack_into(code, 8 * index, opcode, callee, _MODULE if of_module else 0, function)
    return Artifact(bytes(code), tuple(uses), calls_module)


def _function(btf: Btf, name: str) -> int:
    found = btf.function(name)
    if found is None:
        raise BtfError(f"this kernel has no function {name}")
    return found
