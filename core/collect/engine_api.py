"""Asking a container engine through its API, within bounded time, whatever it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import quote

from core.collect.engine_answers import checked, container_of
from core.collect.engine_http import EngineHttp, RefusedByEngine
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
_BUILT_IN = {"bridge", "host", "none", "podman"}
_WITH_PROCESS = ("running", "paused", "restarting", "stopping")

# The name that engines give themselves in the header field Server, and whether that is podman.
_PRODUCTS = {"Docker": False, "Libpod": True}


class NetworksReader(NamedTuple):
    """How the networks are read: the `question` to ask, with {api} for the version of the API, and what makes
    one of an inode, that of the engine's namespace, and of one thing answered."""

    question: str
    understand: Callable[[int, Mapping[str, Any]], Network]


def read_engine(kind: EngineKind, path: str | None, read_networks: NetworksReader) -> Engine:
    """The engine's version, containers and networks (by `read_networks`).

    An engine that is absent, stopped, closed to us, slow or broken is an answer too: see `Engine.state`.
    """
    try:
        found = find_socket(kind, path)
        with connected(kind, found) as connection:
            home = home_of(connection)
    except Unreachable as error:
        return error.answer
    return _read(kind, found, home, read_networks)


def _read(kind: EngineKind, path: str, home: int, read_networks: NetworksReader) -> Engine:
    try:
        with EngineHttp(path, REQUEST_SECONDS, TOTAL_SECONDS) as engine:
            told = _greeting(engine)
            if told.is_podman not in (None, kind.name == "podman"):
                return Engine(kind.name, "absent")
            api = f"/v{told.api}"
            asked = [f"{api}/containers/json?all=1", read_networks.question.format(api=told.api)]
            listed, networks = map(_granted, engine.ask_all(asked))
            return checked(
                Engine(
                    kind.name,
                    "ok",
                    version=told.version,
                    containers=tuple(_containers(kind, engine, api, listed)),
                    networks=_in_order(read_networks.understand(home, one) for one in networks),
                )
            )
    # Garbage from outside may fail in any way; none of them may take the program down.
    except Exception as error:
        return _slow(kind, path) if _timed_out(error) else _broken(kind, error)


class _Greeting(NamedTuple):
    """An engine's version, that of its API, and whether it is podman, None where it does not say: podman may
    sit at Docker's socket, but is asked at its own."""

    version: str
    api: str
    is_podman: bool | None


def _greeting(engine: EngineHttp) -> _Greeting:
    """What the engine tells of itself with any answer, else when asked for its version, which takes it longer
    than all other answers."""
    with suppress(RefusedByEngine):
        fields = engine.headers_of("/_ping")
        product, _, rest = fields.get("server", "").partition("/")
        if fields.get("api-version") and rest and product in _PRODUCTS:
            return _Greeting(rest.split()[0], fields["api-version"], _PRODUCTS[product])
    told = engine.ask("/version")
    names = [component.get("Name") for component in told.get("Components") or ()]
    is_podman = "Podman Engine" in names if names else None
    return _Greeting(str(told["Version"]), str(told["ApiVersion"]), is_podman)


def _containers(kind: EngineKind, engine: EngineHttp, api: str, listed: Any) -> Iterator[Container]:
    asked = [str(one["Id"]) for one in listed if one["State"] in _WITH_PROCESS or _is_on_a_network(one)]
    questions = [f"{api}/containers/{quote(one, safe='')}/json" for one in asked]
    inspected = dict(zip(asked, engine.ask_all(questions), strict=True))
    for one in listed:
        told = inspected.get(str(one["Id"]))
        if isinstance(told, RefusedByEngine):
            # It is gone, or the engine fails to say.
            if told.status == HTTPStatus.NOT_FOUND:
                continue
            told = {}
        yield container_of(kind.name, one, told if told is None else dict(told))


def _is_on_a_network(listed: Mapping[str, Any]) -> bool:
    """Whether it is attached to more than the engine's own networks: how is not in the list."""
    networks = (listed.get("NetworkSettings") or {}).get("Networks") or {}
    return bool(networks.keys() - _BUILT_IN)


def _in_order(networks: Iterable[Network]) -> tuple[Network, ...]:
    """Docker tells them in another order at each asking."""
    return tuple(sorted(networks, key=lambda one: (one.name, one.id)))


def _granted(answer: Any) -> Any:
    if isinstance(answer, RefusedByEngine):
        raise answer
    return answer


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
