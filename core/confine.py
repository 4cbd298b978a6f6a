"""Drop privileges that a read-only process doesn't need; they can't be regained.

Each function does what this kernel and the process's own rights allow, and skips the rest. Call them while
the process has one thread: other threads keep their privileges.
"""

from __future__ import annotations

import ctypes
import errno
import grp
import os
import struct
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

# linux/capability.h: the capabilities that reading needs, and for what.
NET_ADMIN, SYS_PTRACE, SYS_ADMIN = 12, 19, 21  # rules and conntrack; /proc/PID/ns; setns(2)
NET_BROADCAST, NET_RAW = 11, 13  # events of other namespaces; counting broadcasts, rules of iptables-legacy
DAC_READ_SEARCH, DAC_OVERRIDE = 2, 1  # /proc/PID/fd; an engine's socket, a folder of another user
SYSLOG, PERFMON, BPF = 34, 38, 39  # names in /proc/kallsyms; programs that read kernel memory
READING = frozenset((NET_ADMIN, SYS_PTRACE, SYS_ADMIN, NET_BROADCAST, NET_RAW, DAC_READ_SEARCH))

_CAPBSET_DROP, _NO_NEW_PRIVS = 24, 38  # linux/prctl.h
_VERSION_3 = 0x20080522  # of capset(2)
# linux/landlock.h: the rights that change files (some need a newer version), and the one that runs programs.
_EXECUTE, _WRITING = 1 << 0, 0b1_1111_1111_0010
_WRITE_FILE, _REFER, _TRUNCATE = 1 << 1, 1 << 13, 1 << 14
_TCP, _SIGNALS = 0b11, 0b10
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF, _BENEATH, _ASK_VERSION = 444, 445, 446, 1, 1
# linux/mount.h
_MOUNT_SETATTR, _AT_FDCWD, _RECURSIVE, _READ_ONLY = 442, -100, 0x8000, 1
_BIND, _REC, _SLAVE = 4096, 16384, 1 << 19

_libc = ctypes.CDLL(None, use_errno=True)


def join_group(name: str) -> None:
    """Become a member of a group, if it exists, to open what belongs to it."""
    with suppress(KeyError, OSError):
        os.setgroups(sorted({*os.getgroups(), grp.getgrnam(name).gr_gid}))


def drop_capabilities(kept: Collection[int]) -> None:
    """Drop all other capabilities, also of child processes and set-user-ID programs."""
    with suppress(OSError):
        _prctl(_NO_NEW_PRIVS, 1)
    for number in range(64):
        if number not in kept:
            with suppress(OSError):  # EINVAL: no such capability; EPERM: not allowed to drop any
                _prctl(_CAPBSET_DROP, number)
    header, left = struct.pack("=Ii", _VERSION_3, 0), _permitted() & sum(1 << number for number in kept)
    data = (left & 0xFFFFFFFF, left & 0xFFFFFFFF, 0, left >> 32, left >> 32, 0)
    with suppress(OSError):
        _checked(_libc.capset(header, struct.pack("=6I", *data)))


def forbid_writing(folder: Path) -> bool:
    """Forbid writes outside `folder`, programs, TCP and signals, by Landlock.

    It also hides other processes' namespaces (ptrace(2)), so it is only for a dashboard of a file. Returns
    False if the kernel doesn't support it."""
    version = _libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _ASK_VERSION)
    if version < 1:
        return False
    files = _WRITING | (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
    access = (files | _EXECUTE, *((_TCP,) if version >= 4 else ()), *((_SIGNALS,) if version >= 6 else ()))
    attributes = struct.pack(f"={len(access)}Q", *access)
    with suppress(OSError):
        _prctl(_NO_NEW_PRIVS, 1)
        rules = _checked(_libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0))
        try:
            _allow(rules, files, folder)
            _allow(rules, files & (_WRITE_FILE | _TRUNCATE), Path(os.devnull))
            _checked(_libc.syscall(_RESTRICT_SELF, rules, 0))
        finally:
            os.close(rules)
        return True
    return False


def mount_read_only(folder: Path) -> bool:
    """Make all file systems but `folder` read-only, in an own mount namespace.

    Returns False if not permitted. Unlike Landlock it allows access to other processes' namespaces. With
    SYS_ADMIN they can be remounted: this stops mistakes and child programs, not a compromised process."""
    with suppress(OSError):
        os.unshare(os.CLONE_NEWNS)
        _mount(None, "/", _REC | _SLAVE)
        _mount(str(folder), str(folder), _BIND)
        _set_read_only("/", True)
        _set_read_only(str(folder), False)
        os.chdir(Path.cwd())  # the current folder may be hidden below the new mount
        return True
    return False


def _allow(rules: int, access: int, path: Path) -> None:
    beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = struct.pack("=Qi", access, beneath)
        _checked(_libc.syscall(_ADD_RULE, rules, _BENEATH, rule, 0))
    finally:
        os.close(beneath)


def _permitted() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith("CapPrm:"))


def _mount(source: str | None, target: str, flags: int) -> None:
    arguments = [each.encode() if each else None for each in (source, target, None)]
    _checked(_libc.mount(*arguments, ctypes.c_ulong(flags), None))


def _set_read_only(path: str, on: bool) -> None:
    attributes = struct.pack("=4Q", _READ_ONLY if on else 0, 0 if on else _READ_ONLY, 0, 0)
    size = ctypes.c_size_t(len(attributes))
    _checked(_libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, os.fsencode(path), _RECURSIVE, attributes, size))


def _prctl(option: int, value: int) -> None:
    _checked(_libc.prctl(option, *(ctypes.c_ulong(each) for each in (value, 0, 0, 0))))


def _checked(answer: int) -> int:
    if answer < 0:
        number = ctypes.get_errno() or errno.EINVAL
        raise OSError(number, os.strerror(number))
    return answer
