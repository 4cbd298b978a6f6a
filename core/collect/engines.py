"""Read containers and networks of Docker and podman, and watch Docker's events.

Events are read with http.client, not with the Docker SDK. Importing the SDK costs 50 ms of CPU time and 10 MB
of memory (measured with docker 7.2), and its event stream waits without a limit: another thread would have to
close it when the watcher stops, or when Docker is shut down and waits for its clients.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from core.collect import engine_http
from core.collect.engine_decode import Answer, container_of, libpod_network_of, network_of, validated
from core.collect.engine_http import (
    EngineConnection,
    EngineKind,
    RefusedByEngine,
    Unreachable,
    connected,
    failure,
    find_socket,
)
from core.model import Container, Engine, Network
from core.tools import is_engine_enabled

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
PODMAN = EngineKind(
    name="podman",
    title="podman's API service",
    program="podman",
    variable="CONTAINER_HOST",
    socket="/run/podman/podman.sock",
    start="systemctl start podman.socket",
)

_DOCKER_NETWORKS = "/v{api}/networks"
# podman's own API: its Docker-compatible one hides the names of bridges and renames a network.
_LIBPOD_NETWORKS = "/v4.0.0/libpod/networks/json"
_BUILT_IN = {"bridge", "host", "none", "podman"}
_WITH_PROCESS = ("running", "paused", "restarting", "stopping")
# The product in an engine's Server header, and whether that is podman.
_PRODUCTS = {"Docker": False, "Libpod": True}

# Events after which containers or networks may differ. Health checks and `docker exec` are not among them.
_EVENTS = {
    "type": ["container", "network"],
    "event": [
        "connect", "create", "destroy", "die", "disconnect", "pause", "remove", "rename", "restart", "start",
        "stop", "unpause", "update",
    ],
}  # fmt: skip
_MIN_PAUSE, _MAX_PAUSE = 0.2, 3.0
# Seconds between two checks of a quiet event stream for `stop`, and seconds in which events count as one.
_POLL_SECONDS, _BURST_SECONDS = 0.5, 0.05
_READ_SIZE = 1 << 16


def read_docker(path: str | None = None) -> Engine:
    """Read Docker's containers and networks.

    The socket is `path`, DOCKER_HOST if that is a unix socket, or the default path. If the engine is absent,
    stopped, denied or broken, `Engine.state` says so.
    """
    return _read_engine(DOCKER, path, _DOCKER_NETWORKS, partial(network_of, DOCKER.name))


def read_podman(path: str | None = None) -> Engine:
    """Read podman's containers and networks.

    The socket is `path`, CONTAINER_HOST if that is a unix socket, or the default path of root's podman.
    States as for Docker.
    """
    return _read_engine(PODMAN, path, _LIBPOD_NETWORKS, libpod_network_of)


def watch_docker(stop: threading.Event, dirty: Callable[[], None], path: str | None = None) -> None:
    """Call `dirty` whenever `read_docker` may return something else.

    That is at the start of each connection to Docker's event stream, after events, and when the connection is
    lost. Blocks until `stop` is set.
    """
    if path is None and not is_engine_enabled(DOCKER.name):
        return
    pause = _MIN_PAUSE
    while not stop.is_set():
        try:
            found = find_socket(DOCKER, path)
            with connected(DOCKER, found) as connection:
                events = connection.open_stream(f"/events?filters={quote(json.dumps(_EVENTS))}")
                pause = _MIN_PAUSE
                dirty()
                try:
                    _follow(events, Path(found), stop, dirty)
                finally:
                    dirty()
        except (Unreachable, OSError):
            pass
        stop.wait(pause)
        pause = min(pause * 2, _MAX_PAUSE)


def _follow(events: socket.socket, path: Path, stop: threading.Event, dirty: Callable[[], None]) -> None:
    """Call `dirty` once for each burst of events.

    Returns when `stop` is set or the engine ends. An engine that ends closes the stream, or removes its
    socket at `path` and waits for its clients to close. Any byte of the stream means an event, so neither
    chunks nor JSON are decoded.
    """
    events.settimeout(_POLL_SECONDS)
    while not stop.is_set() and path.exists():
        try:
            if not events.recv(_READ_SIZE):
                return
        except TimeoutError:
            continue
        dirty()
        time.sleep(_BURST_SECONDS)


def _read_engine(
    kind: EngineKind, path: str | None, networks_path: str, decode_network: Callable[[int, Answer], Network]
) -> Engine:
    """Read the engine's version, containers and networks.

    `decode_network` converts one entry at `networks_path`, given the inode of the engine's network namespace.
    """
    if path is None and not is_engine_enabled(kind.name):
        return Engine(kind.name, "absent")
    try:
        found = find_socket(kind, path)
        with connected(kind, found) as connection:
            try:
                return _read(kind, connection, networks_path, decode_network)
            # A malformed response can fail anywhere in the decoding, and must not end the program.
            except Exception as error:
                return _slow(kind, found) if _is_timeout(error) else _malformed(kind, error)
    except Unreachable as error:
        return error.engine


def _read(
    kind: EngineKind,
    connection: EngineConnection,
    networks_path: str,
    decode_network: Callable[[int, Answer], Network],
) -> Engine:
    netns = connection.peer_netns()
    version = _version(connection)
    if version.is_podman not in (None, kind.name == "podman"):
        return Engine(kind.name, "absent")
    api = f"/v{version.api}"
    paths = [f"{api}/containers/json?all=1", networks_path.format(api=version.api)]
    listed, networks = connection.get_all(paths)
    return validated(
        Engine(
            kind.name,
            "ok",
            version=version.engine,
            containers=tuple(_containers(kind, connection, api, listed)),
            networks=_sorted(decode_network(netns, each) for each in networks),
        )
    )


class _Version(NamedTuple):
    """Hold an engine's version, that of its API, and whether it is podman.

    None means unknown. podman may listen on Docker's socket, but is read on its own.
    """

    engine: str
    api: str
    is_podman: bool | None


def _version(connection: EngineConnection) -> _Version:
    """Read the version from the headers of a ping.

    /version takes an engine longer than any other request, and is requested only if the headers lack it.
    """
    with suppress(RefusedByEngine):
        headers = connection.get_headers("/_ping")
        product, _, rest = headers.get("Server", "").partition("/")
        api = headers.get("Api-Version")
        if api and rest and product in _PRODUCTS:
            return _Version(rest.split()[0], api, _PRODUCTS[product])
    answer = connection.get_json("/version")
    names = [component.get("Name") for component in answer.get("Components") or ()]
    is_podman = "Podman Engine" in names if names else None
    return _Version(str(answer["Version"]), str(answer["ApiVersion"]), is_podman)


def _containers(kind: EngineKind, connection: EngineConnection, api: str, listed: Any) -> Iterator[Container]:
    """Decode the listed containers.

    Those whose process or attachments the list lacks are inspected.
    """
    ids = [str(each["Id"]) for each in listed if each["State"] in _WITH_PROCESS or _is_attached(each)]
    paths = [f"{api}/containers/{quote(each, safe='')}/json" for each in ids]
    inspected = dict(zip(ids, connection.get_each(paths), strict=True))
    for each in listed:
        answer = inspected.get(str(each["Id"]))
        if isinstance(answer, RefusedByEngine):
            if answer.status == HTTPStatus.NOT_FOUND:
                continue  # removed since it was listed
            answer = {}
        yield container_of(kind.name, each, answer if answer is None else dict(answer))


def _is_attached(listed: Mapping[str, Any]) -> bool:
    """Return whether it is attached to a network that the engine did not make itself."""
    networks = (listed.get("NetworkSettings") or {}).get("Networks") or {}
    return bool(networks.keys() - _BUILT_IN)


def _sorted(networks: Iterable[Network]) -> tuple[Network, ...]:
    """Sort networks: Docker lists them in a different order each time."""
    return tuple(sorted(networks, key=lambda each: (each.name, each.id)))


def _is_timeout(error: BaseException | None) -> bool:
    """Return whether a timeout is at the bottom of the exception's causes."""
    if error is None or isinstance(error, TimeoutError):
        return error is not None
    return _is_timeout(error.__cause__ or error.__context__)


def _slow(kind: EngineKind, path: str) -> Engine:
    each, total = engine_http.REQUEST_SECONDS, engine_http.TOTAL_SECONDS
    return failure(
        kind,
        "error",
        f"can't get a response from {kind.title} in time",
        f"no complete response at {path} within {each:.0f} s a request, {total:.0f} s in all",
        f"journalctl -u {kind.name}",
    )


def _malformed(kind: EngineKind, error: Exception) -> Engine:
    return failure(
        kind,
        "error",
        f"can't decode a response of {kind.title}",
        f"{type(error).__name__}: {error}"[:300],
        f"journalctl -u {kind.name}",
    )
