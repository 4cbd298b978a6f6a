"""Cells and detail lines that all presenters make alike; every text from outside passes `safe` here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from core.model import Link, Ref
from core.text import safe
from core.topology import Topology
from core.topology.related import related as related_things
from tui.present import units
from tui.present.rows import Cell, Section, Tone

NONE = Cell("–", "dim")
Line = tuple[str, Cell, Ref | None]


def text(value: str, tone: Tone = "") -> Cell:
    """A cell of text, made fit to print; a dash where there is none."""
    return Cell(safe(value), tone) if value else NONE


def number(value: float, tone: Tone = "") -> Cell:
    """A cell of a whole number, written out."""
    return Cell(f"{value:.0f}", tone or ("" if value else "dim"), value)


def count(value: int | None) -> Cell:
    """A counter in short; a dash where nothing counts."""
    return NONE if value is None else Cell(units.count(value), "" if value else "dim", value)


def size(value: int | None) -> Cell:
    """An amount of data from bytes; a dash where nothing counts."""
    return NONE if value is None else Cell(units.size(value), "" if value else "dim", value)


def bits(per_second: float | None) -> Cell:
    """A rate from bits a second; a dash where it is not known."""
    if per_second is None:
        return NONE
    return Cell(units.bits(per_second), "" if per_second >= 1 else "dim", per_second)


def carried(traffic: tuple[float, Sequence[float]] | None) -> tuple[Cell, Cell]:
    """What a link carries (see Scene.carried), and its trend."""
    if traffic is None:
        return NONE, NONE
    rate, history = traffic
    return bits(rate), trend(history, rate)


def trend(history: Sequence[float], rate: float, width: int = 8) -> Cell:
    """A sparkline, sorted by the rate of now."""
    return Cell(units.sparkline(history, width), "" if rate >= 1 else "dim", rate)


def name_and_place(topology: Topology, link: Link) -> str:
    """A link's name, and where it lies if that is not the host."""
    return link.name if link.ns == topology.host else f"{link.name} in {topology.label(link.ns)}"


def yes(value: bool) -> Cell:
    """ "on" or "off"."""
    return Cell("on") if value else Cell("off", "dim")


def state(link: Link) -> Cell:
    """A link's state: off by choice is dim, down against the will is bad; an idle bridge is only idle."""
    if link.kind == "loopback" and link.admin_up:
        return Cell("up", "dim")
    if not link.admin_up:
        return Cell("off", "warn" if link.master is not None else "dim")
    if link.state == "up" or (link.state == "unknown" and link.carrier):
        return Cell("up", "ok")
    if link.carrier:
        return Cell(safe(link.state), "bad")
    return Cell("idle", "dim") if link.kind == "bridge" else Cell("no carrier", "bad")


def addresses(link: Link, with_length: bool = True) -> str:
    """A link's addresses, IPv4 first, link-local ones left out."""
    kept = sorted((one for one in link.addresses if one.scope != "link"), key=lambda one: one.family)
    return " ".join(str(one) if with_length else one.address for one in kept)


def section(title: str, lines: Iterable[Line]) -> tuple[Section, ...]:
    """One section, or none where it would be empty."""
    kept = tuple(lines)
    return (Section(title, kept),) if kept else ()


def related(topology: Topology, ref: Ref) -> Sequence[tuple[str, Ref]]:
    """What a thing leads to, fit to print."""
    return tuple((safe(label), target) for label, target in related_things(topology, ref))
