"""`x` on a flow: its packets at each link, over the dashboard."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from core.model.probe import FlowTrace, PacketTuple, Sighting, TracedPacket
from core.model.refs import LinkKey
from core.topology import Topology
from tests.support.snapshots import small_host
from tests.ui.driver import FedSource, dashboard
from tui import probing
from tui.command import CommandError
from tui.views.formatting import width_of
from tui.views.packet_path import flow_lines


def text_of(found: FlowTrace, width: int) -> list[str]:
    lines = flow_lines(Topology(small_host()), found, width)
    return ["".join(text for text, _ in line) for line in lines]


def traced(**more: Any) -> FlowTrace:
    """Return a trace of a packet that is forwarded, translated and encapsulated."""
    sent = PacketTuple("tcp", "10.0.0.2", 4000, "10.0.0.1", 80)
    changed = PacketTuple("tcp", "192.0.2.1", 4000, "10.0.0.1", 80)
    link = LinkKey(1, 1)
    sightings = (
        Sighting(link, 1.0, "out", "request", sent, "a", "b", ttl=64),
        Sighting(link, 1.0000123, "in", "request", sent, "a", "b", ttl=64),
        Sighting(link, 1.00002, "out", "request", changed, "c", "d", ttl=63, vni=42),
    )
    request = SimpleNamespace(ns=1, original=sent, reply=sent.reverse)
    usual = {"packets": (TracedPacket("original", sightings),), "counts": {"original": 3}, "seconds": 0.5}
    return FlowTrace(request, **usual | more)  # type: ignore[arg-type]


def test_lines_name_what_happens_between_two_links() -> None:
    lines = text_of(traced(), 130)
    assert "from 10.0.0.2 (1 of 3 packets)" in lines
    assert any("+12.3 µs" in line and "10.0.0.2:4000 → 10.0.0.1:80" in line for line in lines)
    change = next(line.strip() for line in lines if "forward" in line)
    assert change.startswith("forward: ttl 64 → 63; NAT: source 10.0.0.2:4000 → 192.0.2.1:4000; VXLAN 42")
    assert lines[-1] == "3 packets sent, 0 packets back in 0.5 s."


def test_narrow_lines_leave_out_what_is_unchanged() -> None:
    lines = text_of(traced(), 76)
    assert sum("10.0.0.2:4000 → 10.0.0.1:80" in line for line in lines) == 1
    assert all(width_of(line) <= 76 for line in lines if "NAT" in line or "packets" in line)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"packets": (), "counts": {}}, "No packet of this flow within 0.5 s. It may be idle. Try:"),
        ({"packets": (), "counts": {}, "gone": True}, "The connection has ended."),
        ({"closed": True}, "The connection is closing."),
    ],
)
def test_sentence_about_the_end(more: dict[str, Any], words: str) -> None:
    assert words in "\n".join(text_of(traced(**more), 130))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Answer traces of the dashboard: first a failure, then a packet."""
    made: list[Any] = []

    def trace(topology: Any, ns: int, entry: Any, seconds: float, stopped: Any) -> Any:
        made.append(entry)
        if len(made) == 1:
            raise CommandError("can't trace the flow: no rights. Try: run it as root")
        return traced(), ("a note",)

    monkeypatch.setattr(probing, "traced", trace)
    yield made


@pytest.mark.parametrize("view", ["flows", "conntrack"])
@pytest.mark.parametrize("size", [(80, 24), (130, 40)])
async def test_key_traces_the_selected_flow(calls: list[Any], view: str, size: tuple[int, int]) -> None:
    async with dashboard(source=FedSource(small_host()), size=size) as person:
        person.dashboard.go_to(view)
        await person.settle()
        assert person.dashboard.ref is not None and person.dashboard.ref.kind in ("flow", "conntrack")
        await person.press("x")
        await person.eventually("can't trace the flow: no rights.")
        await person.press("t")
        await person.eventually("forward: ttl 64 → 63")
        assert "Trace " in person.text and len(calls) == 2
        await person.press("escape")
        assert len(person.app.screen_stack) == 1


async def test_a_flow_of_a_file_is_not_traced() -> None:
    async with dashboard(source=FedSource(small_host(), live=False)) as person:
        person.dashboard.go_to("flows")
        await person.settle()
        await person.press("x")
        await person.eventually("can't trace a flow: this isn't a live host")
