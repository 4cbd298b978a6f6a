"""Compile the programs with BCC, and cache the results.

    python -m bpf.build OUTPUT [PROGRAM]

writes a compiled program as JSON (by default the fast path, see SOURCES); a separate process, as its end
frees LLVM's memory. BCC wants a kernel's header tree: it gets bpf/include/kernel, a few stand-ins around
the C library's UAPI headers, so kernel headers aren't needed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import platform
import shutil
import struct
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from bpf import layout
from bpf.btf import VMLINUX, Btf, BtfError, read_btf, types_of_module
from core.tools import python_command, python_environment

HERE = Path(__file__).parent
# Concatenated in this order: BCC finds maps only in its main text.
PARTS = ("maps.c", "routes.c", "learning.c", "flows.c", "tunnels.c", "fastpath.c")
UAPI = Path("/usr/include")
CACHE = Path("/var/cache/vnet-tui")
_COMPILE_SECONDS = 900  # usually 1; an emulated machine takes a hundred times as long
PROGRAM = "fastpath"
INSTALL_BCC = "apt install python3-bpfcc (Fedora: dnf install python3-bcc)"

# The kernel functions that the program calls, compiled as calls of helpers with these invented numbers.
KFUNC_BASE = 900_000
KFUNCS = ("bpf_skb_ct_lookup", "bpf_ct_release", "bpf_ct_change_timeout")

_INSTRUCTION = struct.Struct("<BBhi")
_LD_IMM64, _CALL = 0x18, 0x85
_PSEUDO_MAP_FD, _PSEUDO_KFUNC_CALL = 1, 2
_MODULE = 1  # the index of the module's BTF in fd_array: see syscall.load_program


@dataclass(frozen=True, slots=True)
class CompiledProgram:
    """Hold a compiled program: instructions, and where maps belong in them.

    `code` has zeros in place of map descriptors; `map_uses` has the index of each with the map's name.
    Kernel functions are already resolved, for the kernel that it was compiled on; `calls_module`: they are
    those of the module nf_conntrack. `names` are the kernel's names for numbers that the program reports.
    `others` are further programs of the same text.
    """

    code: bytes
    map_uses: tuple[tuple[int, str], ...]
    calls_module: bool = False
    names: Mapping[int, str] = field(default_factory=dict)
    others: tuple[CompiledProgram, ...] = ()

    def with_maps(self, descriptors: Mapping[str, int]) -> bytes:
        """Return the instructions with these map descriptors, ready to load."""
        code = bytearray(self.code)
        for index, name in self.map_uses:
            opcode, registers, offset, _ = _INSTRUCTION.unpack_from(code, 8 * index)
            _INSTRUCTION.pack_into(code, 8 * index, opcode, registers, offset, descriptors[name])
        return bytes(code)

    def to_json(self) -> str:
        """Return the format of the cache file."""
        return json.dumps(self._fields())

    def _fields(self) -> dict[str, Any]:
        code = base64.b64encode(self.code).decode()
        fields = {"code": code, "map_uses": self.map_uses, "calls_module": self.calls_module}
        return fields | {"names": self.names, "others": [each._fields() for each in self.others]}

    @classmethod
    def from_json(cls, text: str) -> CompiledProgram:
        """Parse the format of the cache file; raises ValueError if it is malformed."""
        try:
            return cls._from_fields(json.loads(text))
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError("not a compiled program") from error

    @classmethod
    def _from_fields(cls, found: dict[str, Any]) -> CompiledProgram:
        uses = tuple((int(index), str(name)) for index, name in found["map_uses"])
        names = {int(number): str(name) for number, name in found["names"].items()}
        code = base64.b64decode(found["code"], validate=True)
        others = tuple(cls._from_fields(each) for each in found["others"])
        return cls(code, uses, bool(found["calls_module"]), names, others)


def extract_program(dumped: bytes, names: Mapping[int, str], btf: Btf) -> CompiledProgram:
    """Convert the instructions that BCC returns to a CompiledProgram.

    They have maps by descriptor (`names`: their names) and kernel functions by invented number. Raises
    BtfError if the kernel lacks one of these functions.
    """
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
    return CompiledProgram(bytes(code), tuple(uses), calls_module)


def _function(btf: Btf, name: str) -> int:
    found = btf.function(name)
    if found is None:
        raise BtfError(f"this kernel has no function {name}")
    return found


class CompileError(Exception):
    """The program can't be compiled for this kernel; the text is the reason."""


def main(output: str, name: str = PROGRAM) -> None:
    """Compile, and write the result atomically."""
    program = compile_fastpath() if name == PROGRAM else compile_source(SOURCES[name])
    target = Path(output)
    # A random name, not our PID: another PID namespace may share the directory.
    descriptor, written = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    with os.fdopen(descriptor, "w") as file:
        file.write(program.to_json())
    Path(written).rename(target)


def compile_fastpath(source: str | None = None) -> CompiledProgram:
    """Compile the fast path for the running kernel.

    Raises BtfError, ImportError without BCC, and whatever exception BCC raises.
    """
    return compile_source(SOURCES[PROGRAM], source)


def compile_source(source: ProgramSource, text: str | None = None) -> CompiledProgram:
    """Compile a program for the running kernel, with another `text` if given.

    Raises as compile_fastpath does.
    """
    btf = read_btf(module=types_of_module())
    with kernel_tree() as tree:
        os.environ["BCC_KERNEL_SOURCE"] = str(tree)
        from bcc import BPF

        # The text as rewritten by BCC has warnings: `make lint` compiles the original with them on.
        text = source.text() if text is None else text
        compiled = BPF(text=text.encode(), cflags=["-Wno-everything", *source.flags(btf)])
    # BCC opens maps when asked for by name.
    names = {compiled[name.encode()].map_fd: name for name in source.maps}
    program, *others = (
        extract_program(compiled.dump_func(each), names, btf) for each in (source.function, *source.others)
    )
    return replace(program, names=source.names(btf), others=tuple(others))


def source_text() -> str:
    """Return the whole program in C; compiler messages name the original files."""
    return "".join(map(part_text, PARTS)) + f'#line 1 "layout.checks()"\n{layout.checks()}\n'


def part_text(name: str) -> str:
    """Return a file of program/; compiler messages name it."""
    path = HERE / "program" / name
    return f'#line 1 "{path}"\n{path.read_text()}\n'


MAPS = ("config", "counters", "scratch", "links", "owners", "macs", "captured",
        "flows4", "flows6", "wanted", "young", "tunnels", "outers", "inlets")  # fmt: skip


_INCLUDES = ("-D__LINUX_BPF_H__", f"-I{HERE / 'include'}")


def flags(btf: Btf) -> Iterator[str]:
    """Yield compiler flags for a kernel with these types."""
    yield from _INCLUDES
    yield f"-I{HERE}"
    yield f"-DHAVE_BPF_F_IPV6={int('BPF_F_IPV6' in btf.enumerators)}ULL"
    for number, name in enumerate(KFUNCS):
        yield f"-DKFUNC_{name}={KFUNC_BASE + number}"
    for define, value in offsets(btf).items():
        yield f"-D{define}={value}"


def offsets(btf: Btf) -> dict[str, int]:
    """Return the offsets of the members that conntrack.h reads."""
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
    """Return the offset in struct nf_ct_ext that shows if an extension is present.

    If the kernel was built without this extension, the offset of helpers.
    """
    helper = btf.enumerator("nf_ct_ext_id", "NF_CT_EXT_HELPER") or 0
    found = btf.enumerator("nf_ct_ext_id", f"NF_CT_EXT_{name}")
    return btf.offset("nf_ct_ext", "offset") + (helper if found is None else found)


@contextmanager
def kernel_tree() -> Iterator[Path]:
    """Create a directory that BCC accepts as a kernel's source."""
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


@dataclass(frozen=True, slots=True)
class ProgramSource:
    """Describe a program in C: text, main function, maps, and what it needs of BTF.

    `names` returns the kernel's names for numbers that the program reports; `others` are further functions.
    """

    function: str
    text: Callable[[], str]
    maps: tuple[str, ...]
    flags: Callable[[Btf], Iterator[str]]
    names: Callable[[Btf], Mapping[int, str]] = lambda btf: {}
    others: tuple[str, ...] = ()


def drops_flags(btf: Btf) -> Iterator[str]:
    """Yield compiler flags for program/drops.c.

    A kernel without reasons (before 5.17) has no enum skb_drop_reason: BtfError.
    """
    btf.enumerators_of(DROP_REASONS)
    yield from _INCLUDES
    # Parameters besides the first, which the tracepoint's arguments don't include: since 6.11 four.
    yield f"-DHAS_RECEIVER={int(btf.parameters('__traceiter_kfree_skb') > 4)}"
    for define, (structure, member) in _DROP_MEMBERS.items():
        yield f"-D{define}={btf.offset(structure, member)}"


def drop_reasons(btf: Btf) -> dict[int, str]:
    """Return the names of drop reasons by number, also those of Open vSwitch."""
    found = {
        number & 0xFFFFFFFF: name.removeprefix(_REASON_PREFIX)
        for enumeration in (DROP_REASONS, *_SUBSYSTEM_REASONS)
        if enumeration in btf.enums
        for name, number in btf.enumerators_of(enumeration).items()
    }
    return {number: name for number, name in found.items() if not name.startswith("SUBSYS")}


def storm_guard_flags(_: Btf) -> Iterator[str]:
    """Yield compiler flags for program/storm_guard.c."""
    yield from _INCLUDES


def functions_flags(btf: Btf) -> Iterator[str]:
    """Yield compiler flags for program/functions.c.

    On a processor whose registers aren't known here, BtfError.
    """
    machine = platform.machine()
    if machine not in ARGUMENTS:
        raise BtfError(f"the registers of {machine} aren't known")
    yield from _INCLUDES
    for name, word in zip(("FIRST", "SECOND", "THIRD"), ARGUMENTS[machine], strict=True):
        yield f"-D{name}_ARGUMENT={word}"
    # Without it (before 6.3) a packet that was not dropped has no reason.
    consumed = btf.enumerator(DROP_REASONS, "SKB_CONSUMED") if DROP_REASONS in btf.enums else None
    yield f"-DCONSUMED={consumed or 0}"
    members = {name: _DROP_MEMBERS[name] for name in _FUNCTION_MEMBERS}
    for define, (structure, member) in {**members, "SKB_TAIL": ("sk_buff", "tail")}.items():
        yield f"-D{define}={btf.offset(structure, member)}"


# The words of struct pt_regs that hold the first three arguments (asm/ptrace.h).
ARGUMENTS = {"x86_64": (14, 13, 12), "aarch64": (0, 1, 2)}
_FUNCTION_MEMBERS = ("SKB_DEV", "SKB_HEAD", "SKB_NETWORK_HEADER", "DEV_IFINDEX", "DEV_NET", "NET_INUM")
DROP_REASONS = "skb_drop_reason"
_REASON_PREFIX = "SKB_DROP_REASON_"
_SUBSYSTEM_REASONS = ("ovs_drop_reason", "mac80211_drop_reason")
_DROP_MEMBERS = {
    "SKB_DEV": ("sk_buff", "dev"), "SKB_SK": ("sk_buff", "sk"), "SKB_IIF": ("sk_buff", "skb_iif"),
    "SKB_DST": ("sk_buff", "_skb_refdst"), "SKB_HEAD": ("sk_buff", "head"),
    "SKB_PROTOCOL": ("sk_buff", "protocol"), "SKB_NETWORK_HEADER": ("sk_buff", "network_header"),
    "SKB_LEN": ("sk_buff", "len"), "DEV_IFINDEX": ("net_device", "ifindex"),
    "DEV_NET": ("net_device", "nd_net"), "DST_DEV": ("dst_entry", "dev"),
    "SOCK_NET": ("sock", "__sk_common.skc_net"), "NET_INUM": ("net", "ns.inum"),
}  # fmt: skip
_DROP_MAPS = ("drops", "uncounted", "owners", "packets")
_DROPS, _FUNCTIONS = partial(part_text, "drops.c"), partial(part_text, "functions.c")
_STORM_GUARD, _GUARD_MAPS = partial(part_text, "storm_guard.c"), ("buckets", "seen", "macs")
SOURCES: Mapping[str, ProgramSource] = {
    PROGRAM: ProgramSource(PROGRAM, source_text, MAPS, flags, others=("observe_sent",)),
    "drops": ProgramSource("count_drop", _DROPS, _DROP_MAPS, drops_flags, drop_reasons),
    "drop_packets": ProgramSource("report_drop", _DROPS, _DROP_MAPS, drops_flags),
    "storm_guard": ProgramSource("limit_storms", _STORM_GUARD, _GUARD_MAPS, storm_guard_flags),
    "storm_guard_xdp": ProgramSource("limit_in_driver", _STORM_GUARD, _GUARD_MAPS, storm_guard_flags),
    "storm_guard_egress": ProgramSource("limit_unknown", _STORM_GUARD, _GUARD_MAPS, storm_guard_flags),
    "functions": ProgramSource("report_call", _FUNCTIONS, ("wanted", "probe", "calls"), functions_flags),
}


def compiled_program(cache: Path = CACHE, name: str = PROGRAM) -> CompiledProgram:
    """Return a compiled program, from the cache if source and kernel are the same."""
    path = cache / f"{name}-{_fingerprint()}.json"
    cached = _cached(path)
    if cached is not None:
        return cached
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CompileError(f"{error.strerror} ({cache})") from error
    _compile(path, name)
    cached = _cached(path)
    if cached is None:
        raise CompileError("the compiler wrote no result")
    return cached


def is_compiled(cache: Path = CACHE) -> bool:
    """Return whether the cache has the program, so that BCC and headers aren't needed."""
    try:
        return _cached(cache / f"fastpath-{_fingerprint()}.json") is not None
    except CompileError:
        return False


def _fingerprint() -> str:
    """Hash everything the result depends on.

    That is our source, and the types of the kernel and its connection tracking.
    """
    digest = hashlib.sha256()
    sources = (HERE / name for name in ("btf.py", "build.py", "layout.py"))
    for path in sorted((*sources, *HERE.glob("**/*.[ch]"))):
        digest.update(path.read_bytes())
    try:
        digest.update(VMLINUX.read_bytes())
    except OSError as error:
        raise CompileError(f"{error.strerror} ({VMLINUX})") from error
    digest.update(types_of_module())
    return digest.hexdigest()[:24]


def _cached(path: Path) -> CompiledProgram | None:
    """Return the cached program if only this user can have written it.

    It is loaded into the kernel, so no other user may be able to change it.
    """
    try:
        with path.open() as file:
            status = os.fstat(file.fileno())
            if status.st_uid != os.geteuid() or status.st_mode & 0o022:
                return None
            return CompiledProgram.from_json(file.read())
    except (OSError, ValueError):
        return None


def _compile(path: Path, name: str) -> None:
    """Compile in a separate process: BCC with LLVM takes 150 MB, which its end frees."""
    done = subprocess.run(
        python_command("bpf.build", str(path.absolute()), name),
        capture_output=True,
        text=True,
        env=python_environment(),
        cwd="/",
        timeout=_COMPILE_SECONDS,
        check=False,
    )
    if done.returncode:
        raise CompileError(reason_of(done.stderr) or f"the compiler exited with {done.returncode}")


def reason_of(stderr: str) -> str:
    """Return why compiling failed: the first error in the C text, else the last line."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    if lines and "No module named 'bcc'" in lines[-1]:
        return f"BCC isn't installed. Try: {INSTALL_BCC}"
    last = lines[-1].removeprefix(f"{BtfError.__module__}.{BtfError.__name__}: ") if lines else ""
    return next((line for line in lines if ": error: " in line), last)


if __name__ == "__main__":
    main(*sys.argv[1:])
