"""Network namespaces."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Namespace:
    """One network namespace (network_namespaces(7)), identified by the inode of its nsfs file.

    `names` are its names under /run/netns; `pids` the processes inside, ascending, a thread that left the
    namespace of its process by its own id; `mounts` every nsfs mount that holds it, one in another mount
    namespace as /proc/PID/root/PATH; `held_fds` (pid, fd) pairs that hold it open; `nsid` its id as seen from
    the host namespace; `unit` the systemd unit and `command` the name of its first process; `entry` a path by
    which it can be entered now ("" where there is none).
    """

    inode: int
    is_host: bool = False
    names: tuple[str, ...] = ()
    pids: tuple[int, ...] = ()
    mounts: tuple[str, ...] = ()
    held_fds: tuple[tuple[int, int], ...] = ()
    nsid: int | None = None
    unit: str = ""
    command: str = ""
    entry: str = ""
