"""Find what can be accelerated from a selection or a name, or why it can't."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from bpf.layout import VERDICTS
from core.metrics.samples import FastPathNumbers
from core.model import (
    Container,
    Endpoint,
    Engine,
    FastPath,
    FastPort,
    Host,
    Link,
    LinkKey,
    NetState,
    Network,
    Ref,
    Snapshot,
    container_ref,
    flow_ref,
    link_ref,
    namespace_ref,
    network_ref,
)
from core.topology import Topology
from tests.support.flow_samples import flow, table
from tui.cli import fastpath_agent
from tui.cli.fastpath import describe_capture
from tui.cli.fastpath_agent import FastPathMetrics
from tui.cli.fastpath_session import state_sentence
from tui.views.fast_targets import EVERYTHING, added, choice_named, choices_of, is_covered, removed

HOST = 1
ON = FastPath("on", targets=("shop",))


def link(ifindex: int, name: str, kind: str, **more: object) -> Link:
    return Link(HOST, ifindex, name, kind, **more)  # type: ignore[arg-type]


def host() -> Topology:
    """Return a host with docker0, a network `shop`, and networks without a bridge."""
    links = {
        2: link(2, "docker0", "bridge"),
        3: link(3, "br-0a1b2c", "bridge"),
        4: link(4, "veth1", "veth", master=3),
        5: link(5, "eth0", "physical"),
    }
    networks = (
        Network("docker", "d0", "bridge", bridge="docker0"),
        Network("docker", "0a1b2c", "shop", bridge="br-0a1b2c"),
        Network("docker", "m0", "lan", driver="macvlan"),
        Network("docker", "h0", "host", driver="host"),
    )
    web = Container("docker", "c1", "web", network_mode="shop")
    engine = Engine("docker", "ok", networks=networks, containers=(web,))
    return Topology(
        Snapshot(host=Host(netns=HOST), nets={HOST: NetState(HOST, links)}, engines={"docker": engine})
    )


def labels(topology: Topology, ref: Ref) -> list[str]:
    return [one.target or one.nothing for one in choices_of(topology, ref)]


def test_a_bridge_its_port_and_its_network_select_the_same() -> None:
    topology = host()
    for ref in (link_ref(LinkKey(HOST, 3)), link_ref(LinkKey(HOST, 4)), network_ref("0a1b2c")):
        (choice,) = choices_of(topology, ref)
        assert choice.target == "shop" and choice.label == "shop (bridge br-0a1b2c)"
        assert {"shop", "0a1b2c", "br-0a1b2c"} <= choice.names
    assert choices_of(topology, namespace_ref(HOST)) == (EVERYTHING,)
    assert choices_of(topology, link_ref(LinkKey(HOST, 5))) == () == choices_of(topology, None)


def test_networks_without_a_bridge_are_refused() -> None:
    topology = host()
    assert labels(topology, network_ref("m0"))[0].startswith("macvlan")
    assert "nothing is forwarded" in labels(topology, network_ref("h0"))[0]
    assert labels(topology, container_ref("docker", "gone")) == []


def test_a_container_without_a_network_is_refused_with_a_reason() -> None:
    modes = {"joined": "container:c1", "alone": "none", "near": "host", "plain": ""}
    more = tuple(Container("docker", name, name, network_mode=mode) for name, mode in modes.items())
    snapshot = Snapshot(host=Host(netns=HOST), engines={"docker": Engine("docker", "ok", containers=more)})
    topology = Topology(snapshot)
    expected = {
        "joined": "another container's",
        "alone": "no network",
        "near": "uses the host's network",
        "plain": "known",
    }
    for name, words in expected.items():
        assert words in labels(topology, container_ref("docker", name))[0]


def test_names_and_beginnings_of_ids() -> None:
    topology = host()
    for word in ("shop", "br-0a1b2c", "0a1b2c", "0a1b"):
        found = choice_named(topology, word)
        assert found is not None and found.target == "shop", word
    assert choice_named(topology, "all") is EVERYTHING and choice_named(topology, "nonsense") is None
    docker0 = choice_named(topology, "docker0")
    assert docker0 is not None and docker0.bridge == "docker0"


def test_targets_are_added_and_removed() -> None:
    topology = host()
    shop, docker0 = choice_named(topology, "shop"), choice_named(topology, "docker0")
    assert shop and docker0
    assert is_covered(shop, ON) and not is_covered(docker0, ON)
    assert not is_covered(shop, FastPath(targets=("shop",))), "it is off"
    assert added((shop, docker0), ON) == ("shop", docker0.target)
    assert added((EVERYTHING,), ON) == ("all",)
    by_id = FastPath("on", targets=("0a1b2c", "other"))
    assert removed((shop,), by_id, topology) == ("other",)
    everything = FastPath("on", targets=("all",))
    assert removed((shop,), everything, topology) == (docker0.target,)
    assert removed((EVERYTHING,), ON, topology) == ()


def test_the_page_lists_every_verdict_with_its_text() -> None:
    page = (Path(__file__).parents[2] / "docs" / "fast-path.md").read_text()
    listed = re.findall(r"^\| `([A-Z0-9_]+)` \| (.+) \|$", page, re.MULTILINE)
    assert listed == [(verdict.name, verdict.words) for verdict in VERDICTS]


def test_releasing_an_address_that_was_not_captured_is_an_error() -> None:
    message = describe_capture("10.9.0.3", [], [])
    assert message.startswith("10.9.0.3 was not captured, nothing changed; no address is captured")
    assert describe_capture("10.9.0.3", ["10.9.0.3"], []).startswith("no address is captured")
    assert "10.9.0.4" in describe_capture("", ["10.9.0.4"], ["10.9.0.4"])


def test_counters_keep_the_numbers_of_removed_links(monkeypatch: object) -> None:
    numbers = FastPathMetrics()

    def poll(*ports: FastPort) -> FastPathNumbers:
        fastpath_agent.read_fast_path = lambda **_: FastPath("on", ports=ports)  # type: ignore[assignment]
        found = numbers()
        assert found is not None
        return found

    before = fastpath_agent.read_fast_path
    try:
        assert poll(FastPort("a", 1, "container", {"FAST": 10, "MTU": 1})).packets == 10
        assert poll(FastPort("b", 2, "container", {"FAST": 5})).packets == 15
        found = poll(FastPort("b", 2, "container", {"FAST": 3, "TTL": 1}))
        assert found.packets == 18 and found.left == {"mtu": 1, "ttl": 1}
        assert found.by_link == {"b": {"fast": 3, "ttl": 1}}
        fastpath_agent.read_fast_path = lambda **_: FastPath()  # type: ignore[assignment]
        assert numbers() is None
    finally:
        fastpath_agent.read_fast_path = before


def test_a_connection_selects_the_networks_of_its_containers() -> None:
    before = host().snapshot
    (engine,) = before.engines.values()
    places = (("web", "shop", "172.18.0.2/16"), ("db", "bridge", "172.17.0.2/16"))
    containers = tuple(
        Container("docker", name, name, network_mode=network, endpoints=(Endpoint(network, address),))
        for name, network, address in places
    )
    rows = [
        flow("172.18.0.2:5", "172.17.0.2:80"), flow("172.18.0.2:5", "1.1.1.1:443"),
        flow("9.9.9.9:5", "192.0.2.1:22"),
    ]  # fmt: skip
    engines = {"docker": replace(engine, containers=containers)}
    topology = Topology(replace(before, engines=engines, conntracks={HOST: table(HOST, *rows)}))
    targets = [
        [one.target for one in choices_of(topology, flow_ref(HOST, number))] for number in (1, 2, 3, 4)
    ]
    assert targets == [["shop", "bridge"], ["shop"], [], []]


def test_names_are_not_part_of_the_reason_of_a_pause() -> None:
    fast = FastPath("paused", ("bridge", "app"), reasons=("inet t c, rule 3: limit",))
    assert state_sentence(fast) == "Accelerated: bridge, app. Paused: inet t c, rule 3: limit."
    assert state_sentence(replace(fast, state="on", reasons=())) == "Accelerated: bridge, app."
