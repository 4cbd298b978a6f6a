"""Differences between two moments: items matched by name, restarts, engines, order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from core.diff.changelist import Topic
from core.diff.compare import Difference, differences
from core.model import (
    BridgePort,
    Container,
    Endpoint,
    Engine,
    IpSettings,
    Link,
    Listener,
    Neighbour,
    Network,
    OvsBridge,
    OvsPort,
    PublishedPort,
    Snapshot,
    container_ref,
    link_ref,
    namespace_ref,
)
from core.model.firewall import Translation
from tests.support.host_builder import HOST, HostBuilder
from tests.support.snapshots import empty_host, hostile_host, many_namespaces, small_host


def docker_host(boot: int = 0, **fields: Any) -> Snapshot:
    """Return a host with two containers; each boot gives everything other ids.

    The kernel or the engine chooses inodes, indexes, pids, MAC addresses, and names of links."""
    host = HostBuilder()
    host.link(HOST, "eth0", "physical", ("192.0.2.1/24",), ifindex=2)
    bridge_name = f"br-{boot:012x}"
    bridge = host.bridge(bridge_name, ("172.18.0.1/16",), ifindex=10 + boot, mac=f"02:42:aa:00:00:{boot:02x}")
    network = f"{boot:02x}" * 32
    host.networks.append(
        Network("docker", network, "shop", ns=HOST, bridge=bridge_name, subnets=("172.18.0.0/16",))
    )
    for number, name in enumerate(("web", "db")):
        # The second boot numbers the containers in another order.
        place = number if boot % 2 == 0 else 1 - number
        ns = host.namespace(HOST + 100 * boot + 10 + place, pids=(5000 + 10 * boot + place,), command=name)
        at = 20 + 10 * boot + place
        host.link(
            ns, "eth0", "veth", (f"172.18.0.{number + 2}/16",), ifindex=at + 1, lower=at, lower_nsid=0,
            mac=f"02:42:ac:12:{boot:02x}:{place:02x}",
        )  # fmt: skip
        host.link(
            HOST, f"veth{boot}{place}abcde", "veth", ifindex=at, master=bridge.ifindex, lower=at + 1,
            lower_nsid=ns, mac=f"06:00:00:00:{boot:02x}:{place:02x}", port=BridgePort("forwarding"),
        )  # fmt: skip
        host.container(
            "docker", name, ns, id=f"{boot}{number}" * 32, pid=5000 + 10 * boot + place,
            endpoints=(Endpoint("shop", f"172.18.0.{number + 2}/16"),), network_mode="shop",
            ports=(PublishedPort("tcp", "", 8080, 80),) if name == "web" else (),
        )  # fmt: skip
    for text in (f"-A FORWARD -i {bridge_name} -j ACCEPT", f"-A FORWARD -o {bridge_name} -j ACCEPT"):
        host.rule("FORWARD", text, table="filter", verdict="accept")
    return host.snapshot(**fields)


OLD = docker_host()


def sentences(new: Snapshot, old: Snapshot = OLD) -> list[str]:
    return [each.sentence for each in differences(old, new)]


def changed_container(snapshot: Snapshot, name: str, **fields: Any) -> Snapshot:
    """Change fields of a container."""
    docker = snapshot.engines["docker"]
    found = tuple(replace(one, **fields) if one.name == name else one for one in docker.containers)
    return with_engine(snapshot, replace(docker, containers=found))


def with_engine(snapshot: Snapshot, engine: Engine) -> Snapshot:
    return replace(snapshot, engines={**snapshot.engines, engine.name: engine})


def changed_link(snapshot: Snapshot, ns: int, name: str, **fields: Any) -> Snapshot:
    net = snapshot.nets[ns]
    link: Link = next(link for link in net.links.values() if link.name == name)
    links = {**net.links, link.ifindex: replace(link, **fields)}
    return replace(snapshot, nets={**snapshot.nets, ns: replace(net, links=links)})


HOSTS = (docker_host, small_host, empty_host, hostile_host, many_namespaces)


@pytest.mark.parametrize("make", HOSTS, ids=lambda make: make.__name__)
def test_equal_hosts_have_no_difference(make: Callable[[], Snapshot]) -> None:
    assert differences(make(), make()) == ()


@pytest.mark.parametrize("boot", [1, 2, 3])
def test_a_reboot_is_no_difference(boot: int) -> None:
    assert sentences(docker_host(boot)) == []


def test_a_change_is_found_across_a_reboot() -> None:
    new = docker_host(1)
    web = next(one for one in new.containers() if one.name == "web")
    assert web.netns is not None
    new = changed_link(new, web.netns, "eth0", mtu=1400, addresses=())
    found = differences(OLD, new)
    assert [each.sentence for each in found] == [
        "veth eth0 in web lost the address 172.18.0.2/16",
        "the MTU of veth eth0 in web changed from 1500 to 1400",
    ]
    assert {each.ref.key[0] for each in found} == {web.netns}


def test_one_restarted_container_is_a_difference_of_low_rank() -> None:
    new = changed_container(changed_container(OLD, "web", pid=9999), "db", image="other:1")
    assert sentences(new) == [
        "the image of container db changed from busybox:local to other:1",
        "container web was restarted",
    ]


def test_a_restarted_container_in_the_same_namespace_may_have_another_mac() -> None:
    """The kernel may number the new namespace and its link like the old ones."""
    web = next(one for one in OLD.containers() if one.name == "web")
    assert web.netns is not None
    moved = changed_link(OLD, web.netns, "eth0", mac="66:ad:a2:6b:20:06")
    assert sentences(changed_container(moved, "web", pid=9999)) == ["container web was restarted"]
    assert sentences(moved) == [
        "the MAC address of veth eth0 in web changed from 02:42:ac:12:00:00 to 66:ad:a2:6b:20:06"
    ]


@pytest.mark.parametrize("joins", ["web", "host"])
def test_another_mac_is_found_after_a_container_that_joined_the_namespace_was_restarted(joins: str) -> None:
    """The sidecar is no sign that the namespace is another one."""
    ns = HOST if joins == "host" else next(one.netns for one in OLD.containers() if one.name == joins)
    docker = OLD.engines["docker"]
    sidecar = replace(docker.containers[0], id="5" * 64, name="sidecar", namespaces={"net": ns}, endpoints=(),
                      ports=(), network_mode="host")  # fmt: skip
    old = with_engine(OLD, replace(docker, containers=(*docker.containers, sidecar)))
    assert ns is not None
    new = changed_container(changed_link(old, ns, "eth0", mac="66:ad:a2:6b:20:06"), "sidecar", pid=9999)
    assert any("eth0" in each and "66:ad:a2:6b:20:06" in each for each in sentences(new, old))


def test_another_mac_in_a_named_namespace_is_found_after_its_process_was_restarted() -> None:
    def snapshot(pid: int, mac: str) -> Snapshot:
        host = HostBuilder()
        ns = host.namespace(HOST + 1, pids=(pid,), command="server", names=("lab",))
        host.link(ns, "eth0", "veth", ifindex=2, mac=mac)
        host.container("netns", "lab", ns, id="lab", pid=pid)
        return host.snapshot()

    assert sentences(snapshot(8, "06:00:00:00:00:02"), snapshot(7, "06:00:00:00:00:01")) == [
        "the MAC address of veth eth0 in lab changed from 06:00:00:00:00:01 to 06:00:00:00:00:02"
    ]


def stopped(snapshot: Snapshot, name: str) -> Snapshot:
    """Stop a container: its namespace and the host's end of its link are gone."""
    container: Container = next(one for one in snapshot.containers() if one.name == name)
    ns = container.netns
    nets = {inode: net for inode, net in snapshot.nets.items() if inode != ns}
    links = {index: link for index, link in nets[HOST].links.items() if link.lower_nsid != ns}
    nets[HOST] = replace(nets[HOST], links=links)
    spaces = {inode: one for inode, one in snapshot.namespaces.items() if inode != ns}
    new = replace(snapshot, nets=nets, namespaces=spaces)
    return changed_container(new, name, state="exited", pid=None, namespaces={}, endpoints=(), ports=())


def test_a_stopped_container_is_named_and_not_what_went_with_it() -> None:
    found = differences(OLD, stopped(OLD, "web"))
    assert [(each.topic, each.sentence) for each in found] == [
        (Topic.STATE, "container web stopped (exited)"),
        (Topic.CONTAINER, "container web left the network shop"),
    ]
    web = next(one for one in OLD.containers() if one.name == "web")
    assert found[0].ref == container_ref("docker", web.id)
    assert sentences(OLD, stopped(OLD, "web"))[0] == "container web started"


def test_published_ports_and_addresses_of_containers() -> None:
    new = changed_container(
        OLD, "web", ports=(PublishedPort("tcp", "127.0.0.1", 8080, 80),),
        endpoints=(Endpoint("shop", "172.18.0.9/16"),),
    )  # fmt: skip
    assert sentences(new) == [
        "the address of container web on shop changed from 172.18.0.2/16 to 172.18.0.9/16",
        "container web no longer publishes 8080:80/tcp",
        "container web publishes 127.0.0.1:8080:80/tcp",
    ]


def test_settings_of_networks_and_engines() -> None:
    docker = OLD.engines["docker"]
    network = replace(docker.networks[0], internal=True, mtu=1400)
    new = with_engine(OLD, replace(docker, version="28.5", networks=(network,)))
    assert sentences(new) == [
        "mtu of network shop changed from 0 to 1400",
        "internal of network shop changed from off to on",
        "docker changed from version 26.1 to 28.5",
    ]


def test_an_engine_that_does_not_answer_is_named_and_not_its_containers() -> None:
    new = with_engine(OLD, Engine("docker", "stopped"))
    assert sentences(new)[0] == "docker is stopped (was ok)"
    assert not any("container" in each and "gone" in each for each in sentences(new))


def test_parts_that_were_not_read_are_not_compared() -> None:
    new = replace(OLD, firewalls={}, engines={}, pending=frozenset({"firewall", "containers"}))
    assert sentences(new) == []


def test_the_other_end_of_a_veth_pair() -> None:
    hosts = []
    for inner in ("eth0", "eth1"):
        host = HostBuilder()
        ns = host.namespace(HOST + 1, names=("web",))
        bridge = host.bridge("br0")
        for name in ("eth0", "eth1"):
            host.link(ns, name, "veth" if name == inner else "dummy", lower=3, lower_nsid=0)
        lower = next(index for index, link in host.links[ns].items() if link.name == inner)
        host.link(HOST, "v-web", "veth", master=bridge.ifindex, lower=lower, lower_nsid=ns)
        hosts.append(host.snapshot())
    assert "the other end of veth v-web in host is eth1 in web (was eth0 in web)" in sentences(*hosts[::-1])


def test_links_that_are_gone_lead_to_their_namespace() -> None:
    net = OLD.nets[HOST]
    links = {index: link for index, link in net.links.items() if link.name != "eth0"}
    new = replace(OLD, nets={**OLD.nets, HOST: replace(net, links=links)})
    assert differences(OLD, new) == (
        Difference(Topic.STATE, "removed", namespace_ref(HOST), "link eth0 is gone from host"),
    )


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"qdisc": "netem"}, "the qdisc of link eth0 in host changed from none to netem"),
        ({"qdisc": "fq_codel"}, None),
        ({"offloads": ("gro",)}, "offloads of link eth0 in host were turned on: gro"),
        ({"details": {"vni": 7}}, "vni of link eth0 in host changed from none to 7"),
        ({"promiscuous": True}, None),
    ],
)
def test_settings_of_links(fields: dict[str, Any], sentence: str | None) -> None:
    new = changed_link(OLD, HOST, "eth0", **fields)
    assert sentences(new) == ([sentence] if sentence else [])
    eth0 = next(link for link in OLD.links() if link.name == "eth0" and link.ns == HOST)
    assert all(each.ref == link_ref(eth0.key) for each in differences(OLD, new))


def test_addresses_that_expire_are_not_compared() -> None:
    eth0 = next(link for link in OLD.links() if link.name == "eth0" and link.ns == HOST)
    temporary = replace(eth0.addresses[0], family=6, address="2001:db8::77", valid_until=1_800_000_000)
    new = changed_link(OLD, HOST, "eth0", addresses=(*eth0.addresses, temporary))
    assert sentences(new) == []


def test_neighbours_are_compared_only_if_somebody_set_them() -> None:
    net = OLD.nets[HOST]
    learned = Neighbour(4, "192.0.2.9", "02:00:00:00:00:09", 2, "stale")
    fixed = Neighbour(4, "192.0.2.8", "02:00:00:00:00:08", 2, "permanent")
    new = replace(OLD, nets={**OLD.nets, HOST: replace(net, neighbours=(*net.neighbours, learned, fixed))})
    assert sentences(new) == ["permanent neighbour 192.0.2.8 on eth0 in host was added: 02:00:00:00:00:08"]
    assert sentences(OLD, new) == ["permanent neighbour 192.0.2.8 on eth0 in host is gone: 02:00:00:00:00:08"]


def test_elements_of_a_map_are_compared() -> None:
    firewall = OLD.firewalls[HOST]
    first = replace(firewall.rules[0], text="dnat to tcp dport map @m", verdict="dnat")
    sides = []
    for address in ("172.18.0.2", "172.18.0.3"):
        translation = Translation(l4_proto="tcp", dport="8080", to_address=address, to_port="80")
        rule = replace(first, translations=(translation,))
        sides.append(replace(OLD, firewalls={HOST: replace(firewall, rules=(rule,))}))
    (found,) = differences(*sides)
    assert found.topic is Topic.NAT
    assert found.sentence.endswith("changed: -tcp 8080 : 172.18.0.2:80, +tcp 8080 : 172.18.0.3:80")


def test_listening_ports_of_the_host() -> None:
    ssh, web, late = (Listener("tcp", "0.0.0.0", port) for port in (22, 80, 40000))
    old = replace(OLD, host=replace(OLD.host, listening=(ssh, web)))
    new = replace(OLD, host=replace(OLD.host, listening=(ssh, late)))
    assert sentences(new, old) == ["no process in host listens on tcp 0.0.0.0:80 any more"]


def test_listening_ports_of_containers() -> None:
    spaces = {one.name: one.netns or 0 for one in OLD.containers()}
    dns, web, grpc = (Listener("tcp", address, port) for address, port in
                      (("127.0.0.11", 40001), ("::", 80), ("127.0.0.1", 50051)))  # fmt: skip
    old = replace(OLD, listeners={spaces["web"]: (web,), spaces["db"]: (grpc,)})
    rebooted = {one.name: one.netns or 0 for one in docker_host(1).containers()}
    new = replace(docker_host(1), listeners={rebooted["web"]: (dns,), rebooted["db"]: (grpc,)})
    assert sentences(new, old) == ["no process in web listens on tcp [::]:80 any more"]


def test_elements_of_named_sets() -> None:
    firewall = OLD.firewalls[HOST]
    old, new = (
        replace(OLD, firewalls={HOST: replace(firewall, sets={"ip/t/blocked": elements})})
        for elements in (("192.0.2.7",), ("192.0.2.7", "172.18.0.2"))
    )
    assert sentences(new, old) == ["elements of set ip/t/blocked in host changed: +172.18.0.2"]
    many = tuple(f"10.0.0.{number}" for number in range(20))
    full = replace(OLD, firewalls={HOST: replace(firewall, sets={"ip/t/blocked": many})})
    assert sentences(full, old) == ["elements of set ip/t/blocked in host changed: 1 removed, 20 added"]


def test_an_old_dump_has_no_sets_settings_or_listeners() -> None:
    firewall = OLD.firewalls[HOST]
    new = replace(
        OLD, firewalls={HOST: replace(firewall, sets={"ip/t/s": ("1",)})}, listeners={HOST: ()},
        nets={ns: replace(net, settings=(IpSettings(4, 0, True),)) for ns, net in OLD.nets.items()},
    )  # fmt: skip
    assert sentences(new) == [] == sentences(OLD, new)


def test_the_kernel_and_sysctls_of_modules() -> None:
    sysctls = {**OLD.host.sysctls, "net.bridge.bridge-nf-call-iptables": "1"}
    new = replace(OLD, host=replace(OLD.host, kernel="6.18.0", sysctls=sysctls))
    assert sentences(new) == [
        "net.bridge.bridge-nf-call-iptables is 1 (br_netfilter was not loaded)",
        "the kernel changed from 6.12.0 to 6.18.0",
    ]


def test_ports_of_open_vswitch() -> None:
    old, new = (replace(OLD, ovs=(OvsBridge("ovs0", ports=(OvsPort("p1", tag=tag),)),)) for tag in (10, 20))
    assert sentences(new, old) == ["port p1 of OVS bridge ovs0 changed from tag 10 to tag 20"]


def test_another_host_with_the_same_names_has_no_difference() -> None:
    other = docker_host(3)
    assert sentences(replace(other, host=replace(other.host, hostname="elsewhere"))) == []
