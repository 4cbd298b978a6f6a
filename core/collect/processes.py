"""Processes and the six namespaces they live in, as /proc tells them (proc(5), namespaces(7))."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from core.model import NAMESPACE_KINDS

# The request that opens the parent of a pid namespace (ioctl_nsfs(2)).
_NS_GET_PARENT = 0xB702
# More is not read: a process may say that any part of its memory is its command line (PR_SET_MM of prctl(2)).
_COMMAND_BYTES, _ENVIRONMENT_BYTES = 1 << 12, 1 << 20


@dataclass(frozen=True, slots=True)
class InitProcess:
    """Process 1 of a pid namespace that is not ours: `pid` as seen from here, `namespaces` its six inodes by
    kind, `lineage` the inodes of its pid namespace and of those around it, `hostname` what its uts namespace
    is called, `command` its command line, `environment` what it was started with.

    Any user can make such a process and call it anything. Its command line and its environment lie in its own
    memory, so they are read only where root of the host runs it (`trusted`); else `command` is the kernel's
    name for it (proc_pid_comm(5))."""

    pid: int
    namespaces: Mapping[str, int]
    lineage: tuple[int, ...]
    hostname: str
    trusted: bool
    command: str
    environment: Mapping[str, str]


def namespaces_of(pid: int) -> dict[str, int]:
    """Inode of each of the process's namespaces by kind; without those that are gone or may not be read."""
    found = {}
    for kind in NAMESPACE_KINDS:
        with suppress(OSError):
            found[kind] = _inode(pid, kind)
    return found


def _inode(pid: int, kind: str) -> int:
    """By the text of the link, "pid:[4026531836]": a tenth of the time that following it takes."""
    return int(os.readlink(f"/proc/{pid}/ns/{kind}")[len(kind) + 2 : -1])


def host_inodes() -> dict[str, set[int]]:
    """The namespaces that count as the host's, by kind: our own and those of the first process in sight."""
    ours, first = namespaces_of(os.getpid()), namespaces_of(1)
    return {kind: {spaces[kind] for spaces in (ours, first) if kind in spaces} for kind in NAMESPACE_KINDS}


def init_processes() -> tuple[InitProcess, ...]:
    """Each process that is the first of a pid namespace of its own and whose uts and mount namespaces are the
    host's neither, by rising pid. Those that vanish meanwhile or may not be read are left out."""
    hosts = host_inodes()
    found = [
        (pid, spaces, status)
        for pid, spaces in _foreign(hosts)
        if (status := _status(pid)) and _is_init(status)
    ]
    hostnames = _hostnames([pid for pid, _, _ in found])
    return tuple(
        _init(pid, spaces, hostnames[pid], status, spaces["user"] in hosts["user"] and _is_ours(status))
        for pid, spaces, status in found
        if pid in hostnames
    )


def _init(
    pid: int, spaces: Mapping[str, int], hostname: str, status: Mapping[str, str], trusted: bool
) -> InitProcess:
    command, environment = (_command(pid), _environment(pid)) if trusted else (status["Name"], {})
    return InitProcess(pid, spaces, _lineage(pid), hostname, trusted, command, environment)


def _foreign(hosts: Mapping[str, set[int]]) -> Iterator[tuple[int, dict[str, int]]]:
    """Processes in foreign pid, uts and mount namespaces, with all six; the pid namespace is looked at first
    because it rules out nearly every process of a host."""
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdecimal()):
        with suppress(OSError):
            if _inode(pid, "pid") in hosts["pid"]:
                continue
            spaces = namespaces_of(pid)
            if len(spaces) == len(NAMESPACE_KINDS) and not any(
                spaces[kind] in hosts[kind] for kind in ("uts", "mnt")
            ):
                yield pid, spaces


def _status(pid: int) -> dict[str, str]:
    """The fields of proc_pid_status(5); none where the process is gone."""
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").split("\n")
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return {}


def _is_init(status: Mapping[str, str]) -> bool:
    """Whether it is process 1 of its innermost pid namespace and still runs."""
    return status["State"][:1] not in ("Z", "X") and status.get("NSpid", "").split()[-1:] == ["1"]


def _is_ours(status: Mapping[str, str]) -> bool:
    """Whether root runs it, or the user who looks: who could do more than mislead us anyway."""
    return set(status["Uid"].split()) <= {"0", str(os.geteuid())}


def _lineage(pid: int) -> tuple[int, ...]:
    """Its pid namespace and the ones around it, innermost first, as far as they may be seen."""
    inodes = []
    with suppress(OSError):
        current = os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        try:
            while True:
                inodes.append(os.fstat(current).st_ino)
                parent = fcntl.ioctl(current, _NS_GET_PARENT)
                os.close(current)
                current = parent
        finally:
            os.close(current)
    return tuple(inodes)


def _hostnames(pids: Sequence[int]) -> dict[int, str]:
    """The name of each one's uts namespace. A thread of its own goes there, and ends: no other thread of this
    program ever sees a hostname but the host's."""
    names: dict[int, str] = {}
    if pids:
        visitor = threading.Thread(target=_visit, args=(pids, names), name="hostnames")
        visitor.start()
        visitor.join()
    return names


def _visit(pids: Sequence[int], names: dict[int, str]) -> None:
    for pid in pids:
        try:
            there = os.open(f"/proc/{pid}/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            os.setns(there, os.CLONE_NEWUTS)
            names[pid] = os.fsencode(os.uname().nodename).decode(errors="replace")
        except PermissionError:
            names[pid] = ""
        finally:
            os.close(there)


def _command(pid: int) -> str:
    with suppress(OSError):
        words = _beginning(f"/proc/{pid}/cmdline", _COMMAND_BYTES).split(b"\0")
        return b" ".join(words).decode(errors="replace").strip()
    return ""


def _environment(pid: int) -> dict[str, str]:
    with suppress(OSError):
        text = _beginning(f"/proc/{pid}/environ", _ENVIRONMENT_BYTES).decode(errors="replace")
        entries = text.split("\0")
        return dict(entry.split("=", 1) for entry in entries if "=" in entry)
    return {}


def _beginning(path: str, most: int) -> bytes:
    with open(path, "rb") as file:
        return file.read(most)
