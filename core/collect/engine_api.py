"""Asking a container engine through the `docker` SDK, within bounded time, whatever it answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from core.collect.engine_answers import container
from core.collect.engine_socket import (
    REQUEST_SECONDS,
    EngineKind,
    Unreachable,
    connected,
    failure,
    find_socket,
    home_of,
)
from core.model import Container, Engine, Network

# Seconds that an engine has for everything, however many containers it runs.
TOTAL_SECONDS = 5.0
_WITH_PROCESS = ("running", "paused", "restarting", "stopping")

NetworksReader = Callable[[Any, int], Iterator[Network]]

# The last reader that had no answer in time, by socket: while it still waits, no other is sent after it.
_late: dict[str, threading.Thread] = {}


def read_engine(kind: EngineKind, path: str | None, read_networks: NetworksReader) -> Engine:
    """The engine's version, containers and networks (`read_networks` of a client and a namespace's inode).

    An engine that is absent, stopped, closed to us, slow or broken is an answer too: see `Engine.state`.
    """
    try:
        found = find_socket(kind, path)
        with connected(kind, found) as connection:
            home = home_of(connection)
    except Unreachable as error:
        return error.answer
    return _in_time(kind, found, lambda: _read(kind, found, home, read_networks))


def _in_time(kind: EngineKind, path: str, work: Callable[[], Engine]) -> Engine:
    """Do the work on a thread of its own, so that an answer which never ends keeps nobody else waiting."""
    if (earlier := _late.get(path)) is not None and earlier.is_alive():
        return _slow(kind, path)
    answers: list[Engine] = []
    worker = threading.Thread(target=lambda: answers.append(work()), name=f"read {kind.name}", daemon=True)
    worker.start()
    worker.join(TOTAL_SECONDS)
    if answers:
        return answers[0]
    _late[path] = worker
    return _slow(kind, path)


def _read(kind: EngineKind, path: str, home: int, read_networks: NetworksReader) -> Engine:
    try:
        # The SDK takes memory and time to load: only those who run an engine pay for it.
        from docker.api import APIClient

        told = _version(path)
        client = APIClient(f"unix://{path}", version=told["ApiVersion"], timeout=REQUEST_SECONDS)
        try:
            if not _is_kind(kind, told):
                return Engine(kind.name, "absent")
            return Engine(
                kind.name,
                "ok",
                version=str(told["Version"]),
                containers=tuple(_containers(kind, client)),
                networks=tuple(read_networks(client, home)),
            )
        finally:
            client.close()
    # Garbage from outside may fail in any way; none of them may take the program down.
    except Exception as error:
        return _slow(kind, path) if _timed_out(error) else _broken(kind, error)


def _version(path: str) -> Mapping[str, Any]:
    """What the engine tells of itself; asked first, for a client that knows no version asks that itself, and
    the answer takes an engine longer than any other."""
    from docker.api import APIClient
    from docker.constants import DEFAULT_DOCKER_API_VERSION

    client = APIClient(f"unix://{path}", version=DEFAULT_DOCKER_API_VERSION, timeout=REQUEST_SECONDS)
    try:
        return dict(client.version(api_version=False))
    finally:
        client.close()


def _is_kind(kind: EngineKind, told: Mapping[str, Any]) -> bool:
    """Whether it is that engine which answers: podman may sit at Docker's socket, but is asked at its own."""
    names = [component.get("Name") for component in told.get("Components") or ()]
    return ("Podman Engine" in names) == (kind.name == "podman") or not names


def _containers(kind: EngineKind, client: Any) -> Iterator[Container]:
    deadline = time.monotonic() + TOTAL_SECONDS
    for listed in client.containers(all=True):
        inspected = None
        if listed["State"] in _WITH_PROCESS:
            if time.monotonic() > deadline:
                raise TimeoutError
            inspected = _inspect(client, listed["Id"])
            if inspected is None:
                continue
        yield container(kind.name, listed, inspected)


def _inspect(client: Any, container_id: str) -> Mapping[str, Any] | None:
    """What the engine knows of one container: None where it is gone, {} where the engine fails to say."""
    from docker.errors import APIError, NotFound

    try:
        return dict(client.inspect_container(container_id))
    except NotFound:
        return None
    except APIError:
        return {}


def _timed_out(error: BaseException | None) -> bool:
    """Whether running out of time is at the bottom of it."""
    if error is None or isinstance(error, TimeoutError):
        return error is not None
    return _timed_out(error.__cause__ or error.__context__)


def _slow(kind: EngineKind, path: str) -> Engine:
    return failure(
        kind,
        "error",
        f"{kind.title} does not answer in time",
        f"no whole answer at {path} within {REQUEST_SECONDS:.0f} s a request, {TOTAL_SECONDS:.0f} s in all",
        f"look at its log: journalctl -u {kind.name}",
    )


def _broken(kind: EngineKind, error: Exception) -> Engine:
    return failure(
        kind,
        "error",
        f"{kind.title} gives an answer that makes no sense",
        f"{type(error).__name__}: {error}"[:300],
        f"look at its log: journalctl -u {kind.name}",
    )
