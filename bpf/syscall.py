"""Call bpf(2): maps, programs, links; one function per command.

Descriptors are int. Numbers and layouts: include/uapi/linux/bpf.h. Every failure is an OSError with the
kernel's errno.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

MAP_HASH, MAP_ARRAY, MAP_PERCPU_HASH, MAP_PERCPU_ARRAY, MAP_LRU_HASH = 1, 2, 5, 6, 9
MAP_RINGBUF = 27
PROG_KPROBE, PROG_SCHED_CLS, PROG_XDP, PROG_RAW_TRACEPOINT = 2, 3, 6, 17
XDP_HAS_FRAGS = 1 << 5  # it reads only the start of a frame in several parts
KPROBE_MULTI, TCX_INGRESS, TCX_EGRESS = 42, 46, 47
STATS_RUN_TIME = 0

_MAP_CREATE, _MAP_LOOKUP, _MAP_UPDATE, _MAP_DELETE = 0, 1, 2, 3
_PROG_LOAD, _PROG_TEST_RUN, _PROG_QUERY = 5, 10, 16
_MAP_NEXT_KEY = 4
_PROG_FD_BY_ID, _MAP_FD_BY_ID, _INFO_BY_FD = 13, 14, 15
# nr_map_ids and map_ids of struct bpf_prog_info
_MAPS_OF_PROGRAM = struct.Struct("=52xIQ")
_NAME_AT = 64  # in struct bpf_prog_info
_BTF_FD_BY_ID, _BTF_NEXT_ID = 19, 23
_LINK_FD_BY_ID, _LINK_NEXT_ID, _LINK_NETFILTER = 30, 31, 10
_MAP_LOOKUP_BATCH = 24
_RAW_TRACEPOINT_OPEN = 17
_LINK_CREATE, _LINK_UPDATE, _ENABLE_STATS = 28, 29, 32

_NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
_libc = ctypes.CDLL(None, use_errno=True)


def bpf(command: int, attributes: bytes | bytearray | ctypes.Array[ctypes.c_char]) -> int:
    """Call bpf(command, attributes); the kernel's answer updates a bytearray."""
    buffer = (ctypes.c_char * len(attributes)).from_buffer_copy(bytes(attributes))
    number = _NUMBERS[platform.machine()]
    result = _libc.syscall(
        ctypes.c_long(number), ctypes.c_long(command), buffer, ctypes.c_long(len(attributes))
    )
    if isinstance(attributes, bytearray):
        attributes[:] = buffer.raw
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result)


def _pointer(array: np.ndarray) -> int:
    return int(array.ctypes.data)


def _bytes_at(data: bytes) -> tuple[np.ndarray, int]:
    array = np.frombuffer(bytearray(data), np.uint8)
    return array, _pointer(array)


def create_map(kind: int, key_size: int, value_size: int, entries: int, name: str, flags: int = 0) -> int:
    """Create a map; the kernel keeps the first 15 bytes of its name."""
    attributes = struct.pack(
        "<IIIIIII16s", kind, key_size, value_size, entries, flags, 0, 0, name.encode()[:15]
    )
    return bpf(_MAP_CREATE, attributes)


def lookup(map_fd: int, key: bytes, value_size: int) -> bytes | None:
    """Return the value of a key, or None.

    For a per-CPU map the values of all CPUs, one after the other, each rounded up to eight bytes;
    `value_size` is their sum.
    """
    keys, key_at = _bytes_at(key)
    value = np.zeros(value_size, np.uint8)
    try:
        bpf(_MAP_LOOKUP, struct.pack("<IxxxxQQQ", map_fd, key_at, _pointer(value), 0))
    except FileNotFoundError:
        return None
    del keys
    return value.tobytes()


def update(map_fd: int, key: bytes, value: bytes) -> None:
    """Set a key's value."""
    keys, key_at = _bytes_at(key)
    values, value_at = _bytes_at(value)
    bpf(_MAP_UPDATE, struct.pack("<IxxxxQQQ", map_fd, key_at, value_at, 0))
    del keys, values


def delete(map_fd: int, key: bytes) -> bool:
    """Delete a key; return whether it existed."""
    keys, key_at = _bytes_at(key)
    try:
        bpf(_MAP_DELETE, struct.pack("<IxxxxQQQ", map_fd, key_at, 0, 0))
    except FileNotFoundError:
        return False
    del keys
    return True


def keys(map_fd: int, key_size: int) -> list[bytes]:
    """Return all keys of a small map."""
    found: list[bytes] = []
    here = np.zeros(key_size, np.uint8)
    after = np.zeros(key_size, np.uint8)
    at = 0
    while True:
        try:
            bpf(_MAP_NEXT_KEY, struct.pack("<IxxxxQQQ", map_fd, at, _pointer(after), 0))
        except FileNotFoundError:
            return found
        found.append(after.tobytes())
        here[:] = after
        at = _pointer(here)


def read_all(map_fd: int, key: np.dtype, value: np.dtype, entries: int) -> tuple[np.ndarray, np.ndarray]:
    """Read keys and values of a hash map as columns, in few system calls.

    `entries` is its capacity. Entries that are added or deleted meanwhile may be missed or read twice, as
    with any walk of a hash table.
    """
    found_keys = np.empty(entries, key)
    found_values = np.empty(entries, value)
    token = np.zeros(max(key.itemsize, 8), np.uint8)
    count, first = 0, True
    while count < entries:
        attributes = bytearray(
            struct.pack(
                "<QQQQIIQQ",
                0 if first else _pointer(token),
                _pointer(token),
                _pointer(found_keys[count:]),
                _pointer(found_values[count:]),
                entries - count,
                map_fd,
                0,
                0,
            )
        )
        try:
            bpf(_MAP_LOOKUP_BATCH, attributes)
        except FileNotFoundError:
            count += struct.unpack_from("<I", attributes, 32)[0]
            break
        count += struct.unpack_from("<I", attributes, 32)[0]
        first = False
    return found_keys[:count], found_values[:count]


class Rejected(Exception):
    """The kernel's verifier refused a program; the text is the end of its log."""


def load_program(
    kind: int,
    instructions: bytes,
    name: str,
    module_btf: int | None = None,
    attach_type: int = 0,
    flags: int = 0,
) -> int:
    """Load a program (GPL-compatible, as its helpers need).

    `attach_type` is where it will be attached, for the kinds that need this at loading; `flags` are
    BPF_F_* of BPF_PROG_LOAD.

    `module_btf` is a descriptor of the BTF of the kernel module whose functions it calls: calls with 1 in
    the instruction's offset are looked up there (`fd_array` of union bpf_attr; 0 is the kernel itself).
    Raises Rejected with the verifier's log.
    """
    code, code_at = _bytes_at(instructions)
    license_text, license_at = _bytes_at(b"GPL\0")
    log = np.zeros(1 << 20, np.uint8)
    modules = np.array([0, module_btf or 0], np.int32)

    def attributes(level: int) -> bytes:
        return struct.pack(
            "<IIQQIIQII16sIIIIQIIQIIIIQ",
            kind, len(instructions) // 8, code_at, license_at,
            level, len(log) if level else 0, _pointer(log) if level else 0, 0, flags,
            name.encode()[:15], 0, attach_type, 0, 0, 0, 0, 0, 0, 0, 0,
            0, 0, 0 if module_btf is None else _pointer(modules),
        )  # fmt: skip

    try:
        return bpf(_PROG_LOAD, attributes(0))
    except OSError as error:
        if error.errno in (1, 7):
            raise
    try:
        return bpf(_PROG_LOAD, attributes(1))
    except OSError as error:
        text = log.tobytes().split(b"\0", 1)[0].decode("utf-8", "replace")
        raise Rejected(f"the kernel refuses the program ({error.strerror}): {text[-2000:]}") from error
    finally:
        del code, license_text


@dataclass(frozen=True, slots=True)
class TestRun:
    """Hold the result of a test run.

    The program's return value, the packet afterwards, nanoseconds per run, and the context.
    """

    result: int
    packet: bytes
    duration: int
    context: bytes


def test_run(prog_fd: int, packet: bytes, repeat: int = 1, context: bytes = b"") -> TestRun:
    """Run a program on a frame (BPF_PROG_TEST_RUN).

    `context` is a struct __sk_buff, of which ifindex, gso_size and more are used.
    """
    given, given_at = _bytes_at(packet)
    out = np.zeros(len(packet) + 256, np.uint8)
    ctx_in, ctx_at = _bytes_at(context or b"\0")
    ctx_out = np.zeros(max(len(context), 1), np.uint8)
    attributes = bytearray(
        struct.pack(
            "<IIIIQQIIIIQQIII4x",
            prog_fd, 0, len(packet), len(out), given_at, _pointer(out), repeat, 0,
            len(context), len(context), ctx_at if context else 0, _pointer(ctx_out) if context else 0,
            0, 0, 0,
        )
    )  # fmt: skip
    bpf(_PROG_TEST_RUN, attributes)
    result, _, size = struct.unpack_from("<III", attributes, 4)
    (duration,) = struct.unpack_from("<I", attributes, 36)
    del given, ctx_in
    return TestRun(result, out[:size].tobytes(), duration, ctx_out.tobytes())


def attach_tcx(prog_fd: int, ifindex: int, where: int = TCX_INGRESS) -> int:
    """Attach a program at the end of an interface's tcx ingress or egress.

    Returns a link, which ends with its last descriptor.
    """
    return bpf(_LINK_CREATE, struct.pack("<IIIIIIQ", prog_fd, ifindex, where, 0, 0, 0, 0))


def attach_raw_tracepoint(prog_fd: int, name: str) -> int:
    """Attach a program to a raw tracepoint, which needs no tracefs.

    Returns a link, which ends with its last descriptor.
    """
    text, text_at = _bytes_at(f"{name}\0".encode())
    try:
        return bpf(_RAW_TRACEPOINT_OPEN, struct.pack("<QIxxxxQ", text_at, prog_fd, 0))
    finally:
        del text


def attach_kprobes(prog_fd: int, cookies: Mapping[int, int]) -> int:
    """Attach a program at kernel functions, by address, each with its cookie.

    Returns a link (kprobe.multi, Linux 5.18), which ends with its last descriptor.
    """
    addresses, values = (np.array(list(each), np.uint64) for each in (cookies, cookies.values()))
    attributes = struct.pack(
        "<IIIIIIQQQ", prog_fd, 0, KPROBE_MULTI, 0, 0, len(cookies), 0, _pointer(addresses), _pointer(values)
    )
    return bpf(_LINK_CREATE, attributes)


def replace_program(link_fd: int, prog_fd: int) -> None:
    """Replace a link's program atomically."""
    bpf(_LINK_UPDATE, struct.pack("<IIII", link_fd, prog_fd, 0, 0))


def attached(ifindex: int, where: int = TCX_INGRESS) -> list[int]:
    """Return the ids of the programs at an interface's tcx ingress or egress.

    In the order in which they run.
    """
    ids = np.zeros(64, np.uint32)
    attributes = bytearray(
        struct.pack("<IIIIQIIQQQQ", ifindex, where, 0, 0, _pointer(ids), len(ids), 0, 0, 0, 0, 0)
    )
    bpf(_PROG_QUERY, attributes)
    (count,) = struct.unpack_from("<I", attributes, 24)
    return [int(each) for each in ids[:count]]


def program_by_id(program_id: int) -> int:
    """Open a program that another process loaded."""
    return bpf(_PROG_FD_BY_ID, struct.pack("<III", program_id, 0, 0))


def maps_of_program(prog_fd: int) -> list[int]:
    """Return the ids of a program's maps (struct bpf_prog_info)."""
    ids = np.zeros(64, np.uint32)
    answer = bytearray(_MAPS_OF_PROGRAM.size)
    _MAPS_OF_PROGRAM.pack_into(answer, 0, len(ids), _pointer(ids))
    info = np.frombuffer(answer, np.uint8)
    bpf(_INFO_BY_FD, struct.pack("<IIQ", prog_fd, len(answer), _pointer(info)))
    count, _ = _MAPS_OF_PROGRAM.unpack(answer)
    return [int(one) for one in ids[:count]]


def program_name(prog_fd: int) -> str:
    """Return a program's name, 15 bytes at most (struct bpf_prog_info)."""
    return object_info(prog_fd, _NAME_AT + 16)[_NAME_AT:].split(b"\0", 1)[0].decode("utf-8", "replace")


def map_by_id(map_id: int) -> int:
    """Open a map that another process created."""
    return bpf(_MAP_FD_BY_ID, struct.pack("<III", map_id, 0, 0))


def next_btf_id(after: int) -> int:
    """Return the next id of BTF in the kernel, its own and its modules' included.

    Raises FileNotFoundError after the last one.
    """
    attributes = bytearray(struct.pack("<III", after, 0, 0))
    bpf(_BTF_NEXT_ID, attributes)
    return int(struct.unpack_from("<I", attributes, 4)[0])


def btf_by_id(btf_id: int) -> int:
    """Open BTF by id."""
    return bpf(_BTF_FD_BY_ID, struct.pack("<III", btf_id, 0, 0))


def kernel_btf_name(btf_fd: int) -> str:
    """Return the kernel module that BTF belongs to (struct bpf_btf_info).

    "vmlinux" for the kernel, "" for a program's BTF.
    """
    name = np.zeros(64, np.uint8)
    answer = np.frombuffer(bytearray(struct.pack("<QIIQII", 0, 0, 0, _pointer(name), len(name), 0)), np.uint8)
    bpf(_INFO_BY_FD, struct.pack("<IIQ", btf_fd, len(answer), _pointer(answer)))
    is_kernels = struct.unpack_from("<I", answer.tobytes(), 28)[0]
    return name.tobytes().split(b"\0", 1)[0].decode("ascii", "replace") if is_kernels else ""


def netfilter_links() -> Iterator[tuple[int, int, int]]:
    """Yield the BPF programs at netfilter hooks of all network namespaces.

    As number of the link, NFPROTO_*, hook. Yields nothing if the kernel has no such links, or the caller
    may not see them.
    """
    at = 0
    with suppress(OSError):
        while True:
            attributes = bytearray(struct.pack("<III", at, 0, 0))
            bpf(_LINK_NEXT_ID, attributes)
            (at,) = struct.unpack_from("<I", attributes, 4)
            with suppress(FileNotFoundError):
                descriptor = bpf(_LINK_FD_BY_ID, struct.pack("<III", at, 0, 0))
                link = object_info(descriptor, 32)
                os.close(descriptor)
                kind, _, _, _, family, hook = struct.unpack_from("<IIIIII", link)
                if kind == _LINK_NETFILTER:
                    yield at, family, hook


def object_info(fd: int, size: int) -> bytes:
    """Return the kernel's struct bpf_map_info, bpf_prog_info or bpf_link_info.

    Its first words are type and id.
    """
    answer = np.zeros(size, np.uint8)
    bpf(_INFO_BY_FD, struct.pack("<IIQ", fd, size, _pointer(answer)))
    return answer.tobytes()


def max_entries(map_fd: int) -> int:
    """Return the capacity of a map."""
    return int(struct.unpack_from("<I", object_info(map_fd, 24), 16)[0])


def object_id(fd: int) -> int:
    """Return the id of a map or program."""
    return int(struct.unpack_from("<II", object_info(fd, 8))[1])


def enable_run_stats() -> int:
    """Count programs' run time for as long as the returned descriptor is open."""
    return bpf(_ENABLE_STATS, struct.pack("<I", STATS_RUN_TIME))


_POSITION = struct.Struct("=Q")
_LENGTH = struct.Struct("=I")
_HEADER = 8
_BUSY, _DISCARDED = 1 << 31, 1 << 30


class RingBuffer:
    """Read records of the ring buffer `map_fd` of `size` bytes, in their order.

    The descriptor becomes readable when there are records. The caller keeps it open. The buffer's pages are
    mapped (Documentation/bpf/ringbuf.rst): one with the position up to which we have read, which we write,
    one with the position up to which the kernel has written, and the records, mapped twice in a row so that
    none is ever split.
    """

    def __init__(self, map_fd: int, size: int) -> None:
        self._map_fd, self._size = map_fd, size
        page = mmap.PAGESIZE
        self._ours = mmap.mmap(map_fd, page)
        self._kernels = mmap.mmap(map_fd, page + 2 * size, prot=mmap.PROT_READ, offset=page)

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._map_fd

    def read(self) -> list[bytes]:
        """Return the records since the last call; never waits.

        A record that is still being written ends the list.
        """
        found = []
        (at,) = _POSITION.unpack_from(self._ours)
        (end,) = _POSITION.unpack_from(self._kernels)
        while at < end:
            place = mmap.PAGESIZE + at % self._size
            (word,) = _LENGTH.unpack_from(self._kernels, place)
            if word & _BUSY:
                break
            length = word & ~_DISCARDED
            if not word & _DISCARDED:
                found.append(self._kernels[place + _HEADER : place + _HEADER + length])
            at += (_HEADER + length + 7) & ~7
        _POSITION.pack_into(self._ours, 0, at)
        return found

    def close(self) -> None:
        """Unmap the ring buffer."""
        self._ours.close()
        self._kernels.close()
