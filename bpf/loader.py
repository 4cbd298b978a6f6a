"""Makes the maps, puts the compiled program into the kernel, and keeps the compiled form for the next
time."""

from __future__ import annotations

import hashlib
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bpf import layout, syscall
from bpf.btf import VMLINUX, open_module_btf, types_of_module
from bpf.build import Artifact
from bpf.hostwatch import read
from core.tools import own_python, with_packages

HERE = Path(__file__).parent
CACHE = Path("/var/cache/vnet-tui")
SLOTS = 1024  # links that can be counted one by one; slot 0 is of those that are unknown
CAPTURED = 1024
_LEAST_FLOWS, _FLOW_BYTES = 1 << 14, 440  # one IPv4 and one IPv6 entry with their buckets, in the kernel
_PART_OF_MEMORY = 100
_COMPILE_SECONDS = 900  # 1 usually; an emulated machine takes a hundred times as long


class CannotCompile(Exception):
    """The program could not be made for this kernel; the text says why."""


@dataclass(frozen=True, slots=True)
class Map:
    """One map: its kind, key and value as in bpf/layout.py, how many entries."""

    kind: int
    key: np.dtype
    value: np.dtype
    entries: int


_INDEX = np.dtype("u4")
_NOTHING = np.dtype("V0")
WANTED_BYTES = 1 << 16


def flow_room() -> int:
    """The room for flows of each family: two for each connection that conntrack can hold, but no more than
    a hundredth of the machine's memory, which the kernel sets apart at once; a power of two."""
    connections = int(read("net.netfilter.nf_conntrack_max") or _LEAST_FLOWS)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    most = max(min(2 * connections, memory // _PART_OF_MEMORY // _FLOW_BYTES), _LEAST_FLOWS)
    return 1 << most.bit_length() - 1


def maps(flows: int) -> dict[str, Map]:
    """All maps of the fast path by their names in program/maps.c; `flows` is the room for flows of each
    family."""
    return {
        "config": Map(syscall.MAP_ARRAY, _INDEX, layout.CONFIG, 1),
        "counters": Map(syscall.MAP_PERCPU_ARRAY, _INDEX, layout.SLOT_COUNTERS, SLOTS),
        "scratch": Map(syscall.MAP_PERCPU_ARRAY, _INDEX, layout.LEARNED, 1),
        "links": Map(syscall.MAP_HASH, _INDEX, layout.LINK, layout.LINKS),
        "owners": Map(syscall.MAP_HASH, layout.OWNER_KEY, layout.OWNER, layout.OWNERS),
        "macs": Map(syscall.MAP_HASH, layout.MAC_KEY, layout.MAC_VALUE, layout.MACS),
        "captured": Map(syscall.MAP_HASH, layout.OWNER_KEY, _INDEX, CAPTURED),
        "flows4": Map(syscall.MAP_LRU_HASH, layout.KEY4, layout.FLOW, flows),
        "flows6": Map(syscall.MAP_LRU_HASH, layout.KEY6, layout.FLOW, flows),
        "wanted": Map(syscall.MAP_RINGBUF, _NOTHING, _NOTHING, WANTED_BYTES),
        "young": Map(syscall.MAP_ARRAY, _INDEX, layout.YOUNG, layout.YOUNG_ENTRIES),
    }


@dataclass(slots=True)
class Loaded:
    """The program in the kernel: `program` and `maps` are descriptors; all of it ends with them."""

    program: int
    maps: dict[str, int]

    def close(self) -> None:
        """Give everything back; the kernel frees it once no link holds the program either."""
        for descriptor in (self.program, *self.maps.values()):
            os.close(descriptor)


def load(flows: int, cache: Path = CACHE) -> Loaded:
    """The fast path, loaded, with room for that many flows of each family; compiled first where this kernel
    has not seen it yet.

    Raises CannotCompile, syscall.Rejected (the verifier), OSError (rights, memory).
    """
    artifact = compiled(cache)
    made: dict[str, int] = {}
    try:
        for name, each in maps(flows).items():
            made[name] = syscall.create_map(
                each.kind, each.key.itemsize, each.value.itemsize, each.entries, name
            )
        program = _load_program(artifact, made)
    except BaseException:
        for descriptor in made.values():
            os.close(descriptor)
        raise
    return Loaded(program, made)


def reload(loaded: Loaded, cache: Path = CACHE) -> int:
    """Another copy of the program on the same maps (an upgrade): its descriptor."""
    return _load_program(compiled(cache), loaded.maps)


def _load_program(artifact: Artifact, descriptors: dict[str, int]) -> int:
    module = open_module_btf() if artifact.calls_module else None
    try:
        code = artifact.with_maps(descriptors)
        return syscall.load_program(syscall.PROG_SCHED_CLS, code, "vnet_fastpath", module)
    finally:
        if module is not None:
            os.close(module)


def compiled(cache: Path = CACHE) -> Artifact:
    """The compiled program, from the cache where the same source was compiled for this very kernel."""
    path = cache / f"fastpath-{_fingerprint()}.json"
    kept = _kept(path)
    if kept is not None:
        return kept
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CannotCompile(f"{cache} cannot be made: {error.strerror}") from error
    _compile(path)
    made = _kept(path)
    if made is None:
        raise CannotCompile("the compiler left no result")
    return made


def is_compiled(cache: Path = CACHE) -> bool:
    """Whether the program lies in the cache for this kernel, so that neither BCC nor headers are needed."""
    try:
        return _kept(cache / f"fastpath-{_fingerprint()}.json") is not None
    except CannotCompile:
        return False


def _fingerprint() -> str:
    """Of all that the result depends on: our source, and the types of the kernel and its connection
    tracking."""
    digest = hashlib.sha256()
    ours = (HERE / name for name in ("btf.py", "build.py", "layout.py"))
    for path in sorted((*ours, *HERE.glob("**/*.[ch]"))):
        digest.update(path.read_bytes())
    try:
        digest.update(VMLINUX.read_bytes())
    except OSError as error:
        raise CannotCompile(f"{VMLINUX}: {error.strerror}: this kernel tells nothing of its types") from error
    digest.update(types_of_module())
    return digest.hexdigest()[:24]


def _kept(path: Path) -> Artifact | None:
    """What lies in the cache, if it is ours: nobody else may have written what goes into the kernel."""
    try:
        with path.open() as file:
            status = os.fstat(file.fileno())
            if status.st_uid != os.geteuid() or status.st_mode & 0o022:
                return None
            return Artifact.from_json(file.read())
    except (OSError, ValueError):
        return None


def _compile(path: Path) -> None:
    """In a process of its own: BCC with LLVM takes 150 MB, which only the end of a process gives back."""
    done = subprocess.run(
        own_python("bpf.build", str(path.absolute())),
        capture_output=True,
        text=True,
        env=with_packages(),
        cwd="/",
        timeout=_COMPILE_SECONDS,
        check=False,
    )
    if done.returncode:
        raise CannotCompile(reason_of(done.stderr) or f"the compiler ended with {done.returncode}")


def reason_of(stderr: str) -> str:
    """Pick the line that says why compiling failed: the first error in the C text, else the last line."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    if lines and "No module named 'bcc'" in lines[-1]:
        return "BCC is not installed (Debian: python3-bpfcc, Fedora: python3-bcc)"
    return next((line for line in lines if ": error: " in line), lines[-1] if lines else "")
