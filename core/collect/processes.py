"""Read processes: namespaces, unmanaged containers and this SSH session (proc(5)).

psutil finds the parents of this process. What belongs to other processes is read from /proc with limits that
psutil lacks. Its cmdline(), environ() and name() (which reads the command line to complete a name of 15
characters) read all memory that a process declares as its command line or environment: one of any user that
declared 1 GiB (PR_SET_MM_MAP of prctl(2)) cost psutil 7.2 9 GB of memory and 45 s. psutil has no namespaces
either, nor the ids of a process in its own pid namespace.
"""

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
# Bytes read of a command line and of an environment: a process can declare any part of its memory as either.
_COMMAND_BYTES, _ENVIRONMENT_BYTES = 1 << 12, 1 << 20


@dataclass(frozen=True, slots=True)
class InitProcess:
    """Process 1 of another pid namespace.

    `pid` is its id in this pid namespace, `namespaces` its six inodes by kind, `lineage` the inodes of its
    pid namespace and of the parents of that, `hostname` the name of its uts namespace.

    Any user can start such a process under any name. `command` and `environment` lie in its own memory, so
    they are read only if root of the host runs it (`trusted`). Otherwise `command` is its name in the kernel
    (proc_pid_comm(5)) and `environment` is empty.
    """

    pid: int
    namespaces: Mapping[str, int]
    lineage: tuple[int, ...]
    hostname: str
    trusted: bool
    command: str
    environment: Mapping[str, str]


def namespaces_of(pid: int) -> dict[str, int]:
    """Return the inodes of the process's namespaces by kind.

    Those that can't be read are left out.
    """
    found = {}
    for kind in NAMESPACE_KINDS:
        with suppress(OSError):
            found[kind] = _inode(pid, kind)
    return found


def _inode(pid: int, kind: str) -> int:
    """Parse the link's text, "pid:[4026531836]": ten times as fast as stat."""
    return int(os.readlink(f"/proc/{pid}/ns/{kind}")[len(kind) + 2 : -1])


def host_inodes() -> dict[str, set[int]]:
    """Return the namespaces that count as the host's, by kind.

    They are those of this process and of process 1.
    """
    own, first = namespaces_of(os.getpid()), namespaces_of(1)
    return {kind: {spaces[kind] for spaces in (own, first) if kind in spaces} for kind in NAMESPACE_KINDS}


def init_processes() -> tuple[InitProcess, ...]:
    """Return process 1 of each foreign pid namespace, by pid.

    Its uts and mount namespaces differ from the host's as well. Processes that end meanwhile, or can't be
    read, are left out.
    """
    hosts = host_inodes()
    found = [
        (pid, spaces, status)
        for pid, spaces in _foreign(hosts)
        if (status := _status(pid)) and _is_init(status)
    ]
    hostnames = _hostnames([pid for pid, _, _ in found])
    return tuple(
        _init(pid, spaces, hostnames[pid], status, spaces["user"] in hosts["user"] and _is_trusted(status))
        for pid, spaces, status in found
        if pid in hostnames
    )


def _init(
    pid: int, spaces: Mapping[str, int], hostname: str, status: Mapping[str, str], trusted: bool
) -> InitProcess:
    command, environment = (_command(pid), _environment(pid)) if trusted else (status["Name"], {})
    return InitProcess(pid, spaces, _lineage(pid), hostname, trusted, command, environment)


def _foreign(hosts: Mapping[str, set[int]]) -> Iterator[tuple[int, dict[str, int]]]:
    """Yield processes outside the host's pid, uts and mount namespaces.

    Each comes with the inodes of all six. The pid namespace is read first: it rules out nearly every process
    of a host.
    """
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
    """Return the fields of proc_pid_status(5), none if the process has ended."""
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").split("\n")
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return {}


def _is_init(status: Mapping[str, str]) -> bool:
    """Return whether it is process 1 of its innermost pid namespace, and no zombie."""
    return status["State"][:1] not in ("Z", "X") and status.get("NSpid", "").split()[-1:] == ["1"]


def _is_trusted(status: Mapping[str, str]) -> bool:
    """Return whether root or the user of this process runs it.

    They could do more than mislead it anyway.
    """
    return set(status["Uid"].split()) <= {"0", str(os.geteuid())}


def _lineage(pid: int) -> tuple[int, ...]:
    """Return its pid namespace and the parents of that, innermost first.

    Parents that can't be read are left out.
    """
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
    """Return the name of each process's uts namespace.

    A separate thread enters the namespaces and ends, so that every other thread keeps the host's name.
    """
    names: dict[int, str] = {}
    if pids:
        thread = threading.Thread(target=_read_hostnames, args=(pids, names), name="hostnames")
        thread.start()
        thread.join()
    return names


def _read_hostnames(pids: Sequence[int], names: dict[int, str]) -> None:
    for pid in pids:
        try:
            uts = os.open(f"/proc/{pid}/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            os.setns(uts, os.CLONE_NEWUTS)
            names[pid] = os.fsencode(os.uname().nodename).decode(errors="replace")
        except PermissionError:
            names[pid] = ""
        finally:
            os.close(uts)


def _command(pid: int) -> str:
    with suppress(OSError):
        words = _read_start(f"/proc/{pid}/cmdline", _COMMAND_BYTES).split(b"\0")
        return b" ".join(words).decode(errors="replace").strip()
    return ""


def _environment(pid: int) -> dict[str, str]:
    with suppress(OSError):
        text = _read_start(f"/proc/{pid}/environ", _ENVIRONMENT_BYTES).decode(errors="replace")
        entries = text.split("\0")
        return dict(entry.split("=", 1) for entry in entries if "=" in entry)
    return {}


def _read_start(path: str, size: int) -> bytes:
    with open(path, "rb") as file:
        return file.read(size)


# This environment variable of an unmanaged container's first process can name its network mode as Docker
# does: "host", "none", "container:NAME" or the name of a network. It counts only for root's processes.
NETWORK_MODE_VARIABLE = "VNET_NETWORK_MODE"


def read_unmanaged(
    namespaces: Mapping[int, Namespace], claimed: frozenset[int], found: Iterable[InitProcess] | None = None
) -> Engine:
    """Read every container without an engine.

    `claimed` holds the first process of each container that an engine runs; `found` the result of
    init_processes(), if it was called already. Each name of a network namespace is a container of the runtime
    "netns". Each process of init_processes() is one of the runtime "process", with the inode of its pid
    namespace as id, unless it belongs to a named namespace.
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
    """Return the first process of a named namespace.

    It is the one with that hostname, or the only one in the namespace.
    """
    inside = [init for init in inits if init.namespaces["net"] == space.inode]
    matching = [init for init in inside if init.trusted and init.hostname == name]
    if matching:
        return matching[0]
    is_only = len(inside) == 1 and len(space.names) == 1
    return inside[0] if is_only and not _has_joined(inside[0]) else None


def _own_name(init: InitProcess) -> str:
    """Return its hostname.

    An untrusted one also has its pid, so that it can't pass for another container.
    """
    pid = f"pid {init.pid}"
    if init.trusted:
        return init.hostname or pid
    return f"{pid} ({init.hostname})" if init.hostname else pid


def _has_joined(init: InitProcess) -> bool:
    """Return whether it declares that its network namespace is another container's."""
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


# sshd(8) sets these; the first word is the address of the client.
_SSH_VARIABLES = ("SSH_CONNECTION", "SSH_CLIENT")
_INIT = 1


def remote_session() -> str:
    """Return the client's address of this process's SSH session, "" without one.

    sudo(8) removes SSH_CONNECTION, so the environments of the parents are read as well.
    """
    if address := _ssh_client(_environment(os.getpid())):
        return address
    import psutil  # only before a change: the import takes 9 ms

    parents: list[int] = []
    with suppress(psutil.Error):
        parents += [parent.pid for parent in psutil.Process().parents() if parent.pid != _INIT]
    return next((address for pid in parents if (address := _ssh_client(_environment(pid)))), "")


def _ssh_client(environment: Mapping[str, str]) -> str:
    for name in _SSH_VARIABLES:
        with suppress(ValueError):
            address = environment.get(name, "").partition(" ")[0].partition("%")[0]
            return str(ipaddress.ip_address(address))
    return ""
