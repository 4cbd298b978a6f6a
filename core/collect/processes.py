"""Processes and the six namespaces they live in, as /proc tells them (proc(5), namespaces(7))."""

from __future__ import annotations

import fcntl
import ipaddress
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from core.model import NAMESPACE_KINDS, Container, Engine, Namespace

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


# Containers that no engine runs: named network namespaces, and processes in namespaces of their own.
#
# A container made by hand can say which network it was given, in Docker's words, by the environment
# variable VNET_NETWORK_MODE of its first process: "host", "none", "container:NAME" or a network's name. Of
# a process that isn't root's nothing of the kind is believed.

NETWORK_MODE_VARIABLE = "VNET_NETWORK_MODE"


def read_plain(
    namespaces: Mapping[int, Namespace], claimed: frozenset[int], found: Iterable[InitProcess] | None = None
) -> Engine:
    """Every container without an engine; `claimed` holds the first process of each container that an engine
    runs, `found` the first processes where these were looked for already. Each name of a network namespace
    is a container ("netns"); a first process of namespaces of its own is one as well ("process", its id the
    inode of its pid namespace), unless it plainly is a named one's.
    """
    owned = [namespaces_of(pid) for pid in claimed]
    hosts = {inode for inode, space in namespaces.items() if space.is_host}
    nets = {spaces["net"] for spaces in owned if "net" in spaces}
    pids = {spaces["pid"] for spaces in owned if "pid" in spaces} - host_inodes()["pid"]
    every = init_processes() if found is None else found
    inits = [init for init in every if init.pid not in claimed and not pids & {*init.lineage}]
    names = [
        (name, space)
        for inode, space in namespaces.items()
        if inode not in nets | hosts
        for name in space.names
    ]
    return Engine("plain", "ok", containers=tuple(_containers(names, inits)))


def _containers(names: Iterable[tuple[str, Namespace]], inits: Iterable[InitProcess]) -> Iterator[Container]:
    left = {init.pid: init for init in inits}
    for name, space in names:
        init = _of_name(name, space, left.values())
        if init is not None:
            del left[init.pid]
        yield _named(name, space, init)
    for init in left.values():
        yield _container("process", str(init.namespaces["pid"]), _own_name(init), init)


def _of_name(name: str, space: Namespace, inits: Iterable[InitProcess]) -> InitProcess | None:
    """The first process of the container NAME: its hostname says so, or it is the only one in there."""
    inside = [init for init in inits if init.namespaces["net"] == space.inode]
    fitting = [init for init in inside if init.trusted and init.hostname == name]
    if fitting:
        return fitting[0]
    alone = len(inside) == 1 and len(space.names) == 1
    return inside[0] if alone and not _joined(inside[0]) else None


def _own_name(init: InitProcess) -> str:
    """What it calls itself by its hostname; a user's never passes for another container by that."""
    pid = f"pid {init.pid}"
    if init.trusted:
        return init.hostname or pid
    return f"{pid} ({init.hostname})" if init.hostname else pid


def _joined(init: InitProcess) -> bool:
    """Whether it says itself that the namespace it lives in is another container's."""
    return _mode(init).startswith("container:")


def _mode(init: InitProcess) -> str:
    return init.environment.get(NETWORK_MODE_VARIABLE, "")


def _named(name: str, space: Namespace, init: InitProcess | None) -> Container:
    if init is None:
        return Container("netns", name, name, namespaces={"net": space.inode})
    return _container("netns", name, name, init)


def _container(runtime: str, container_id: str, name: str, init: InitProcess) -> Container:
    return Container(
        runtime,
        container_id,
        name,
        pid=init.pid,
        network_mode=_mode(init),
        namespaces=init.namespaces,
        command=init.command,
    )


# sshd(8) sets these; the first word is the other end's address.
_VARIABLES = (b"SSH_CONNECTION=", b"SSH_CLIENT=")
_INIT = 1


def remote_session() -> str:
    """The address of the other end of the SSH session that this process belongs to, "" for none.

    sudo(8) takes SSH_CONNECTION away, so the environments of the parents are looked at too
    (proc_pid_environ(5)).
    """
    return next((found for pid in _ancestry() if (found := _told(pid))), "")


def _ancestry() -> Iterator[int]:
    pid = os.getpid()
    while pid > _INIT:
        yield pid
        try:
            # The command's name, in parentheses, may hold anything: what follows it is plain.
            pid = int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            return


def _told(pid: int) -> str:
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    for variable in variables:
        if variable.startswith(_VARIABLES):
            address = variable.partition(b"=")[2].split(b" ")[0].decode(errors="replace")
            try:
                return str(ipaddress.ip_address(address.partition("%")[0]))
            except ValueError:
                continue
    return ""
