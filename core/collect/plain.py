"""Containers that no engine runs: named network namespaces, and processes in namespaces of their own.

A container made by hand can say which network it was given, in Docker's words, by the environment variable
VNET_NETWORK_MODE of its first process: "host", "none", "container:NAME" or a network's name. Of a process
that isn't root's nothing of the kind is believed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from core.collect.processes import InitProcess, host_inodes, init_processes, namespaces_of
from core.model import Container, Engine, Namespace

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
