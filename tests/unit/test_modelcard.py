"""Model cards: closed, bridged, joined, open, and dead joins."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.model import (
    Container,
    Engine,
    Host,
    Link,
    LinkKey,
    ModelCard,
    Namespace,
    NamespaceUse,
    NetState,
    Snapshot,
)
from core.modelcard import cards

HOST, APP, WEB, DB = 100, 200, 300, 400
HOSTS = {"user": 1, "mnt": 2, "pid": 3, "uts": 4, "net": HOST, "ipc": 5}
LO = Link(0, 1, "lo", "loopback")


def docker(name: str, net: int | None, mode: str = "bridge", **more: object) -> Container:
    """Return a Docker container in that network namespace; None for an exited one."""
    own = {kind: (net or 0) * 10 + number for number, kind in enumerate(("mnt", "pid", "uts", "ipc"))}
    spaces = {"user": HOSTS["user"], **own, "net": net} if net else {}
    made = Container("docker", f"{name}-id", name, network_mode=mode, namespaces=spaces)
    return replace(made, **({"state": "exited"} if net is None else {}) | more)


def named(name: str, net: int, **more: object) -> Container:
    """Return a named namespace."""
    return replace(Container("netns", name, name, namespaces={"net": net}), **more)


def net(ns: int, *links: Link) -> NetState:
    """Return a namespace with loopback and these links."""
    mine = [replace(link, ns=ns) for link in (LO, *links)]
    return NetState(ns, {link.ifindex: link for link in mine}, nsids={7: HOST})


HOST_NET = net(
    HOST,
    Link(HOST, 2, "eth0", "physical"),
    Link(HOST, 3, "br0", "bridge"),
    Link(HOST, 4, "v-app", "veth", master=3),
    Link(HOST, 5, "v-web", "veth"),
)
VETH = Link(0, 2, "eth0", "veth")
PEERS = {LinkKey(APP, 2): LinkKey(HOST, 4), LinkKey(WEB, 2): LinkKey(HOST, 5)}
NETS = (HOST_NET, net(APP, VETH), net(WEB, VETH), net(DB))


def snapshot(*containers: Container, nets: tuple[NetState, ...] = NETS) -> Snapshot:
    return Snapshot(
        host=Host(netns=HOST, namespaces=HOSTS),
        namespaces={space: Namespace(space) for space in (HOST, APP, WEB, DB)},
        nets={each.ns: each for each in nets},
        engines={"any": Engine("any", "ok", containers=containers)},
    )


def cards_by_name(*containers: Container, nets: tuple[NetState, ...] = NETS) -> dict[str, ModelCard]:
    """Return the cards by container name."""
    found = cards(snapshot(*containers, nets=nets), PEERS)
    assert found.keys() == {container.uid for container in containers}
    return {container.name: found[container.uid] for container in containers}


def test_open() -> None:
    card = cards_by_name(docker("app", HOST, "host"), docker("other", HOST, "host"))["app"]
    assert (card.model, card.joined_with, card.joined_dead) == ("open", (), False)
    assert "host" in card.why


def test_closed() -> None:
    card = cards_by_name(docker("db", DB, "none"))["db"]
    assert (card.model, card.joined_with) == ("closed", ())
    assert "loopback" in card.why


def test_the_kernels_fallback_tunnels_do_not_make_it_open() -> None:
    tunnels = [Link(0, 10 + n, name, "ipip") for n, name in enumerate(("tunl0", "sit0", "ip6tnl0", "gre0"))]
    assert cards_by_name(docker("db", DB), nets=(net(DB, *tunnels),))["db"].model == "closed"
    assert (
        cards_by_name(docker("db", DB), nets=(net(DB, Link(0, 9, "tun0", "tun")),))["db"].model == "bridged"
    )


def test_bridged_names_the_bridge() -> None:
    found = cards_by_name(docker("app", APP), docker("web", WEB))
    assert (found["app"].model, found["web"].model) == ("bridged", "routed")
    assert found["app"].why == "eth0 is a veth to port v-app of bridge br0 on the host."
    assert found["web"].why.startswith("eth0 is a veth to v-web on the host, which isn't a bridge port")


def test_bridged_without_a_veth() -> None:
    macvlan = Link(0, 2, "eth0", "macvlan", lower=2, lower_nsid=7)
    card = cards_by_name(docker("db", DB), nets=(HOST_NET, net(DB, macvlan)))["db"]
    assert (card.model, card.why) == ("bridged", "eth0 is a macvlan link with parent eth0 on the host.")
    lonely = cards_by_name(docker("db", DB), nets=(HOST_NET, net(DB, replace(macvlan, lower_nsid=99))))["db"]
    assert (lonely.model, lonely.why) == ("bridged", "eth0 is a macvlan link.")


def test_unread_links_are_unknown() -> None:
    card = cards_by_name(docker("app", APP), nets=())["app"]
    assert card.model == "unknown"
    assert "couldn't be read" in card.why


@pytest.mark.parametrize("mode", ["container:app", "container:app-id"])
def test_joined(mode: str) -> None:
    found = cards_by_name(docker("app", APP), docker("side", APP, mode), docker("web", WEB))
    assert (found["side"].model, found["side"].joined_with) == ("joined", ("docker:app-id",))
    assert not found["side"].joined_dead
    assert "app" in found["side"].why
    assert (found["app"].model, found["app"].joined_with) == ("bridged", ("docker:side-id",))
    assert found["web"].joined_with == ()


def test_joined_across_runtimes() -> None:
    guest = Container("process", "1", "guest", network_mode="container:app", namespaces={"net": APP})
    found = cards_by_name(docker("app", APP), guest)
    assert (found["guest"].model, found["guest"].joined_dead) == ("joined", False)
    assert found["app"].model == "bridged"


@pytest.mark.parametrize(
    ("target", "word"),
    [
        (docker("app", WEB), "restarted with a new one"),
        (docker("app", None), "isn't running (exited)"),
        (docker("else", WEB), "no longer exists"),
    ],
)
def test_dead_joins(target: Container, word: str) -> None:
    card = cards_by_name(target, docker("side", APP, "container:app"))["side"]
    assert (card.model, card.joined_dead) == ("joined", True)
    assert word in card.why and "has no network" in card.why


@pytest.mark.parametrize(
    ("joined", "shown"), [("ab" * 32, "abab" * 3), ("a-name-of-some-length", "a-name-of-some-length")]
)
def test_an_id_is_shortened(joined: str, shown: str) -> None:
    card = cards_by_name(docker("side", APP, f"container:{joined}"))["side"]
    assert f"the container {shown}, which" in card.why


def test_a_running_container_precedes_a_stopped_one_with_its_name() -> None:
    old = replace(docker("app", None), id="old")
    assert not cards_by_name(old, docker("app", APP), docker("side", APP, "container:app"))[
        "side"
    ].joined_dead


def test_a_stopped_container_has_the_model_of_its_configuration() -> None:
    found = cards_by_name(
        docker("app", APP),
        docker("side", None, "container:app"),
        docker("orphan", None, "container:missing"),
        docker("br", None),
    )
    for name, word in {"side": "app", "orphan": "missing, which no longer exists", "br": '"bridge"'}.items():
        card = found[name]
        assert (card.model, card.joined_dead) == ("unknown", False)
        assert "isn't running (exited)" in card.why and word in card.why
        assert all(use == NamespaceUse(use.kind, 0, False) for use in card.namespaces)


def test_a_container_whose_namespaces_are_unreadable() -> None:
    card = cards_by_name(docker("app", None, state="running"))["app"]
    assert card.model == "unknown"
    assert "can't be read" in card.why


def test_two_names_for_one_namespace_are_joined() -> None:
    found = cards_by_name(named("a", APP), named("b", APP))
    assert [(found[name].model, found[name].joined_with) for name in "ab"] == [
        ("joined", ("netns:b",)),
        ("joined", ("netns:a",)),
    ]
    assert "b" in found["a"].why


def test_a_process_without_a_setting_does_not_make_the_owner_joined() -> None:
    guest = Container("process", "1", "guest", namespaces={"net": APP})
    for owner in (docker("app", APP), named("app", APP)):
        found = cards_by_name(owner, guest)
        assert (found["app"].model, found["guest"].model) == ("bridged", "joined")
        assert found["app"].joined_with == ("process:1",)


def test_joined_by_one_of_two_names() -> None:
    found = cards_by_name(named("a", APP), named("b", APP, network_mode="container:a"))
    assert (found["a"].model, found["b"].model) == ("bridged", "joined")


def test_the_matrix() -> None:
    app = docker("app", APP)
    side = docker("side", APP, "container:app")
    side = replace(side, namespaces={**side.namespaces, "pid": app.namespaces["pid"], "mnt": 3001})
    found = cards_by_name(app, side, docker("open", HOST, "host"))
    uses = {use.kind: use for use in found["side"].namespaces}
    assert list(uses) == ["user", "mnt", "pid", "uts", "net", "ipc"]
    assert uses["user"] == NamespaceUse("user", 1, True)
    assert uses["mnt"] == NamespaceUse("mnt", 3001, False)
    assert uses["pid"] == NamespaceUse("pid", app.namespaces["pid"], False, ("docker:app-id",))
    assert uses["net"] == NamespaceUse("net", APP, False, ("docker:app-id",))
    net_of_open = next(use for use in found["open"].namespaces if use.kind == "net")
    assert net_of_open == NamespaceUse("net", HOST, True)


def test_a_named_namespace_alone_has_only_net() -> None:
    uses = {use.kind: use for use in cards_by_name(named("a", APP))["a"].namespaces}
    assert uses["net"] == NamespaceUse("net", APP, False)
    assert uses["pid"] == NamespaceUse("pid", 0, False)


def test_names_are_verbatim() -> None:
    weird = "[bold]\x1b[31m\u202e" + "x" * 255
    found = cards_by_name(named("a", APP), named(weird, APP))
    assert weird in found["a"].why


def test_peers_are_computed_if_none_are_given() -> None:
    ends = (
        net(APP, replace(VETH, lower=4, lower_nsid=7)),
        replace(
            HOST_NET,
            links={**HOST_NET.links, 4: replace(HOST_NET.links[4], lower=2, lower_nsid=1)},
            nsids={1: APP},
        ),
    )
    card = cards(snapshot(docker("app", APP), nets=ends))["docker:app-id"]
    assert card.why == "eth0 is a veth to port v-app of bridge br0 on the host."
