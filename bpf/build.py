"""Compiles the fast path with BCC; run as a process of its own, so that LLVM's memory ends with it.

`python -m bpf.build OUTPUT` writes the compiled program (bpf/build.py) as JSON. BCC wants a kernel's
header tree: it gets bpf/include/kernel, a few stand-ins around the C library's own UAPI headers, so no kernel
headers are needed.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import struct
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bpf import layout
from bpf.btf import Btf, BtfError, read_btf, types_of_module

# A compiled program as a value: instructions, and what must be put into them before the kernel takes them.

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


HERE = Path(__file__).parent
# In this order they make one text: BCC knows maps in its main text only.
PARTS = ("maps.c", "ways.c", "learning.c", "fastpath.c")
UAPI = Path("/usr/include")
PROGRAM = "fastpath"


def main(output: str) -> None:
    """Compile, and write the result whole or not at all."""
    artifact = compile_fastpath()
    target = Path(output)
    # A random name, not our PID: another PID namespace may share the directory.
    descriptor, written = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    with os.fdopen(descriptor, "w") as file:
        file.write(artifact.to_json())
    Path(written).rename(target)


def compile_fastpath(source: str | None = None) -> Artifact:
    """The fast path for the running kernel; raises BtfError, ImportError without BCC, Exception as BCC words
    it."""
    btf = read_btf(module=types_of_module())
    with kernel_tree() as tree:
        os.environ["BCC_KERNEL_SOURCE"] = str(tree)
        from bcc import BPF

        # What BCC rewrites the text to has warnings: `make lint` compiles the text itself with them on.
        text = source_text() if source is None else source
        compiled = BPF(text=text.encode(), cflags=["-Wno-everything", *flags(btf)])
    names = {table.map_fd: name.decode() for name, table in _tables(compiled)}
    return artifact_of(compiled.dump_func(PROGRAM), names, btf)


def source_text() -> str:
    """The whole program in C; the compiler's messages name the files that it was put together from."""
    parts = {str(HERE / "program" / part): (HERE / "program" / part).read_text() for part in PARTS}
    parts["layout.checks()"] = layout.checks()
    return "".join(f'#line 1 "{path}"\n{text}\n' for path, text in parts.items())


def _tables(compiled: Any) -> Iterator[tuple[bytes, Any]]:
    """The maps of a compiled module: BCC knows them by number, and opens them when asked for by name."""
    for name in MAPS:
        yield name.encode(), compiled[name.encode()]


MAPS = ("config", "counters", "scratch", "links", "owners", "macs", "captured",
        "flows4", "flows6", "wanted", "young")  # fmt: skip


def flags(btf: Btf) -> Iterator[str]:
    """What the text needs of a compiler that works for BCC, for a kernel with these types."""
    yield "-D__LINUX_BPF_H__"
    yield f"-I{HERE}"
    yield f"-I{HERE / 'include'}"
    yield f"-DHAVE_BPF_F_IPV6={int('BPF_F_IPV6' in btf.enumerators)}ULL"
    for number, name in enumerate(KFUNCS):
        yield f"-DKFUNC_{name}={KFUNC_BASE + number}"
    for define, value in offsets(btf).items():
        yield f"-D{define}={value}"


def offsets(btf: Btf) -> dict[str, int]:
    """Where the members are that conntrack.h reads."""
    return {
        "NF_CONN_STATUS": btf.offset("nf_conn", "status"),
        "NF_CONN_MARK": btf.offset("nf_conn", "mark"),
        "NF_CONN_TUPLEHASH": btf.offset("nf_conn", "tuplehash"),
        "NF_CONN_EXT": btf.offset("nf_conn", "ext"),
        "NF_CONN_TCP_STATE": btf.offset("nf_conn", "proto.tcp.state"),
        "NF_CONN_TCP_FLAGS": btf.offset("nf_conn", "proto.tcp.seen.flags"),
        "TCP_SEEN_SIZE": btf.size("ip_ct_tcp_state"),
        **{f"NF_CT_EXT_{name}": extension(btf, name) for name in ("HELPER", "TIMEOUT")},
        "TUPLE_HASH_SIZE": btf.size("nf_conntrack_tuple_hash"),
        "TUPLE_HASH_TUPLE": btf.offset("nf_conntrack_tuple_hash", "tuple"),
        "TUPLE_SRC": btf.offset("nf_conntrack_tuple", "src.u3"),
        "TUPLE_SPORT": btf.offset("nf_conntrack_tuple", "src.u.all"),
        "TUPLE_DST": btf.offset("nf_conntrack_tuple", "dst.u3"),
        "TUPLE_DPORT": btf.offset("nf_conntrack_tuple", "dst.u.all"),
    }


def extension(btf: Btf, name: str) -> int:
    """Where struct nf_ct_ext says whether a connection has that extension; where it says it of helpers on
    kernels built without it."""
    helper = btf.enumerator("nf_ct_ext_id", "NF_CT_EXT_HELPER") or 0
    found = btf.enumerator("nf_ct_ext_id", f"NF_CT_EXT_{name}")
    return btf.offset("nf_ct_ext", "offset") + (helper if found is None else found)


@contextmanager
def kernel_tree() -> Iterator[Path]:
    """A folder that BCC takes for a kernel's source."""
    root = Path(tempfile.mkdtemp(prefix="vnet-tui-"))
    try:
        shutil.copytree(HERE / "include" / "kernel", root / "include")
        uapi = root / "include" / "uapi"
        uapi.mkdir()
        (uapi / "linux").symlink_to(UAPI / "linux")
        (uapi / "asm-generic").symlink_to(UAPI / "asm-generic")
        triplet = sysconfig.get_config_var("MULTIARCH") or ""
        found = [each for each in (UAPI / triplet / "asm", UAPI / "asm") if each.is_dir()]
        (uapi / "asm").symlink_to(found[0] if found else UAPI / "asm")
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1])
