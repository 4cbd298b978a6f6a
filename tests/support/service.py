"""Start what a systemd unit starts, under its restrictions, without systemd.

`python -m tests.support.service UNIT [WORD...]` reads the unit, restricts itself as systemd.exec(5) says, and
becomes the command of ExecStart=, or the words given in its place. A setting that isn't known here is an
error, so that what is tested can't differ from what is printed. Left out: PrivateDevices= and IPAddressDeny=.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from tests.support.machine import ROOT

# What starts a unit, by the path of its file.
SERVICE = ("env", f"PYTHONPATH={ROOT}", sys.executable, "-P", "-m", "tests.support.service")

type Settings = dict[str, list[str]]
type _Instruction = tuple[int, int, int, int]

# linux/prctl.h, linux/mount.h, linux/seccomp.h, linux/audit.h, linux/capability.h, sched.h
_CAPBSET_DROP, _NO_NEW_PRIVS, _SET_SECCOMP, _SET_MDWE, _SECCOMP_FILTER = 24, 38, 22, 65, 2
_MOUNT_SETATTR, _AT_FDCWD, _RECURSIVE, _READ_ONLY = 442, -100, 0x8000, 1
_BIND, _REC, _SLAVE = 4096, 16384, 1 << 19
_ARCH = 0xC000003E  # x86_64
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_EPERM, _EAFNOSUPPORT, _ENOSYS = 1, 97, 38
_NEW = {"net": 0x40000000, "mnt": 0x00020000, "ipc": 0x08000000, "pid": 0x20000000, "user": 0x10000000,
        "uts": 0x04000000, "cgroup": 0x02000000}  # fmt: skip
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
_FOLDERS = {"StateDirectory": "/var/lib", "RuntimeDirectory": "/run", "CacheDirectory": "/var/cache"}
_CAPABILITIES = Path("/usr/include/linux/capability.h")
_CALLS = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
# Not done here: checked by the tests of the unit's text, or about the service's lifetime.
_LEFT_OUT = {
    "Type", "ExecStart", "Restart", "RestartSec", "StateDirectoryMode", "CacheDirectoryMode", "LimitMEMLOCK",
    "RuntimeDirectoryPreserve", "PrivateDevices", "IPAddressDeny", "IPAddressAllow", "SystemCallErrorNumber",
    # Each removes capabilities and system calls that the unit's sets don't contain either.
    "ProtectClock", "ProtectHostname", "ProtectKernelLogs", "ProtectKernelModules", "RestrictRealtime",
    "RestrictSUIDSGID", "LockPersonality", "SystemCallArchitectures",
}  # fmt: skip
_DONE = {
    "Environment", "ReadWritePaths", *_FOLDERS, "CapabilityBoundingSet", "NoNewPrivileges", "ProtectSystem",
    "ProtectHome", "ProtectKernelTunables", "ProtectControlGroups", "PrivateTmp", "RestrictAddressFamilies",
    "RestrictNamespaces", "MemoryDenyWriteExecute", "SystemCallFilter", "UMask",
}  # fmt: skip

_libc = ctypes.CDLL(None, use_errno=True)


def service_settings(text: str) -> Settings:
    """Return the settings in the unit's section Service, each with its values."""
    found: Settings = {}
    for line in text.partition("[Service]")[2].partition("[Install]")[0].splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def main(unit: str, words: list[str]) -> None:
    """Restrict this process, then become the command."""
    found = service_settings(Path(unit).read_text())
    if unknown := found.keys() - _LEFT_OUT - _DONE:
        sys.exit(f"can't start {unit}: no test knows {', '.join(sorted(unknown))}")
    calls = bytes(_call_filter(found))  # while files can still be read and programs started
    capabilities = _dropped(set(found["CapabilityBoundingSet"][0].split()))
    _mount(found)
    os.umask(int(found["UMask"][0], 8))
    for number in capabilities:
        _prctl(_CAPBSET_DROP, number)
    if found.get("MemoryDenyWriteExecute") == ["yes"]:
        _prctl(_SET_MDWE, 1)
    assert found["NoNewPrivileges"] == ["yes"]
    _prctl(_NO_NEW_PRIVS, 1)
    given = dict(shlex.split(value)[0].split("=", 1) for value in found.get("Environment", ()))
    start = words or shlex.split(found["ExecStart"][0].replace("$$", "$"))
    _filter_calls(calls)
    os.execvpe(start[0], start, _ENVIRONMENT | given | {"PYTHONPATH": str(ROOT)})


def _mount(found: Settings) -> None:
    os.unshare(os.CLONE_NEWNS)
    _do_mount(None, "/", _REC | _SLAVE)
    writable = [shlex.split(value)[0].replace("%%", "%") for value in found.get("ReadWritePaths", ())]
    for key, above in _FOLDERS.items():
        writable += [f"{above}/{name}" for name in found.get(key, ())]
    for path in writable:
        Path(path).mkdir(mode=0o700, parents=True, exist_ok=True)
        _do_mount(path, path, _BIND)
    for path in (f"/var/cache/{name}" for name in found.get("CacheDirectory", ())):
        _do_mount("tmpfs", path, 0, "tmpfs")  # nothing was compiled yet
    hidden = ["/home", "/root", "/run/user"] if found["ProtectHome"] == ["yes"] else []
    for path in hidden + (["/tmp", "/var/tmp"] if found["PrivateTmp"] == ["yes"] else []):
        if Path(path).is_dir():
            _do_mount("tmpfs", path, 0, "tmpfs")
    assert found["ProtectSystem"] == ["strict"]
    _set_read_only("/", True)
    private = ["/tmp", "/var/tmp"] if found["PrivateTmp"] == ["yes"] else []
    for path in ("/dev", "/proc", "/sys", *private, *writable):
        _set_read_only(path, False)
    closed = ["/proc/sys", "/sys"] if found.get("ProtectKernelTunables") == ["yes"] else []
    closed += ["/sys/fs/cgroup"] if found.get("ProtectControlGroups") == ["yes"] else []
    for path in closed:
        _do_mount(path, path, _BIND | _REC)
        _set_read_only(path, True)


def _do_mount(source: str | None, target: str, flags: int, kind: str | None = None) -> None:
    words = [each.encode() if each else None for each in (source, target, kind)]
    if _libc.mount(*words, ctypes.c_ulong(flags), None):
        raise OSError(ctypes.get_errno(), f"can't mount {target}")


def _set_read_only(path: str, on: bool) -> None:
    """Make all mounts there and below read-only (mount_setattr(2))."""
    attributes = struct.pack("=4Q", _READ_ONLY if on else 0, 0 if on else _READ_ONLY, 0, 0)
    if _libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, path.encode(), _RECURSIVE, attributes, len(attributes)):
        raise OSError(ctypes.get_errno(), f"can't set {path}")


def _dropped(kept: set[str]) -> list[int]:
    """Return the numbers of all capabilities except these."""
    text = _CAPABILITIES.read_text()
    known = {
        name: int(number) for name, number in re.findall(r"^#define (CAP_\w+)\s+(\d+)$", text, re.MULTILINE)
    }
    assert kept <= known.keys()
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    return [number for number in range(last + 1) if number not in {known[name] for name in kept}]


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, *(ctypes.c_ulong(each) for each in (value, 0, 0, 0))):
        raise OSError(ctypes.get_errno(), f"prctl({option})")


def _call_filter(found: Settings) -> Iterator[int]:
    """Build the seccomp(2) program of all settings that restrict system calls."""
    assert platform.machine() == "x86_64"
    numbers = {name: int(number) for name, number in re.findall(r"__NR_(\w+) (\d+)", _CALLS.read_text())}
    allowed: set[str] = set()
    for value in found["SystemCallFilter"]:
        names = {name for word in value.lstrip("~").split() for name in _calls(word)}
        allowed = allowed - names if value.startswith("~") else allowed | names
    families = [getattr(socket, name) for name in found["RestrictAddressFamilies"][0].split()]
    others = sum(bit for name, bit in _NEW.items() if name not in found["RestrictNamespaces"][0].split())
    program = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, _ARCH), (_RETURN, 0, 0, _ERRNO | _EPERM), (_LOAD, 0, 0, 0)]
    accepted = [[(_EQUAL, 0, 1, family), (_RETURN, 0, 0, _ALLOW)] for family in families]
    program += _only(numbers["socket"], 0, accepted, _EAFNOSUPPORT)
    program += [(_EQUAL, 0, 1, numbers["clone3"]), (_RETURN, 0, 0, _ERRNO | _ENOSYS)]
    for name, argument in (("unshare", 0), ("clone", 0), ("setns", 1)):
        refused = [[(_ANY_BIT, 0, 1, others), (_RETURN, 0, 0, _ERRNO | _EPERM), (_RETURN, 0, 0, _ALLOW)]]
        program += _only(numbers[name], argument, refused, _EPERM)
    for name in sorted(allowed & numbers.keys()):
        program += [(_EQUAL, 0, 1, numbers[name]), (_RETURN, 0, 0, _ALLOW)]
    program.append((_RETURN, 0, 0, _ERRNO | _EPERM))
    for instruction in program:
        yield from struct.pack("=HBBI", *instruction)


def _only(number: int, argument: int, checks: Iterable[list[_Instruction]], error: int) -> list[_Instruction]:
    """Build the checks of one system call's argument; other values are refused."""
    body = [(_LOAD, 0, 0, 16 + 8 * argument), *(one for check in checks for one in check)]
    body.append((_RETURN, 0, 0, _ERRNO | error))
    return [(_EQUAL, 0, len(body), number), *body]


@cache
def _calls(name: str) -> frozenset[str]:
    """Return the system calls of a systemd set, or the one named (systemd-analyze(1))."""
    if not name.startswith("@"):
        return frozenset((name,))
    words = ["systemd-analyze", "syscall-filter", "--no-pager", name]
    lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()[1:]
    members = (line.strip() for line in lines if line.strip() and not line.strip().startswith("#"))
    return frozenset(call for member in members for call in _calls(member))


def _filter_calls(program: bytes) -> None:
    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))

    made = Program(len(program) // 8, ctypes.c_char_p(program))
    if _libc.prctl(_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_FILTER), ctypes.byref(made), 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    main(sys.argv[1], sys.argv[2:])
