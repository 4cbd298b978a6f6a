"""Plans: steps, warnings, side effects and refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest

from core.model import (
    Chain,
    Endpoint,
    Firewall,
    FirewallRule,
    Host,
    LinkKey,
    Listener,
    Network,
    PublishedPort,
    Ref,
    Route,
    container_ref,
    link_ref,
    namespace_ref,
    nat_ref,
    network_ref,
)
from core.model.link import NextHop
from core.operations import (
    AddAddress,
    AddRoute,
    CreateBridge,
    CreateVeth,
    DeleteLink,
    DockerConnect,
    DockerCreateNetwork,
    DockerDisconnect,
    DockerRemoveNetwork,
    NetnsTarget,
    SetLink,
    SetRules,
    SetSysctl,
    undo_of,
)
from core.plan import Plan, Refused, describe, plan, plan_all
from core.plan.ports import free_port
from core.plan.requests import (
    PHRASES,
    Attach,
    ChangeBridge,
    ChangeLink,
    ChangePort,
    CreateContainer,
    CreateNetwork,
    Delete,
    Detach,
    Join,
    Publish,
    RemoveContainer,
    RemoveNetwork,
    Request,
    Unpublish,
)
from core.topology import Topology
from tests.support.host_builder import CHAINS, HOST, HostBuilder

SHOP_TAG = "vnet:net=shop kind=nat subnet=10.9.0.0/24 gateway=10.9.0.1"
WEB_TAG = "vnet:of=netns:web net=shop link=eth0 address=10.9.0.2/24"
WEB, BARE = 70, 71
PUBLISHED = "vnet publish tcp/8080 80 netns:web"


def host(chains: tuple[Chain, ...] = ()) -> HostBuilder:
    """Return a host with an uplink, the network shop with web, and a bare container."""
    made = HostBuilder()
    uplink = made.link(HOST, "eth0", "physical", ["192.0.2.2/24"])
    bridge = made.bridge("br-shop", ["10.9.0.1/24"], alias=SHOP_TAG)
    made.routes[HOST] = [
        Route(4, "default", nexthops=(NextHop("192.0.2.1", uplink.ifindex),)),
        Route(4, "10.9.0.0/24", nexthops=(NextHop("", bridge.ifindex),), protocol="kernel"),
    ]
    for inode, name in ((WEB, "web"), (BARE, "bare")):
        made.namespace(inode, names=(name,))
        made.container("netns", name, inode, id=name, pid=None)
    outer = made.wire(WEB, bridge, "v-web", ["10.9.0.2/24"])
    made.links[HOST][outer.ifindex] = replace(outer, alias=WEB_TAG)
    return made


def topology(made: HostBuilder, rules: tuple[FirewallRule, ...] = (), **fields: Any) -> Topology:
    made.rules += rules
    snapshot = made.snapshot()
    firewall = snapshot.firewalls[HOST]
    whole = replace(firewall, chains=(*firewall.chains, Chain("nft", "inet", "vnet", "publish")))
    return Topology(replace(snapshot, host=replace(snapshot.host, **fields), firewalls={HOST: whole}))


def planned(request: Request, now: Topology | None = None) -> Plan:
    made = plan(request, now or topology(host()))
    assert isinstance(made, Plan), made
    return made


def refused(request: Request, now: Topology | None = None) -> str:
    made = plan(request, now or topology(host()))
    assert isinstance(made, Refused), made
    framed = f"can't {describe(request, now or topology(host()))}: "
    assert all(one.startswith(framed) for one in made.reasons), made.reasons
    reasons = [one.removeprefix(framed) for one in made.reasons]
    assert not any(one.startswith(("can't ", "cannot ")) for one in reasons), reasons
    return "; ".join(reasons)


def vnet_rule(comment: str, **fields: Any) -> FirewallRule:
    return FirewallRule(
        "nft", "inet", "vnet", "publish", f"nft/inet/vnet/{comment}", "", comment=comment, **fields
    )


RULE = vnet_rule(PUBLISHED, to_address="10.9.0.2", to_port="80", dport="8080", l4_proto="tcp", verdict="dnat")


def test_create_a_nat_network() -> None:
    made = planned(CreateNetwork("new", subnets=("10.44.0.0/24",)), topology(host(), sysctls={}))
    rules, bridge, address, up, forward = made.steps
    assert isinstance(rules, SetRules) and 'ip saddr 10.44.0.0/24 oifname != "br-new"' in rules.text
    assert isinstance(bridge, CreateBridge) and bridge.alias.startswith("vnet:net=new kind=nat")
    assert address == AddAddress("br-new", "10.44.0.1/24")
    assert up == SetLink("br-new", "up", "up", "down")
    assert forward == SetSysctl("net.ipv4.ip_forward", "1", "0")
    assert not made.guarded


def test_the_same_plan_each_time() -> None:
    request = CreateNetwork("new", ipv6=True)
    assert planned(request) == planned(request)


def test_an_internal_network_forwards_nothing() -> None:
    made = planned(CreateNetwork("in", "internal"), topology(host(), sysctls={}))
    assert not any(isinstance(step, SetSysctl) for step in made.steps)


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (CreateNetwork("shop"), "vnet-tui already has a network shop"),
        (CreateNetwork("a/b"), '"/"'),
        (CreateNetwork("new", "bogus"), "unknown kind"),
        (CreateNetwork("new", subnets=("10.9.0.0/25",)), "overlaps with network shop"),
        (CreateNetwork("new", subnets=("192.0.2.0/25",)), "eth0's address 192.0.2.2/24"),
        (CreateNetwork("new", subnets=("10.44.0.0/24", "10.45.0.0/24")), "one subnet of each address family"),
        (CreateNetwork("new", bridge="eth0"), "there is already a link eth0"),
        (CreateNetwork("new", gateways=("10.1.1.1",), subnets=("10.44.0.0/24",)), "not in 10.44.0.0/24"),
        (CreateNetwork("new", mtu=10), "68 to 65535"),
        (CreateNetwork("new", nat66=True), "NAT66"),
        (CreateNetwork("new", uplink="eth0"), "only a NIC-bridged"),
        (CreateNetwork("new", "nic-bridged"), "needs an uplink"),
        (CreateNetwork("new", "nic-bridged", uplink="lo"), "can't be a bridge port"),
        (CreateNetwork("new", "nic-bridged", uplink="eth9"), 'no link "eth9"'),
        (CreateNetwork("new", "nic-bridged", uplink="v-web"), "a port of another link"),
        (CreateNetwork("new", "nic-bridged", uplink="eth0", mtu=9000), "above that of eth0"),
        (CreateNetwork("new", engine="docker"), "doesn't answer"),
        (CreateNetwork("new", engine="lxc"), "unknown engine"),
        (RemoveNetwork("none"), 'network "none" doesn\'t exist'),
        (Attach("absent", "shop"), 'no container "absent"'),
        (Attach("web", "shop"), "already attached to shop"),
        (Attach("bare", "shop", ("10.9.0.2",)), "in use"),
        (Attach("bare", "shop", ("10.9.1.2",)), "not in"),
        (Attach("bare", "shop", link="lo"), "already has a link lo"),
        (Attach("bare", "shop", link="x" * 16), "16 bytes"),
        (Detach("bare", "shop"), "hasn't attached bare"),
        (CreateContainer("web"), "already a namespace web"),
        (CreateContainer("new", "bridged"), "needs a network"),
        (CreateContainer("new", "joined"), "a joined container needs"),
        (CreateContainer("new", "odd"), "unknown model"),
        (RemoveContainer("none"), 'no named namespace "none"'),
        (Publish("web", "99999"), "out of range"),
        (Publish("web", "80-90", "80"), "different sizes"),
        (Publish("web", "80", l4_proto="icmp"), "unknown protocol"),
        (Publish("web", "80", host_ip="203.0.113.1"), "isn't an address of this host"),
        (Publish("web", "80", host_ip="::1"), "::1"),
        (Publish("bare", "80"), "has no address"),
        (Unpublish("80"), "vnet-tui doesn't publish tcp/80"),
        (Join("shop", "shop"), "the same network"),
        (Join("shop", "none"), 'network "none" doesn\'t exist'),
    ],
)  # fmt: skip
def test_refusals(request_: Request, reason: str) -> None:
    assert reason in refused(request_)


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (Attach("web", "shop"), "can't attach web to shop: web is already attached to shop"),
        (Attach("\x1b[1m", "shop"), 'can\'t attach \\x1b[1m to shop: there is no container "\\x1b[1m". '
         "Try: vnet-tui show containers"),
        (Attach("", "shop"), 'can\'t attach "" to shop: no container is given. Try: vnet-tui show '
         "containers"),
        (CreateNetwork(""), 'can\'t create the network "": the network\'s name is empty'),
        (ChangeLink(LinkKey(HOST, 999)), "can't change the link: it no longer exists"),
        (Delete(link_ref(LinkKey(HOST, 999))), "can't delete the link: it no longer exists"),
        (Delete(network_ref("gone")), "can't delete the network: it no longer exists"),
        (Delete(container_ref("docker", "app")), "can't delete the container app: it belongs to docker. "
         "Try: docker rm app"),
        (Delete(namespace_ref(HOST)), "can't delete the namespace host: only named namespaces can be "
         "deleted"),
        (Delete(nat_ref(HOST, "x")), "can't delete the NAT entry: vnet-tui only removes ports that it "
         "published itself"),
        (Delete(Ref("route", (1,))), "can't delete the route: vnet-tui doesn't delete objects of the "
         "kind route"),
        (Join("shop", "shop"), "can't join shop and shop: they are the same network"),
    ],
)  # fmt: skip
def test_a_refusal_says_what_is_impossible(request_: Request, sentence: str) -> None:
    made = plan(request_, topology(host()))
    assert isinstance(made, Refused) and made.reasons == (sentence,)


def test_every_request_has_a_phrase() -> None:
    assert set(PHRASES) == set(get_args(Request))
    made = plan_all((RemoveNetwork("no"), Detach("bare", "shop")), topology(host()))
    assert isinstance(made, Refused)
    assert [one.partition(": ")[0] for one in made.reasons] == [
        "can't remove the network no",
        "can't detach bare from shop",
    ]
    long = describe(CreateNetwork("x" * 200), topology(host()))
    assert long == f"create the network {'x' * 59}…"


def test_attach() -> None:
    made = planned(Attach("bare", "shop"))
    inside = NetnsTarget("bare")
    tag = "vnet:of=netns:bare net=shop link=eth0 address=10.9.0.3/24"
    assert made.steps == (
        CreateVeth("v-bare", "eth0", peer_place=inside, mtu=1500, alias=tag),
        SetLink("v-bare", "master", "br-shop", ""),
        SetLink("v-bare", "up", "up", "down"),
        AddAddress("eth0", "10.9.0.3/24", inside),
        SetLink("eth0", "up", "up", "down", inside),
        AddRoute("default", "eth0", "10.9.0.1", inside, protocol="static"),
    )


def test_attach_a_process_of_an_engine() -> None:
    made = host()
    made.namespace(90)
    made.container("docker", "api", 90, pid=4711)
    veth = next(
        step for step in planned(Attach("api", "shop"), topology(made)).steps if isinstance(step, CreateVeth)
    )
    assert veth.peer_place == NetnsTarget(pid=4711, inode=90)


def test_an_ambiguous_container_name() -> None:
    made = host()
    made.namespace(90)
    made.container("docker", "bare", 90)
    assert "netns:bare, docker:bare" in refused(Attach("bare", "shop"), topology(made))
    assert planned(Attach("docker:bare", "shop"), topology(made))


def test_reserved_addresses_are_not_assigned() -> None:
    made = plan(Attach("bare", "shop"), topology(host()), reserved=["10.9.0.3"])
    assert isinstance(made, Plan)
    assert AddAddress("eth0", "10.9.0.4/24", NetnsTarget("bare")) in made.steps


def test_many_attachments_in_one_plan() -> None:
    makes = [CreateContainer(f"c{n}", "bridged", "shop") for n in range(252)]
    made = plan_all(makes, topology(host()))
    assert isinstance(made, Plan)
    given = [step.address for step in made.steps if isinstance(step, AddAddress)]
    assert len(set(given)) == 252 and "10.9.0.2/24" not in given
    full = plan_all([*makes, CreateContainer("last", "bridged", "shop")], topology(host()))
    assert isinstance(full, Refused) and "shop is full" in full.reasons[0]


def test_detach_reverses_attach() -> None:
    made = planned(Detach("web", "shop"))
    delete = made.steps[-1]
    assert isinstance(delete, DeleteLink) and isinstance(delete.again, CreateVeth)
    assert delete.again.alias == WEB_TAG and delete.again.mac and delete.again.peer_mac
    undo = undo_of(made.steps)
    assert undo[0] == delete.again
    assert AddAddress("eth0", "10.9.0.2/24", NetnsTarget("web")) in undo


def test_removing_a_network_detaches_and_unpublishes() -> None:
    made = planned(RemoveNetwork("shop"), topology(host(), (RULE,)))
    assert made.side_effects == ("web is detached from shop", "its port tcp/8080 is no longer published")
    deleted = [step.name for step in made.steps if isinstance(step, DeleteLink)]
    assert deleted == ["v-web", "br-shop"]
    rules = [step for step in made.steps if isinstance(step, SetRules)]
    assert not rules or rules[0].text == "table inet vnet\ndelete table inet vnet\n"


def test_publish() -> None:
    made = planned(Publish("web", "8080", "80"))
    rules = next(step for step in made.steps if isinstance(step, SetRules))
    assert f'tcp dport 8080 counter dnat ip to 10.9.0.2:80 comment "{PUBLISHED}"' in rules.text
    assert SetSysctl("net.ipv4.conf.br-shop.route_localnet", "1", "0") in made.steps


def test_a_port_is_published_once() -> None:
    now = topology(host(), (RULE,))
    assert "tcp/8080 is already published, to 10.9.0.2" in refused(Publish("web", "8000-8100"), now)
    assert planned(Publish("web", "8080", l4_proto="udp"), now)
    listening = topology(host(), listening=(Listener("tcp", "0.0.0.0", 22),))
    assert "listens on tcp port 22" in refused(Publish("web", "22"), listening)


def test_a_port_that_a_container_has_on_one_family_is_free_on_the_other() -> None:
    made = host()
    six = PublishedPort("tcp", "::", 8091, 80)
    four = PublishedPort("tcp", "0.0.0.0", 8092, 80)
    made.container("docker", "api", None, ports=(six, four))
    assert planned(Publish("web", "8091", "80"), topology(made))
    assert "tcp/8092 is already published, by api" in refused(Publish("web", "8092", "80"), topology(made))


def test_a_refusal_names_the_container_not_its_id() -> None:
    now = topology(host())
    uid = next(uid for uid, one in now.containers.items() if one.name == "web")
    assert uid != "web"
    assert (
        describe(Publish(uid, "80"), now) == describe(Publish("web", "80"), now) == "publish port 80 of web"
    )
    made = host()
    made.container("docker", "app", BARE, id="ab" * 32)
    assert describe(Publish(f"docker:{'ab' * 32}", "80"), topology(made)) == "publish port 80 of app"


def redirecting_host(**fields: Any) -> Topology:
    """A host where another program's rule redirects tcp port 8080 to 10.8.0.3."""
    made = host()
    usual = {"verdict": "dnat", "l4_proto": "tcp", "dport": "8080", "to_address": "10.8.0.3", "to_port": "80"}
    usual |= {"backend": "nft", "table": "hostnat"}
    made.rule("prerouting", "", **(usual | fields))
    now = topology(made)
    firewall = now.snapshot.firewalls[HOST]
    hooked = Chain("nft", "ip", "hostnat", "prerouting", "prerouting", "nat", -100, "accept")
    whole = replace(firewall, chains=(*firewall.chains, hooked))
    return Topology(replace(now.snapshot, firewalls={HOST: whole}))


def test_a_port_that_another_rule_redirects_is_refused() -> None:
    reason = refused(Publish("web", "8080", "80"), redirecting_host())
    assert "tcp port 8080 of the host is in use: a rule in table ip hostnat (not vnet-tui's)" in reason
    assert "redirects it to 10.8.0.3:80. Try: another port (8081 is free)" in reason
    assert "port 8080 " in refused(Publish("web", "8000-8100"), redirecting_host())
    assert "port 8070-8080 " in refused(Publish("web", "8000-8080"), redirecting_host(dport="8070-8090"))
    assert "to port 3128 of the host" in refused(
        Publish("web", "8080"), redirecting_host(verdict="redirect", to_address="", to_port="3128")
    )
    assert "8080" in refused(Publish("web", "8080", host_ip="192.0.2.2"), redirecting_host(dst="192.0.2.2"))


@pytest.mark.parametrize(
    ("request_", "rule"),
    [
        (Publish("web", "8081"), {}),
        (Publish("web", "8080", l4_proto="udp"), {}),
        (Publish("web", "8080"), {"family": "ip6", "to_address": "fd08::3"}),
        (Publish("web", "8080", host_ip="192.0.2.2"), {"dst": "10.9.0.1"}),
        (Publish("web", "8080"), {"dst": "10.43.0.9"}),
    ],
)
def test_redirects_of_other_packets_do_not_conflict(request_: Publish, rule: dict[str, Any]) -> None:
    assert not any("may not reach" in one for one in planned(request_, redirecting_host(**rule)).warnings)


@pytest.mark.parametrize("rule", [{"iif": "br-x"}, {"src": "10.0.0.0/8"}, {"dport": "", "l4_proto": ""}])
def test_a_redirect_of_some_packets_is_warned_of(rule: dict[str, str]) -> None:
    warned = planned(Publish("web", "8080"), redirecting_host(**rule)).warnings
    assert any("hostnat" in one and "may not reach tcp/8080" in one for one in warned)


def test_a_free_port_is_proposed() -> None:
    assert free_port(topology(host()), "tcp") == "8080"
    assert free_port(topology(host(), (RULE,)), "tcp") == "8081"
    assert free_port(redirecting_host(dport="8080-8085"), "tcp") == "8086"
    assert free_port(redirecting_host(), "udp") == "8080"


def test_unpublish() -> None:
    made = planned(Unpublish("8080"), topology(host(), (RULE,)))
    rules = next(step for step in made.steps if isinstance(step, SetRules))
    assert "8080" not in rules.text


def test_a_dropping_forward_chain_is_warned_of() -> None:
    made = host()
    drop = tuple(replace(one, policy="drop") if one.name == "FORWARD" else one for one in CHAINS)
    now = Topology(made.snapshot(firewalls={HOST: Firewall(HOST, drop)}))
    warned = planned(CreateNetwork("new"), now).warnings
    assert any("FORWARD" in sentence and "br-new" in sentence for sentence in warned)


def test_a_nic_bridged_network_is_guarded_and_moves_the_address() -> None:
    made = planned(CreateNetwork("wire", "nic-bridged", uplink="eth0"))
    assert made.guarded and made.warnings
    words = [step.command() for step in made.steps if not isinstance(step, SetRules)]
    given = words.index("ip addr add 192.0.2.2/24 dev br-wire")
    taken = words.index("ip addr del 192.0.2.2/24 dev eth0")
    assert given < words.index("ip route add default via 192.0.2.1 dev br-wire") < taken
    mac = next(step.mac for step in made.steps if isinstance(step, CreateBridge))
    assert mac == next(one.mac for one in topology(host()).snapshot.links() if one.name == "eth0")


def test_the_link_of_the_default_route_is_guarded() -> None:
    now = topology(host())
    keys = {one.name: one.key for one in now.snapshot.nets[HOST].links.values()}
    assert planned(ChangeLink(keys["eth0"], mtu=1400), now).guarded
    assert not planned(ChangeLink(keys["v-web"], up=False), now).guarded
    session = plan(ChangeLink(keys["br-shop"], mtu=1400), now, session="10.9.0.2")
    assert isinstance(session, Plan) and session.guarded


def test_changes_of_links_bridges_and_ports() -> None:
    now = topology(host())
    keys = {one.name: one.key for one in now.snapshot.nets[HOST].links.values()}
    assert "already has these settings" in refused(ChangeLink(keys["eth0"], mtu=1500), now)
    assert "no setting is given" in refused(ChangeLink(keys["eth0"]), now)
    assert "a tag that vnet-tui needs" in refused(ChangeLink(keys["br-shop"], alias="x"), now)
    assert "reserved for vnet-tui" in refused(ChangeLink(keys["eth0"], alias="vnet:net=x"), now)
    assert "unknown setting" in refused(ChangeBridge(keys["br-shop"], "colour", 1), now)
    assert "200 to 3000" in refused(ChangeBridge(keys["br-shop"], "forward_delay", 1), now)
    assert "isn't a bridge" in refused(ChangeBridge(keys["eth0"], "stp_state", 1), now)
    assert "isn't a bridge port" in refused(ChangePort(keys["eth0"], "isolated", True), now)
    assert "unknown flag" in refused(ChangePort(keys["v-web"], "colour", True), now)
    assert planned(ChangePort(keys["v-web"], "isolated", True), now)
    assert 'iifname "br-new"' in next(
        step.text for step in planned(ChangeLink(keys["br-shop"], name="br-new"), now).steps
        if isinstance(step, SetRules)
    )  # fmt: skip


def test_a_link_that_undo_could_not_restore_is_not_deleted() -> None:
    now = topology(host())
    eth0 = next(one for one in now.snapshot.links() if one.name == "eth0")
    assert "an undo couldn't restore it" in refused(Delete(link_ref(eth0.key)), now)


def docker_host() -> Topology:
    made = host()
    made.namespace(90)
    made.container("docker", "api", 90, endpoints=(Endpoint("front", "172.20.0.2/16"),))
    made.networks.append(
        Network("docker", "f" * 64, "front", ns=HOST, bridge="br-" + "f" * 12, subnets=("172.20.0.0/16",),
                gateways=("172.20.0.1",))
    )  # fmt: skip
    made.networks.append(Network("docker", "b" * 64, "back", ns=HOST, subnets=("172.21.0.0/16",)))
    return topology(made)


def test_docker_changes_docker_networks() -> None:
    now = docker_host()
    asked = CreateNetwork("new", subnets=("172.30.0.0/16",), engine="docker")
    assert planned(asked, now).steps == (DockerCreateNetwork("new", ("172.30.0.0/16",), ("",)),)
    assert planned(Attach("api", "back"), now).steps == (DockerConnect("back", "api"),)
    gone = planned(RemoveNetwork("front"), now)
    assert [type(step) for step in gone.steps] == [DockerDisconnect, DockerRemoveNetwork]
    assert gone.side_effects == ("api is detached from front",)
    assert "isn't a Docker container" in refused(Attach("web", "front"), now)
    assert "NAT and internal" in refused(replace(asked, kind="routed"), now)
    assert "overlaps with docker's network front" in refused(replace(asked, subnets=("172.20.0.0/24",)), now)


def test_planning_without_a_host_namespace() -> None:
    empty = Topology(replace(HostBuilder().snapshot(), host=Host()))
    assert isinstance(plan(CreateNetwork("x"), empty), Plan)


def test_a_bridge_name_in_use_gets_a_number() -> None:
    made = host()
    made.bridge("br-store", ["10.77.0.1/24"])
    made.bridge("br-fifteen-byte", ["10.78.0.1/24"])
    for name, bridge in (("store", "br-store2"), ("fifteen-byte", "br-fifteen-by2")):
        steps = planned(CreateNetwork(name), topology(made)).steps
        assert [step.name for step in steps if isinstance(step, CreateBridge)] == [bridge]


def test_names_of_other_networks_are_refused() -> None:
    made = host()
    made.bridge("br-store", ["10.77.0.1/24"])
    now = topology(made)
    refused = plan(CreateNetwork("br-store"), now)
    assert isinstance(refused, Refused) and "vnet-tui didn't make" in refused.reasons[0]
    assert any("br-store2" in one for one in planned(CreateNetwork("store"), now).warnings)
    unknown = plan(RemoveNetwork("shopp"), now)
    assert isinstance(unknown, Refused) and "shop" in unknown.reasons[0].partition("networks of vnet-tui")[2]


def test_deleting_a_foreign_bridge_lists_what_depends_on_it() -> None:
    made = host()
    space = made.namespace(99, names=("app",))
    made.container("netns", "app", space, id="app", namespaces={"net": space})
    made.wire(space, made.bridge("br-store", ["10.77.0.1/24"]), "v-app", ("10.77.0.2/24",))
    made.rule("PREROUTING", "-j DNAT", verdict="dnat", l4_proto="tcp", dport="8080", to_address="10.77.0.2")
    now = topology(made)
    bridge = next(one for one in now.snapshot.links() if one.name == "br-store")
    deleting = planned(Delete(link_ref(bridge.key)), now)
    assert "disconnected from br-store: app" in deleting.side_effects
    assert any(
        one.startswith("published ports that stop working") and "8080" in one for one in deleting.side_effects
    )
    assert any("vnet-tui didn't create br-store" in one for one in deleting.warnings)


def test_another_table_drops_in_the_singular() -> None:
    chain = Chain("nft", "inet", "hostfw", "forward", hook="forward", policy="drop")
    made = host()
    snapshot = made.snapshot()
    firewall = replace(snapshot.firewalls[HOST], chains=(chain,))
    now = Topology(replace(snapshot, firewalls={HOST: firewall}))
    warned = planned(CreateNetwork("new"), now).warnings
    assert any("hostfw drops new connections from br-new and replies to br-new" in each for each in warned)
