"""Change networks with the dashboard's forms, checked with ip and nft."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from core.apply import guard, journal, run
from core.collect.snapshot import read_snapshot
from core.operations import AddAddress, CreateBridge
from core.plan.requests import CreateNetwork
from core.plan.vxlan import subnet_by_name
from core.topology import Topology
from tests.support.host import ThrowawayHost
from tests.support.snapshots import small_host
from tests.support.state import state
from tests.support.waiting import eventually
from tests.ui.change_forms import (
    BRIDGE,
    NET,
    PARTS,
    attach,
    closed,
    dialog_shows,
    dialog_text,
    host_dashboard,
    keys,
    make_network,
    shows,
)
from tests.ui.driver import FedSource, dashboard
from tui.cli.session import ChangeSession
from tui.command import CommandError
from tui.screens.forms.network import network_form
from tui.services import Services

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VNET_STATE", str(tmp_path / "state"))


def alias_of(host: ThrowawayHost, link: str) -> str:
    return next((one.get("ifalias", "") for one in host.json("ip -j link") if one["ifname"] == link), "")


async def test_creating_a_network_and_attaching_a_container(inside_host: ThrowawayHost) -> None:
    name = inside_host.namespace("web")
    async with host_dashboard() as person:
        await make_network(person)
        await shows(person, f"Created the nat network {NET}")
        (bridge,) = inside_host.json(f"ip -j -d addr show dev {BRIDGE}")
        assert bridge["linkinfo"]["info_kind"] == "bridge" and "UP" in bridge["flags"]
        assert "masquerade" in inside_host.run("nft list table inet vnet")
        await attach(person, name)
        (inner,) = inside_host.json("ip -j addr show dev eth0", inside="web")
        own, gateway = inner["addr_info"][0], bridge["addr_info"][0]
        assert own["prefixlen"] == gateway["prefixlen"] == 24 and own["local"] != gateway["local"]
        (route,) = inside_host.json("ip -j route show default", inside="web")
        assert route["gateway"] == gateway["local"]
        await person.until(lambda: person.source.refreshes == 2, "a new read after each change")


@pytest.mark.parametrize("size", [(80, 24), (130, 40), (200, 60)])
async def test_form_and_preview_fit(inside_host: ThrowawayHost, size: tuple[int, int]) -> None:
    async with host_dashboard(size) as person:
        await keys(person, "n")
        await keys(person, *NET)
        await shows(
            person, f"create the nat network {NET}", f"ip link add {BRIDGE}", "Enter: apply", "subnet"
        )
        assert "WRITE" in person.lines[0] or size != (80, 24)
        await person.press("escape")
        await closed(person)
    assert not alias_of(inside_host, BRIDGE) and not list(journal.history())


async def test_forms_propose_values(inside_host: ThrowawayHost) -> None:
    name = inside_host.namespace("web")
    inside_host.run("ip link add br-net1 type bridge")
    async with host_dashboard() as person:
        await keys(person, "n")
        fields = {one.name: one.value for one in person.app.screen.form.fields}  # type: ignore[attr-defined]
        assert fields["name"] == "net2" and fields["subnet"].endswith("/24")
        subnet = fields["subnet"]
        assert fields["gateway"] == subnet.replace(".0/24", ".1")
        await person.press("enter")
        await closed(person)
        await keys(person, "n")
        again = {one.name: one.value for one in person.app.screen.form.fields}  # type: ignore[attr-defined]
        assert again["subnet"] != subnet
        await keys(person, "escape")
        await keys(person, "a")
        await keys(person, *name, "tab", *"net2")
        fields = {one.name: one.value for one in person.app.screen.form.fields}  # type: ignore[attr-defined]
        assert (fields["address"], fields["link"]) == (subnet.replace(".0/24", ".2"), "eth0")


async def test_a_gateway_follows_the_subnet_until_it_is_edited(inside_host: ThrowawayHost) -> None:
    async with host_dashboard() as person:
        await keys(person, "n")
        await keys(person, "tab", "tab", *"10.91.0.0/16")
        await shows(person, "10.91.0.1", "10.91.0.1/16 dev br-net1")
        await keys(person, "tab", *"10.91.0.9")
        await keys(person, "up", "backspace", "5")
        await shows(person, "10.91.0.0/15", "10.91.0.9")


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (("x" * 16,), "16 bytes"),
        (("[b]x",), '"[b]x" contains "["'),
        (("ok", "tab", "tab", "10.99.0.0/24"), "overlaps"),
        (("ok", "tab", "tab", "10.98.0.1/24"), "has host bits set"),
        (("ok", "tab", "tab", "tab", "tab", "tab", "9x"), 'can\'t use "9x" as MTU'),
        (("ok", "tab", "tab", "tab", "tab", "tab", "99999"), "out of range"),
    ],
)
async def test_errors_are_shown_while_typing(
    inside_host: ThrowawayHost, typed: tuple[str, ...], message: str
) -> None:
    inside_host.run("ip link add taken type bridge")
    inside_host.run("ip addr add 10.99.0.1/24 dev taken")
    async with host_dashboard() as person:
        await keys(person, "n")
        for word in typed:
            await keys(person, *([word] if word == "tab" else word))
        await dialog_shows(person, message)
        await person.press("enter")
        assert len(person.app.screen_stack) == 2
        await keys(person, "ctrl+u", *("fine" if len(typed) == 1 else ""))
        await person.until(lambda: message not in dialog_text(person), "its end")
    assert not list(journal.history())


async def test_read_only_refuses(inside_host: ThrowawayHost) -> None:
    async with host_dashboard(write=False) as person:
        assert "read-only" in person.lines[0]
        for key in "nadPcu":
            await person.press(key)
            assert len(person.app.screen_stack) == 1
        await shows(person, "the dashboard is read-only. Try: W")
        await person.press("W")
        assert "WRITE" in person.lines[0] and "read-only" not in person.lines[0]
        await person.press("W")
        assert "read-only" in person.lines[0]


async def test_a_missing_capability_is_named(
    inside_host: ThrowawayHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tui.cli.console.missing_capabilities", lambda: ("CAP_NET_ADMIN",))
    async with host_dashboard() as person:
        await shows(person, "CAP_NET_ADMIN")
        assert "read-only" in person.lines[0]


def test_an_ipv6_subnet_alone_keeps_the_ipv4_subnet_of_an_overlay() -> None:
    form, topology = network_form(), Topology(small_host())
    values = {"name": "blue", "kind": "overlay", "etcd": "http://192.0.2.9:2379", "subnet": "", "mtu": ""}
    (by_name,) = form.requests(values | {"ipv6": subnet_by_name("blue", 6)}, topology)
    (own,) = form.requests(values | {"ipv6": "fd77::/64"}, topology)
    (none,) = form.requests(values | {"ipv6": "none"}, topology)
    assert isinstance(by_name, CreateNetwork) and (by_name.subnets, by_name.ipv6) == ((), True)
    assert isinstance(own, CreateNetwork) and own.subnets == (subnet_by_name("blue", 4), "fd77::/64")
    assert isinstance(none, CreateNetwork) and (none.subnets, none.ipv6) == ((), False)
    for vni in ("0", "00"):
        with pytest.raises(CommandError, match="out of range"):
            form.requests(values | {"ipv6": "none", "vni": vni}, topology)


async def test_a_file_cannot_be_changed() -> None:
    async with dashboard(
        source=FedSource(read_snapshot(()), live=False), services=Services(change=ChangeSession)
    ) as person:
        await person.press("W")
        await shows(person, "can't change networks: this is a file")
        assert "read-only" in person.lines[0]


async def test_delete_lists_what_it_removes_and_needs_a_yes(inside_host: ThrowawayHost) -> None:
    name = inside_host.namespace("web")
    async with host_dashboard() as person:
        await make_network(person)
        await attach(person, name)
        await person.feed(read_snapshot(PARTS))
        await person.type(":net⏎")
        await person.type(f"/{BRIDGE}⏎")
        await keys(person, "d")
        await shows(person, "Also removed", f"{name} is detached from {NET}", f"ip link del {BRIDGE}")
        await person.press("enter", "n")
        await closed(person)
        assert alias_of(inside_host, BRIDGE)
        await keys(person, "d")
        await shows(person, f"ip link del {BRIDGE}")
        await person.press("y")
        await closed(person)
        names = {one["ifname"] for one in inside_host.json("ip -j link")}
        assert names == {"lo"}
        assert {one["ifname"] for one in inside_host.json("ip -j link", inside="web")} == {"lo"}


async def test_undo_restores_the_previous_state(inside_host: ThrowawayHost) -> None:
    before = state([inside_host.name])
    async with host_dashboard() as person:
        await make_network(person, NET, "tab", "tab", "tab", "tab", "right")
        assert len(inside_host.json(f"ip -j addr show dev {BRIDGE}")[0]["addr_info"]) == 2
        await person.press("u")
        await shows(person, f"create the nat network {NET}", f"ip link del {BRIDGE}")
        await person.press("enter")
        await shows(person, "y: apply", "undo: ")
        await keys(person)
        await person.press("y")
        await closed(person)
    assert state([inside_host.name]) == before
    assert [entry.end for entry in journal.history()] == ["undone"]


async def test_a_change_that_later_ones_depend_on_is_not_undone(inside_host: ThrowawayHost) -> None:
    name = inside_host.namespace("web")
    async with host_dashboard() as person:
        await make_network(person)
        await attach(person, name)
        await person.press("u")
        await shows(person, "attach")
        await person.press("j")
        await shows(person, "later changes depend on it")
        listed = next(line for line in person.lines if "attach" in line)
        (when,) = re.findall(r"\d\d:\d\d:\d\d", listed)
        assert when in person.text.partition("later changes depend on it")[2], "as the list names it"
        await person.press("enter")
        await shows(person, "can't undo it: later changes depend on it")
        assert len(person.app.screen_stack) == 2


async def test_publishing_a_port(inside_host: ThrowawayHost) -> None:
    name = inside_host.namespace("web")
    async with host_dashboard() as person:
        await make_network(person)
        await attach(person, name)
        await keys(person, "P")
        await keys(person, *name, "tab", *"8088", "tab", *"8000")
        await shows(person, f"publish tcp/8088 of {name}")
        await person.press("enter")
        await closed(person)
    (address,) = inside_host.json("ip -j addr show dev eth0", inside="web")[0]["addr_info"][:1]
    assert f"dnat ip to {address['local']}:8000" in inside_host.run("nft list table inet vnet")


async def test_a_plain_container_is_created_and_deleted(inside_host: ThrowawayHost) -> None:
    name = inside_host.full("box")
    inside_host.names.append(name)
    async with host_dashboard() as person:
        await make_network(person)
        await keys(person, "c")
        await keys(person, *name, "tab", *"bridged")
        await shows(person, f"create the bridged container {name}")
        await person.press("enter")
        await closed(person)
        assert inside_host.json("ip -j addr show dev eth0", inside="box")[0]["addr_info"]
        await person.feed(read_snapshot(PARTS))
        await person.type(f":cont⏎/{name}⏎")
        await keys(person, "d")
        await shows(person, f"ip netns del {name}")
        await person.press("y")
        await closed(person)
    assert not Path(f"/run/netns/{name}").exists()


async def test_hostile_names_are_shown_as_text(inside_host: ThrowawayHost) -> None:
    name = inside_host.namespace("[b]\x1b[31m\u202e")
    async with host_dashboard() as person:
        await make_network(person)
        await keys(person, "a")
        await keys(person, *name.partition("[")[0])
        await shows(person, "[b]\\x1b[31m\\u202e")
        assert "\x1b" not in person.text and "\u202e" not in person.text
        await shows(person, "attach ")
        await person.press("enter")
        await closed(person)
        assert inside_host.json("ip -j addr show dev eth0", inside="[b]\x1b[31m\u202e")[0]["addr_info"]


async def test_the_command_log(inside_host: ThrowawayHost) -> None:
    async with host_dashboard() as person:
        await person.press("L")
        await shows(person, "No commands have run")
        await person.press("escape")
        await make_network(person)
        await person.press("L")
        await shows(person, f"create the nat network {NET}  done", f"✓ ip link add {BRIDGE}")


async def test_a_changed_plan_is_shown_before_it_is_applied(inside_host: ThrowawayHost) -> None:
    async with host_dashboard() as person:
        await keys(person, "n")
        await keys(person, *NET)
        inside_host.run(f"ip link add {BRIDGE} type bridge")
        await person.press("enter")
        await shows(person, "changed meanwhile", f"ip link add {BRIDGE}2 mtu")
        assert not list(journal.history())
        inside_host.run(f"ip link del {BRIDGE}")


async def test_a_failure_is_shown_and_everything_is_undone(
    inside_host: ThrowawayHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, execute = state([inside_host.name]), run.execute

    def failing(operation: object, kernel: object) -> None:
        if isinstance(operation, AddAddress):
            raise OSError(errno.EBUSY, "busy")
        execute(operation, kernel)  # type: ignore[arg-type]

    monkeypatch.setattr(run, "execute", failing)
    async with host_dashboard() as person:
        await keys(person, "n")
        await keys(person, *NET)
        await person.press("enter")
        await shows(person, "can't", "busy", "Everything was undone")
        await person.press("escape")
        await closed(person)
        await person.press("L")
        await shows(person, "✗ ip addr add", "busy", "undone by", f"· ip link del {BRIDGE}")
    assert state([inside_host.name]) == before


@pytest.mark.parametrize("answer", ["y", "n"])
async def test_a_guarded_change_asks_for_confirmation(inside_host: ThrowawayHost, answer: str) -> None:
    inside_host.namespace("world")
    inside_host.run(f"ip link add up0 type veth peer name far netns {inside_host.full('world')}")
    inside_host.run("ip addr add 192.0.2.2/24 dev up0")
    inside_host.run("ip link set up0 up")
    async with host_dashboard() as person:
        await keys(person, "n")
        await keys(person, *"lan", "tab", *"nic")
        await shows(person, "create the nic-bridged network lan", "ip link set up0 master br-lan")
        await person.press("enter")
        await shows(person, "Keep it? y / n", "undone in")
        assert [one["local"] for one in _addresses(inside_host, "br-lan")] == ["192.0.2.2"]
        await person.press(answer)
        await closed(person)
        await shows(person, "Kept" if answer == "y" else "Undone")
    there = "br-lan" if answer == "y" else "up0"
    assert [one["local"] for one in _addresses(inside_host, there)] == ["192.0.2.2"]
    assert eventually(lambda: not guard.pending_guards())


def _addresses(host: ThrowawayHost, link: str) -> list[dict[str, str]]:
    found = host.json(f"ip -j -4 addr show dev {link}")
    return [one for entry in found for one in entry.get("addr_info", [])]


async def test_an_interrupted_change_is_offered_for_undo(inside_host: ThrowawayHost) -> None:
    step = CreateBridge("br-half", alias="vnet:net=half kind=nat")
    record = journal.NewEntryWriter("make the nat network half", (step,))
    record.begin(0)
    record.close()
    inside_host.run("ip link add br-half alias 'vnet:net=half kind=nat' type bridge")
    async with host_dashboard() as person:
        await shows(person, "Interrupted changes", "make the nat network half")
        await person.press("enter")
        await shows(person, "y: apply")
        await keys(person)
        await person.press("y")
        await closed(person)
    assert {one["ifname"] for one in inside_host.json("ip -j link")} == {"lo"}
    assert journal.open_entries() == ()
