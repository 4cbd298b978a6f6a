"""What the Docker Engine does for us, through its API."""

from __future__ import annotations

from dataclasses import replace
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from core.apply.engine import EngineError, asked, post
from core.apply.execute.dispatch import execute
from core.apply.kernel import Kernel
from core.operations import DockerConnect, DockerCreateNetwork, DockerDisconnect, DockerRemoveNetwork


@execute.register
def _(operation: DockerCreateNetwork, kernel: Kernel) -> None:
    client = kernel.docker()
    with asked(already=[HTTPStatus.CONFLICT]):
        post(client, "/networks/create", operation.request())


@execute.register
def _(operation: DockerRemoveNetwork, kernel: Kernel) -> None:
    client = kernel.docker()
    with asked(already=[HTTPStatus.NOT_FOUND]):
        client.remove_network(operation.network.name)


@execute.register
def _(operation: DockerConnect, kernel: Kernel) -> None:
    try:
        _connect(operation, kernel)
    except EngineError as error:
        error.already = error.answered and is_connected(operation, kernel)
        if error.already or operation.insist or not error.answered or not operation.demanded():
            raise
        _connect(replace(operation, chosen=()), kernel)
    if not operation.insist and _differs(operation, kernel):
        _connect_as_before(operation, kernel)


def _connect(operation: DockerConnect, kernel: Kernel) -> None:
    client = kernel.docker()
    with asked():
        post(client, f"/networks/{quote(operation.network, safe='')}/connect", operation.request())


def _differs(operation: DockerConnect, kernel: Kernel) -> bool:
    """Whether Docker chose other addresses than the container had; one that does not run has none."""
    end = _endpoint(operation, kernel) or {}
    now = {end.get("IPAddress"), end.get("GlobalIPv6Address")} - {None, ""}
    return bool(now) and not {operation.ipv4, operation.ipv6} - {""} <= now


def _connect_as_before(operation: DockerConnect, kernel: Kernel) -> None:
    """Attach it again, with the addresses that it had where Docker lets them be chosen."""
    client = kernel.docker()
    with asked():
        client.disconnect_container_from_network(operation.container, operation.network)
    try:
        _connect(replace(operation, insist=True), kernel)
    except EngineError as error:
        if not error.answered:
            raise
        _connect(replace(operation, chosen=()), kernel)


@execute.register
def _(operation: DockerDisconnect, kernel: Kernel) -> None:
    client = kernel.docker()
    try:
        with asked(already=[HTTPStatus.NOT_FOUND]):
            client.disconnect_container_from_network(
                operation.connection.container, operation.connection.network
            )
    except EngineError as error:
        # Docker's status for "is not connected" differs between versions: ask what is.
        error.already |= error.answered and not is_connected(operation.connection, kernel)
        raise


def network_named(name: str, kernel: Kernel) -> dict[str, Any] | None:
    """What Docker knows of a network of exactly that name, None where there is none. Raises EngineError."""
    client = kernel.docker()
    with asked():
        return next((dict(one) for one in client.networks(names=[name]) if one["Name"] == name), None)


def is_connected(connection: DockerConnect, kernel: Kernel) -> bool:
    """Whether the container is on the network, as Docker tells it. Raises EngineError."""
    return _endpoint(connection, kernel) is not None


def _endpoint(connection: DockerConnect, kernel: Kernel) -> dict[str, Any] | None:
    """What Docker knows of the container's attachment, None where there is none. Raises EngineError."""
    client = kernel.docker()
    try:
        with asked(already=[HTTPStatus.NOT_FOUND]):
            told = client.inspect_container(connection.container)
    except EngineError as error:
        if error.already:
            return None
        raise
    found = (told.get("NetworkSettings") or {}).get("Networks") or {}
    by_id = {end.get("NetworkID"): end for end in found.values()}
    return found.get(connection.network) or by_id.get(connection.network)
