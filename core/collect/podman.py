"""podman: its containers and networks, through its API socket."""

from __future__ import annotations

from core.collect.choice import is_wanted
from core.collect.engine_answers import Answer, texts
from core.collect.engine_api import NetworksReader, read_engine
from core.collect.engine_socket import EngineKind
from core.model import Engine, Network

PODMAN = EngineKind(
    name="podman",
    title="podman's API service",
    program="podman",
    variable="CONTAINER_HOST",
    socket="/run/podman/podman.sock",
    start="systemctl start podman.socket",
)

# podman's own API; the one it has in common with Docker hides the bridges' names and renames a network.
_NETWORKS = "/v4.0.0/libpod/networks/json"


def read_podman(socket: str | None = None) -> Engine:
    """What podman runs now, asked at `socket`, else at CONTAINER_HOST where that is a unix socket, else at
    the usual place of root's podman. States as for Docker: see Engine."""
    if socket is None and not is_wanted(PODMAN.name):
        return Engine(PODMAN.name, "absent")
    return read_engine(PODMAN, socket, NetworksReader(_NETWORKS, _network))


def _network(ns: int, told: Answer) -> Network:
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
