"""What the Docker Engine does for us, through its API."""

from __future__ import annotations

from dataclasses import replace
from http import HTTPStatus
from typing import Any

from core.apply.engine import EngineError, asked
from core.apply.execute.dispatch import execute
from core.apply.kernel import Kernel
from core.ops import DockerConnect, DockerCreateNetwork, DockerDisconnect, DockerRemoveNetwork
from core.ops.docker import LABELS


@execute.register
def _(operation: DockerCreateNetwork, kernel: Kernel) -> None:
    client = kernel.docker()
    with asked(already=[HTTPStatus.CONFLICT]):
        client.create_network(
            operation.name,
            driver="bridge",
            options=operation.options(),
            ipam=_ipam(operation),
            check_duplicate=True,
            internal=operation.internal,
            enable_ipv6=operation.ipv6,
            labels=LABELS,
        )


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
        if error.already or operation.insist or not error.answered or not (operation.ipv4 or operation.ipv6):
            raise
        _connect(replace(operation, ipv4="", ipv6=""), kernel)


def _connect(operation: DockerConnect, kernel: Kernel) -> None:
    client = kernel.docker()
    with asked():
        client.connect_container_to_network(
            operation.container,
            operation.network,
            ipv4_address=operation.ipv4 or None,
            ipv6_address=operation.ipv6 or None,
            aliases=list(operation.aliases) or None,
        )


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
    client = kernel.docker()
    try:
        with asked(already=[HTTPStatus.NOT_FOUND]):
            told = client.inspect_container(connection.container)
    except EngineError as error:
        if error.already:
            return False
        raise
    found = (told.get("NetworkSettings") or {}).get("Networks") or {}
    ids = {end.get("NetworkID") for end in found.values()}
    return connection.network in found or connection.network in ids


def _ipam(operation: DockerCreateNetwork) -> Any:
    from docker.types import IPAMConfig, IPAMPool

    pools = zip(operation.subnets, operation.gateways, strict=True)
    return IPAMConfig(
        pool_configs=[IPAMPool(subnet=subnet, gateway=gateway or None) for subnet, gateway in pools]
    )
