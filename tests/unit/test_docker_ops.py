"""Docker operations: their commands, and the requests to Docker's API."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.model import Endpoint, Engine, Network, Snapshot
from core.operations import DockerConnect, DockerCreateNetwork, DockerDisconnect, DockerRemoveNetwork
from core.operations.values import from_record, to_record
from core.plan import Plan, plan
from core.plan.requests import Detach, Move, RemoveNetwork, Request
from core.topology import Topology
from tests.support.host_builder import HostBuilder

ADDRESSES = ("10.1.0.9", "fd00::9")
WHOLE = DockerConnect(
    "app", "web", *ADDRESSES, aliases=("www", "a b"), insist=False, chosen=ADDRESSES,
    link_local=("169.254.1.1",), links=("db:base",), driver_options=(("ifname", "eth7"),), gateway_priority=7,
)  # fmt: skip
MADE = DockerCreateNetwork(
    "app", ("10.1.0.0/24", "fd00::/64"), ("10.1.0.1", ""), driver_options=(("mtu", "1400"),), labels=(),
    attachable=True, ipv6=True, ip_ranges=("10.1.0.128/25",), reserved=("r=10.1.0.200", "s=fd00::2"),
    ipam="own", ipam_options=(("k", "v"),),
)  # fmt: skip


def test_a_connection_has_all_chosen_settings() -> None:
    assert WHOLE.command() == (
        "docker network connect --ip 10.1.0.9 --ip6 fd00::9 --alias www --alias 'a b' --link-local-ip "
        "169.254.1.1 --link db:base --driver-opt ifname=eth7 --gw-priority 7 app web"
    )
    assert WHOLE.request() == {
        "Container": "web",
        "EndpointConfig": {
            "IPAMConfig": {
                "IPv4Address": "10.1.0.9", "IPv6Address": "fd00::9", "LinkLocalIPs": ["169.254.1.1"],
            },
            "Aliases": ["www", "a b"], "Links": ["db:base"], "DriverOpts": {"ifname": "eth7"},
            "GwPriority": 7,
        },
    }  # fmt: skip


def test_an_address_chosen_by_docker_is_not_requested() -> None:
    free = DockerConnect("app", "web", *ADDRESSES, insist=False)
    assert free.command() == "docker network connect app web"
    assert free.request() == {"Container": "web", "EndpointConfig": {}}
    assert replace(free, insist=True).command() == (
        "docker network connect --ip 10.1.0.9 --ip6 fd00::9 app web"
    )


def test_a_network_has_all_its_settings() -> None:
    assert MADE.command() == (
        "docker network create --subnet 10.1.0.0/24 --gateway 10.1.0.1 --subnet fd00::/64 --ip-range "
        "10.1.0.128/25 --aux-address r=10.1.0.200 --aux-address s=fd00::2 --attachable --ipv6 "
        "--ipam-driver own --ipam-opt k=v --opt mtu=1400 app"
    )
    asked = MADE.request()
    assert asked["IPAM"]["Config"] == [
        {
            "Subnet": "10.1.0.0/24", "Gateway": "10.1.0.1", "IPRange": "10.1.0.128/25",
            "AuxiliaryAddresses": {"r": "10.1.0.200"},
        },
        {"Subnet": "fd00::/64", "AuxiliaryAddresses": {"s": "fd00::2"}},
    ]  # fmt: skip
    assert "EnableIPv4" not in asked
    assert replace(MADE, ipv4=False).request()["EnableIPv4"] is False


@pytest.mark.parametrize("operation", [WHOLE, DockerDisconnect(WHOLE), MADE, DockerRemoveNetwork(MADE)])
def test_operations_are_read_back_from_the_journal(operation: object) -> None:
    assert from_record(to_record(operation)) == operation


END = Endpoint(
    "front", "172.20.0.2/16", mac="ca:fe:00:00:00:01", aliases=("www",), chosen=("172.20.0.2",),
    mac_chosen=True, driver_options={"k": "v"}, gateway_priority=3,
)  # fmt: skip


def host(version: str) -> Snapshot:
    made = HostBuilder()
    made.container("docker", "web", 90, endpoints=(END,))
    labels = {"com.docker.compose.project": "shop"}
    for number, name in enumerate(("front", "back", "bridge")):
        subnet = f"172.2{number}.0.0/16"
        made.networks.append(Network("docker", name * 9, name, subnets=(subnet,), labels=labels))
    snapshot = made.snapshot()
    engines = dict(snapshot.engines)
    docker: Engine = engines["docker"]
    return replace(snapshot, engines=engines | {"docker": replace(docker, version=version)})


def planned(request: Request, version: str = "28.5.2") -> Plan:
    found = plan(request, Topology(host(version)))
    assert isinstance(found, Plan), found
    return found


def test_a_move_keeps_names_and_warns_of_what_is_lost() -> None:
    found = planned(Move("web", "front", "back"))
    assert found.steps[0] == DockerConnect("back", "web", aliases=("www",), gateway_priority=3)
    for text in ("the address chosen on front: 172.20.0.2", "MAC address chosen on front: ca:fe", "k=v"):
        assert text in " ".join(found.warnings)
    assert "where Docker has no DNS: www" in " ".join(planned(Move("web", "front", "bridge")).warnings)


def test_docker_before_25_restores_a_mac_address() -> None:
    for version, lost in (("28.5.2+dfsg", True), ("25.0.1", True), ("20.10.24+dfsg1", False)):
        warnings = " ".join(planned(Detach("web", "front"), version).warnings)
        assert ("another MAC address on front" in warnings) == lost
    (step,) = planned(Detach("web", "front")).steps
    assert isinstance(step, DockerDisconnect) and step.connection.chosen == ("172.20.0.2",)


def test_a_removed_network_is_restored_with_its_labels() -> None:
    step = planned(RemoveNetwork("front")).steps[-1]
    assert isinstance(step, DockerRemoveNetwork)
    assert step.network.labels == (("com.docker.compose.project", "shop"),)
