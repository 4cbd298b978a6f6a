"""Docker: its containers and networks, and when to look at them again."""

from __future__ import annotations

import json
import socket as sockets
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import quote

from core.collect.engine_answers import Answer, network_of, texts
from core.collect.engine_api import TOTAL_SECONDS, NetworksReader, read_engine
from core.collect.engine_socket import EngineKind, Unreachable, connected, find_socket
from core.model import Engine, Network
from core.tools import is_wanted

DOCKER = EngineKind(
    name="docker",
    title="Docker",
    program="dockerd",
    variable="DOCKER_HOST",
    socket="/run/docker.sock",
    start="systemctl start docker",
    service="docker.service",
    pidfile="/run/docker.pid",
)

# Events after which the picture may be another; health checks and `docker exec` are not among them.
_EVENTS = {
    "type": ["container", "network"],
    "event": [
        "connect", "create", "destroy", "die", "disconnect", "pause", "remove", "rename", "restart", "start",
        "stop", "unpause", "update",
    ],
}  # fmt: skip
_NETWORKS = NetworksReader("/v{api}/networks", partial(network_of, DOCKER.name))
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.2, 3.0
# Seconds after which a quiet event stream looks whether it shall stop, and that a burst of events has.
_PATIENCE, _BURST = 0.5, 0.05
_LONGEST_HEAD = 65536


def read_docker(socket: str | None = None) -> Engine:
    """What Docker runs now, asked at `socket`, else at DOCKER_HOST where that is a unix socket, else at the
    usual place. An engine that is absent, stopped, denied or broken is an answer too: see Engine."""
    if socket is None and not is_wanted(DOCKER.name):
        return Engine(DOCKER.name, "absent")
    return read_engine(DOCKER, socket, _NETWORKS)


def watch_docker(stop: threading.Event, dirty: Callable[[], None], socket: str | None = None) -> None:
    """Call `dirty` whenever `read_docker` may answer differently, until `stop` is set: at the start of each
    connection to Docker's event stream, after events, and when the connection is lost. Blocks."""
    if socket is None and not is_wanted(DOCKER.name):
        return
    pause = _SHORTEST_PAUSE
    while not stop.is_set():
        try:
            path = find_socket(DOCKER, socket)
            with connected(DOCKER, path) as connection:
                _subscribe(connection)
                pause = _SHORTEST_PAUSE
                dirty()
                try:
                    _follow(connection, Path(path), stop, dirty)
                finally:
                    dirty()
        except (Unreachable, OSError):
            pass
        stop.wait(pause)
        pause = min(pause * 2, _LONGEST_PAUSE)


def _subscribe(connection: sockets.socket) -> None:
    """Ask for the event stream: by HTTP/1.0, whose body is the events and nothing else."""
    filters = quote(json.dumps(_EVENTS))
    connection.sendall(f"GET /events?filters={filters} HTTP/1.0\r\nHost: docker\r\n\r\n".encode())
    head, end = b"", time.monotonic() + TOTAL_SECONDS
    while b"\r\n\r\n" not in head:
        head += (more := connection.recv(4096))
        if not more or len(head) > _LONGEST_HEAD or time.monotonic() > end:
            raise OSError("no answer to the question for events")
    if head.split(maxsplit=2)[1:2] != [b"200"]:
        raise OSError("the question for events was refused")


def _follow(connection: sockets.socket, path: Path, stop: threading.Event, dirty: Callable[[], None]) -> None:
    """Call `dirty` once for each burst of events, until told to stop or the engine ends: it closes the
    stream, or it removes its socket at `path` and waits for those who still listen to events."""
    connection.settimeout(_PATIENCE)
    while not stop.is_set() and path.exists():
        try:
            if not connection.recv(65536):
                return
        except TimeoutError:
            continue
        dirty()
        time.sleep(_BURST)


PODMAN = EngineKind(
    name="podman",
    title="podman's API service",
    program="podman",
    variable="CONTAINER_HOST",
    socket="/run/podman/podman.sock",
    start="systemctl start podman.socket",
)

# podman's own API; the one it has in common with Docker hides the bridges' names and renames a network.
_PODMAN_NETWORKS = "/v4.0.0/libpod/networks/json"


def read_podman(socket: str | None = None) -> Engine:
    """What podman runs now, asked at `socket`, else at CONTAINER_HOST where that is a unix socket, else at
    the usual place of root's podman. States as for Docker: see Engine."""
    if socket is None and not is_wanted(PODMAN.name):
        return Engine(PODMAN.name, "absent")
    return read_engine(PODMAN, socket, NetworksReader(_PODMAN_NETWORKS, _podman_network))


def _podman_network(ns: int, told: Answer) -> Network:
    """One network as `GET /libpod/networks/json` tells it."""
    subnets = told.get("subnets") or []
    options = texts(told.get("options"))
    link, driver = str(told.get("network_interface") or ""), str(told["driver"])
    return Network(
        PODMAN.name,
        str(told["id"]),
        str(told["name"]),
        driver=driver,
        ns=ns,
        bridge=link if driver == "bridge" else "",
        subnets=tuple(subnet["subnet"] for subnet in subnets),
        gateways=tuple(subnet["gateway"] for subnet in subnets if subnet.get("gateway")),
        mtu=int(options.get("mtu") or 0),
        internal=bool(told.get("internal")),
        labels=texts(told.get("labels")),
        parent=link if driver != "bridge" else "",
    )
