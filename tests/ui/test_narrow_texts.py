"""Texts at 80 cells: the footer's keys, and a probe's packets."""

from __future__ import annotations

import pytest

from core.model import LinkKey
from core.model.probe import PacketTuple, ProbeResult, Sighting
from core.operations import undo_title
from core.topology import Topology
from tests.support.host_builder import HOST
from tests.support.snapshots import small_host
from tests.ui.change_service import change_dashboard
from tui.views.formatting import width_of
from tui.views.packet_path import path_lines

ENDS = PacketTuple("tcp", "2001:db8:1111:2222::3333", 40000, "2001:db8:4444:5555::6666", 443)
FURTHER = {"ttl": 63, "flags": "SYN", "src_mac": "02:00:00:00:00:01", "dst_mac": "02:00:00:00:00:02"}


def test_no_part_of_a_probes_packet_is_cut() -> None:
    links = (LinkKey(HOST, 1), LinkKey(HOST, 2))
    sightings = tuple(
        Sighting(
            link, 1.0 + number, "in", "request", ENDS, times=number + 1, **FURTHER | {"ttl": 64 - number}
        )  # type: ignore[arg-type]
        for number, link in enumerate(links)
    )
    result = ProbeResult("silent", ENDS, sightings=sightings)
    topology = Topology(small_host())
    lines = ["".join(text for text, _ in line) for line in path_lines(topology, result, 76, wraps=True)]
    assert max(map(width_of, lines)) <= 76
    shown = " ".join(" ".join(lines).split())
    assert "ttl 63" in shown and shown.count("SYN") == 2 and "again (2)" in shown
    wide = ["".join(text for text, _ in line) for line in path_lines(topology, result, 76)]
    assert len(wide) == 5 and " ".join(" ".join(wide).split()) == shown


@pytest.mark.parametrize("size", [(80, 24), (130, 40)])
@pytest.mark.parametrize("view", ["containers", "doctor", "flows"])
async def test_the_footer_keeps_w_and_f_while_changes_are_allowed(size: tuple[int, int], view: str) -> None:
    async with change_dashboard(size) as (person, _):
        await person.type(f":{view}⏎")
        await person.until(lambda: " w Why" in person.lines[-1] and " F Fix" in person.lines[-1], "the keys")


def test_the_undo_of_a_setting_is_not_read_as_its_value() -> None:
    assert undo_title("set br_netfilter to 1") == 'undo: "set br_netfilter to 1"'
    assert undo_title("create the network x") == "undo: create the network x"
