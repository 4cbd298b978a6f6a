"""NAT entries from the rules of real engines, with their containers and networks."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from core.collect import engines
from core.collect.firewall import read_firewall
from core.collect.links import read_nets
from core.collect.namespaces import read_namespaces
from core.model import Engine, Host, NatEntry, Network, Snapshot
from core.nat import nat_entries
from core.networks import all_networks
from tests.docker.engine import DockerHost
from tests.docker.podman_engine import PodmanHost
from tests.support.host import ThrowawayHost
from tests.support.waiting import wait_until

pytestmark = pytest.mark.root

HTTPD = "httpd -f -p 80 -h /etc"
OUTSIDE, CLIENT = "192.0.2.1", "192.0.2.2"


class HostView:
    """The current networks and entries of an engine's host."""

    def __init__(self, engine: Engine, host: ThrowawayHost) -> None:
        assert engine.problems == ()
        found, _ = read_namespaces(deep=False)
        firewall = read_firewall(found[host.inode])
        assert firewall.problems == ()
        self.snapshot = Snapshot(
            host=Host(netns=host.inode),
            namespaces=found,
            nets=read_nets(found.values()),
            firewalls={host.inode: firewall},
            engines={engine.name: engine},
        )
        networks = all_networks(self.snapshot)
        self.entries = nat_entries(self.snapshot, networks)
        self.networks = {network.name: network for network in networks if network.engine == engine.name}
        self.kernel_networks = [one for one in networks if one.engine == "kernel" and one.ns == host.inode]
        self.uids = {container.name: container.uid for container in engine.containers}

    def of(self, kind: str) -> list[NatEntry]:
        return [entry for entry in self.entries if entry.kind == kind]

    def text(self, entry: NatEntry) -> list[str]:
        """Return the rules of an entry as their tool prints them."""
        (firewall,) = self.snapshot.firewalls.values()
        texts = {rule.rule_id: rule.text for rule in firewall.rules}
        return [texts[rule_id] for rule_id in entry.rules]


def read_host(engine: DockerHost) -> HostView:
    return HostView(engines.read_docker(engine.socket), engine.host)


def counter(host: ThrowawayHost, text: str) -> tuple[int, int]:
    """Return (packets, bytes) of a rule, as iptables-save prints it."""
    (found,) = re.findall(rf"^\[(\d+):(\d+)\] {re.escape(text)}$", host.run("iptables-save -c"), re.MULTILINE)
    return int(found[0]), int(found[1])


@pytest.fixture
def client(docker_host: DockerHost) -> Iterator[str]:
    """Return the short name of a namespace behind the uplink of the engine's host."""
    host = docker_host.host
    name = host.namespace("client")
    host.run(f"ip link add up0 type veth peer name eth0 netns {name}")
    host.run(f"ip addr add {OUTSIDE}/24 dev up0")
    host.run("ip link set up0 up")
    host.run(f"ip addr add {CLIENT}/24 dev eth0", inside="client")
    host.run("ip link set eth0 up", inside="client")
    yield "client"
    host.run("ip link del up0")
    host.remove("client")


def test_a_published_port_is_one_entry_of_its_container_and_network(docker_host: DockerHost) -> None:
    docker_host.run("network", "create", "shop")
    docker_host.container("web", "--network", "shop", "-p", "8080:80", "-p", "127.0.0.1:53:5353/udp")
    docker_host.container("side", "--network", "container:web")
    seen = read_host(docker_host)
    address = docker_host.run("inspect", "-f", "{{.NetworkSettings.Networks.shop.IPAddress}}", "web")
    http, dns = sorted(seen.of("published port"), key=lambda entry: entry.l4_proto)
    assert http.sentence == f"published: tcp 8080 on every address -> web {address}:80"
    assert dns.sentence == f"published: udp 53 on 127.0.0.1 -> web {address}:5353"
    for entry in (http, dns):
        assert entry.containers == (seen.uids["web"], seen.uids["side"])
        assert entry.networks == (seen.networks["shop"].id,)


def test_helper_rules_of_a_port_belong_to_its_entry(docker_host: DockerHost) -> None:
    docker_host.container("web", "-p", "8080:80")
    seen = read_host(docker_host)
    (entry,) = seen.of("published port")
    translating, *helping = seen.text(entry)
    assert translating.endswith("-j DNAT --to-destination 10.200.0.2:80")
    # Docker before 28 masquerades packets of a container to its own published port.
    own = [] if docker_host.version >= (28, 0) else ["MASQUERADE"]
    assert [text.split(" -j ")[1] for text in helping] == ["ACCEPT", *own]
    assert not [one for one in seen.entries if "10.200.0.2" in one.inside and one is not entry]


def test_each_bridge_network_has_its_masquerade(docker_host: DockerHost) -> None:
    docker_host.run("network", "create", "shop", "--subnet", "10.201.0.0/24")
    seen = read_host(docker_host)
    found = {entry.networks: entry.sentence for entry in seen.of("masquerade")}
    assert found == {
        (seen.networks["bridge"].id,): "masquerade: packets from bridge (10.200.0.0/24) get "
        "the source address of the outgoing link",
        (seen.networks["shop"].id,): "masquerade: packets from shop (10.201.0.0/24) get "
        "the source address of the outgoing link",
    }


def test_networks_have_their_kinds_and_bridges(docker_host: DockerHost) -> None:
    docker_host.run("network", "create", "shop", "--opt", "com.docker.network.bridge.name=br-shop")
    docker_host.run("network", "create", "--internal", "vault")
    networks = read_host(docker_host).networks
    kinds = {name: network.kind for name, network in networks.items()}
    assert kinds == {"bridge": "nat", "shop": "nat", "vault": "internal", "host": "host", "none": "none"}
    assert networks["shop"].bridge == "br-shop"
    assert networks["vault"].bridge == f"br-{networks['vault'].id[:12]}"
    assert read_host(docker_host).kernel_networks == []


def test_an_internal_network_is_recognized_by_dockers_rules(docker_host: DockerHost) -> None:
    """A bridge like that of an internal network, without one in the engine."""
    docker_host.run("network", "create", "--internal", "vault")
    seen = read_host(docker_host)
    bare = Engine("docker", "ok")
    kinds = {
        network.bridge: network.kind
        for network in all_networks(
            Snapshot(
                host=seen.snapshot.host,
                nets={docker_host.inode: seen.snapshot.nets[docker_host.inode]},
                firewalls=seen.snapshot.firewalls,
                engines={"docker": bare},
            )
        )
    }
    assert kinds == {"docker0": "nat", seen.networks["vault"].bridge: "internal"}


def test_filters_are_named_by_their_networks(docker_host: DockerHost) -> None:
    docker_host.run("network", "create", "shop", "--opt", "com.docker.network.bridge.name=br-shop")
    sentences = {entry.sentence for entry in read_host(docker_host).of("filter")}
    # Since Docker 28 another rule handles packets that stay on a network.
    way = "anywhere" if docker_host.version >= (28, 0) else "anywhere except shop (br-shop)"
    assert f"accept: everything from shop (br-shop) to {way}" in sentences
    assert "drop: everything from bridge (docker0) to shop (br-shop)" in sentences


def test_counters_after_connections_from_outside_and_inside(docker_host: DockerHost, client: str) -> None:
    host = docker_host.host
    docker_host.container("web", "-p", "8080:80", command=HTTPD)
    fetch = ["busybox", "wget", "-q", "-T", "5", "-O", "-", f"http://{OUTSIDE}:8080/hostname"]
    wait_until(lambda: host.run(fetch, inside=client, check=False), "an answer through the published port")
    for _ in range(3):
        assert host.run(fetch, inside=client)
    before = read_host(docker_host).of("masquerade")[0].packets or 0
    docker_host.run("exec", "web", "ping", "-c", "2", "-W", "2", CLIENT)
    seen = read_host(docker_host)
    (port,) = seen.of("published port")
    (masquerade,) = seen.of("masquerade")
    assert (port.packets, port.bytes) == counter(host, seen.text(port)[0])
    assert (masquerade.packets, masquerade.bytes) == counter(host, seen.text(masquerade)[0])
    assert (port.packets or 0) >= 4
    assert masquerade.packets == before + 1


def test_rules_of_podman(podman_host: PodmanHost) -> None:
    podman_host.run("network", "create", "--disable-dns", "--subnet", "10.202.0.0/24", "user-net")
    podman_host.container("web", "--network", "user-net", "-p", "8080:80")
    seen = HostView(engines.read_podman(podman_host.socket), podman_host.host)
    (port,) = seen.of("published port")
    network: Network = seen.networks["user-net"]
    assert port.sentence == "published: tcp 8080 on every address -> web 10.202.0.2:80"
    assert (port.containers, port.networks) == ((seen.uids["web"],), (network.id,))
    masquerades = [entry for entry in seen.of("masquerade") if entry.networks == (network.id,)]
    assert [entry.inside for entry in masquerades] == ["10.202.0.0/24"]
    assert network.kind == "nat"
