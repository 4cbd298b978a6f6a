"""Check limits of the storm guard, what it reports, and which ports form a loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from core.diagnose import findings
from core.diff import changes
from core.model import (
    GuardCounters,
    GuardDrops,
    Host,
    Link,
    LinkKey,
    NetState,
    Part,
    Route,
    Snapshot,
    StormGuard,
    StormLimits,
    link_ref,
)
from core.model.link import BridgePort, NextHop
from core.operations import AddFdb, CreateVeth, SetLink, SetStormGuard
from core.operations.values import from_record, to_record
from core.plan import Plan, Refused, plan
from core.plan.requests import Attach, BlockPorts, GuardStorms, RemoveNetwork
from core.probe.loop import Loop, _joined
from core.storms import CALM, GuardWatch
from core.topology import Topology
from core.watch.rates import StormGuards
from core.watch.store import SnapshotStore
from tests.support.host_builder import HOST, HostBuilder
from tui.cli.loop import _to_block
from tui.cli.parser import make_parser
from tui.cli.perform import bridge_named
from tui.command import CommandError
from tui.views import bridges

NS, PORT, BRIDGE = 1, 3, 2
LIMITS = StormLimits(500, 5000, 200)


def counters(dropped: int, last: float | None) -> GuardCounters:
    return GuardCounters(PORT, LIMITS, (0, 0, 0, 0), (dropped, 0, 0, 0), (last, None, None, None))


def snapshot(*drops: GuardDrops) -> Snapshot:
    links = {
        BRIDGE: Link(NS, BRIDGE, "br0", "bridge", admin_up=True, carrier=True),
        PORT: Link(NS, PORT, "eth1", "physical", admin_up=True, carrier=True, master=BRIDGE),
    }
    guard = StormGuard(NS, PORT, LIMITS, drops)
    return Snapshot(host=Host(netns=NS), nets={NS: NetState(NS, links=links)}, storm_guards=(guard,))


def test_limits_are_text_and_back() -> None:
    assert str(LIMITS) == "500/5000/200"
    assert StormLimits.parse("500/5000/200") == LIMITS


@pytest.mark.parametrize("text", ["", "500", "500/5000", "0/1/1", "a/b/c", "1/2/3/4", "-1/5/5"])
def test_other_text_is_no_limit(text: str) -> None:
    with pytest.raises(ValueError):
        StormLimits.parse(text)


def test_drops_begin_stay_steady_and_end() -> None:
    watch = GuardWatch()
    assert watch.feed(NS, [counters(0, None)], 0)[0].drops == ()
    (first,) = watch.feed(NS, [counters(1000, 0.1)], 1)
    assert first.drops == (GuardDrops("broadcast", 1000),)
    assert first.dropped[0] == 1000
    (steady,) = watch.feed(NS, [counters(2100, 0.1)], 2)
    assert steady.drops == first.drops
    (higher,) = watch.feed(NS, [counters(7100, 0.1)], 3)
    assert higher.drops == (GuardDrops("broadcast", 5000),)
    (pausing,) = watch.feed(NS, [counters(7100, CALM - 1)], 3 + CALM - 1)
    assert pausing.drops == higher.drops
    assert watch.feed(NS, [counters(7100, CALM + 1)], 3 + CALM + 1)[0].drops == ()


def test_drops_are_a_finding_with_port_and_class() -> None:
    (found,) = [one for one in findings(Topology(snapshot(GuardDrops("arp", 300)))) if one.kind == "storm"]
    assert found.sentence.startswith("The storm guard of eth1 drops arp frames, about 300 frames/s.")
    assert found.advice == "vnet-tui storm loop br0"
    assert not [one for one in findings(Topology(snapshot())) if one.kind == "storm"]


def test_details_of_a_bridge_show_its_guards() -> None:
    shown = bridges.detail(Topology(snapshot(GuardDrops("arp", 300))), link_ref(LinkKey(NS, BRIDGE)))
    (section,) = [one for one in shown.sections if one.title == "Storm guard"]
    (line,) = section.lines
    assert line[0] == "eth1"
    assert line[1].text == "broadcast 500/s, multicast 5,000/s; dropping arp, 300/s"


def test_begin_and_end_of_drops_are_events() -> None:
    calm, dropping = snapshot(), snapshot(GuardDrops("broadcast", 90))
    (began,) = [one.sentence for one in changes(calm, dropping, 0) if "storm guard" in one.sentence]
    assert began == "The storm guard of eth1 drops broadcast frames, about 90 frames/s"
    (ended,) = [one.sentence for one in changes(dropping, calm, 0) if "storm guard" in one.sentence]
    assert ended == "the storm guard of eth1 no longer drops broadcast frames"


def test_ports_that_reach_each_other_are_one_loop() -> None:
    assert _joined([]) == []
    assert _joined([(1, 2), (2, 1)]) == [Loop((1, 2))]
    assert _joined([(5, 6), (1, 2), (2, 3)]) == [Loop((1, 2, 3)), Loop((5, 6))]
    assert _joined([(4, 4)]) == [Loop((4,))]


def test_its_operation_prints_and_undoes_itself() -> None:
    on = SetStormGuard("v-web", str(LIMITS), "")
    assert on.command() == "vnet-tui storm guard v-web on --rate 500 --multicast 5000 --burst 200"
    (off,) = on.inverse()
    assert off.command() == "vnet-tui storm guard v-web off" and off.inverse() == (on,)
    assert from_record(to_record(on)) == on


@pytest.mark.parametrize("option", ["--rate", "--multicast", "--burst"])
@pytest.mark.parametrize("value", ["0", "-1", "1.5", "99999999999999"])
def test_options_are_positive_numbers_that_the_program_can_hold(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        make_parser().parse_args(["storm", "guard", "shop", "on", f"{option}={value}"])
    assert ended.value.code == 2
    assert f"argument {option}: can't use '{value}'" in capsys.readouterr().err


def test_a_loop_is_blocked_at_veths_rather_than_nics() -> None:
    ports = {
        number: Link(NS, number, f"p{number}", kind)
        for number, kind in ((1, "veth"), (2, "physical"), (3, "veth"))
    }
    assert _to_block(Loop((1, 2, 3)), ports) == (1, 3)
    assert _to_block(Loop((1, 3)), ports) == (3,)
    assert _to_block(Loop((2,)), ports) == (2,)


def lan() -> tuple[Topology, dict[str, LinkKey]]:
    """Return a host with the NIC-bridged network lan on eth0, and a veth of another tool."""
    host = HostBuilder()
    bridge = host.bridge("br-lan", ["192.0.2.2/24"], alias="vnet:net=lan kind=nic-bridged uplink=eth0")
    host.link(HOST, "eth0", "physical", master=bridge.ifindex, port=BridgePort("forwarding"))
    host.link(HOST, "other", "veth", master=bridge.ifindex, port=BridgePort("forwarding"))
    host.routes[HOST] = [Route(4, "default", nexthops=(NextHop("192.0.2.1", bridge.ifindex),))]
    links = host.links[HOST].values()
    return Topology(host.snapshot()), {link.name: link.key for link in links}


def test_the_nic_of_a_network_is_guarded_other_ports_are_named() -> None:
    topology, _ = lan()
    made = plan(GuardStorms("lan", str(LIMITS)), topology)
    assert isinstance(made, Plan)
    assert [step.name for step in made.steps if isinstance(step, SetStormGuard)] == ["eth0"]
    assert made.warnings == ("not guarded, as vnet-tui didn't attach them: other. Try: --all-ports",)
    whole = plan(GuardStorms("lan", str(LIMITS), all_ports=True), topology)
    assert isinstance(whole, Plan) and not whole.warnings
    assert {step.name for step in whole.steps if isinstance(step, SetStormGuard)} == {"eth0", "other"}


def test_blocking_a_port_that_the_host_needs_is_guarded() -> None:
    topology, keys = lan()
    made = plan(BlockPorts((keys["eth0"],)), topology)
    assert isinstance(made, Plan) and made.guarded
    assert [step for step in made.steps if isinstance(step, SetLink)] == [SetLink("eth0", "up", "down", "up")]


def test_a_new_container_is_known_before_its_port_is_guarded() -> None:
    """The program takes over what the bridge knows, when it is loaded."""
    host = HostBuilder()
    tag = f"vnet:net=shop kind=nat subnet=10.9.0.0/24 gateway=10.9.0.1 guard={LIMITS}"
    host.bridge("br-shop", ["10.9.0.1/24"], alias=tag)
    host.namespace(70, names=("web",))
    host.container("netns", "web", 70, id="web", pid=None)
    made = plan(Attach("web", "shop"), Topology(host.snapshot()))
    assert isinstance(made, Plan)
    (pair,) = [step for step in made.steps if isinstance(step, CreateVeth)]
    (known,) = [step for step in made.steps if isinstance(step, AddFdb)]
    (guard,) = [step for step in made.steps if isinstance(step, SetStormGuard)]
    assert known.mac == pair.peer_mac and known.flags == ("sticky",)
    assert guard == SetStormGuard("v-web", str(LIMITS), "")
    assert made.steps.index(known) < made.steps.index(guard)


def test_removing_a_network_stops_guarding_its_nic() -> None:
    topology, keys = lan()
    guards = (StormGuard(*keys["eth0"], LIMITS), StormGuard(*keys["other"], LIMITS))
    made = plan(RemoveNetwork("lan"), Topology(replace(topology.snapshot, storm_guards=guards)))
    assert isinstance(made, Plan), made
    ended = {step.name for step in made.steps if isinstance(step, SetStormGuard) and not step.limits}
    assert "eth0" in ended


def test_without_the_rights_to_read_counters_there_are_no_guards() -> None:
    def refuse() -> Sequence[GuardCounters]:
        raise PermissionError

    store = SnapshotStore(lambda update: None)
    store.put(Part.NAMESPACES, host=Host(netns=NS))
    StormGuards(store, lambda: [counters(5, 1.0)]).poll()
    assert [one.dropped[0] for one in store.snapshot.storm_guards] == [5]
    StormGuards(store, refuse).poll()
    assert store.snapshot.storm_guards == ()


@pytest.mark.parametrize("limits", ["0/5/5", "5/0/5", "5/5/0"])
def test_limits_of_zero_are_refused(limits: str) -> None:
    made = plan(GuardStorms("lan", limits), lan()[0])
    assert isinstance(made, Refused) and made.reasons[0].endswith("rates and burst must be 1 or more")


def test_of_several_networks_of_a_name_none_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    topology, keys = lan()
    found = [topology.snapshot.link(keys[name]) for name in ("br-lan", "other")]
    monkeypatch.setattr(Topology, "bridges_named", lambda self, text: found)
    with pytest.raises(CommandError, match=r'^can\'t tune "shop": several networks have that name\. Try: '):
        bridge_named("shop", topology, "tune")
    made = plan(GuardStorms("shop", str(LIMITS), all_ports=True), topology)
    assert isinstance(made, Refused) and "several networks have that name" in made.reasons[0]
