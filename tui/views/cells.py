"""Make cells and detail lines for several views; text from outside passes `safe`."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

import numpy as np

from core.model import Link, LinkKey, NatEntry, Ref
from core.rates import WINDOWS, LinkRate, Rates, WindowValues
from core.text import safe
from core.topology import Topology
from core.topology.related import related as related_things
from tui.views import formatting
from tui.views.rows import Cell, Curve, Section, Tone, Trend

NONE = Cell("–", "dim")
Line = tuple[str, Cell, Ref | None]


def text(value: str, tone: Tone = "") -> Cell:
    """Return a cell of text, safe to print; a dash if it is empty."""
    return Cell(safe(value), tone) if value else NONE


def number(value: float, tone: Tone = "") -> Cell:
    """Return a cell of a whole number, with all digits."""
    return Cell(f"{value:.0f}", tone or ("" if value else "dim"), value)


def count(value: int | None) -> Cell:
    """Return a cell of a counter, shortened; a dash if nothing counts."""
    return NONE if value is None else Cell(formatting.count(value), "" if value else "dim", value)


def size(value: int | None) -> Cell:
    """Return a cell of an amount of bytes; a dash if nothing counts."""
    return NONE if value is None else Cell(formatting.size(value), "" if value else "dim", value)


def bits(per_second: float | None) -> Cell:
    """Return a cell of a rate in bits per second; a dash if it is unknown."""
    if per_second is None:
        return NONE
    return Cell(formatting.bits(per_second), "" if per_second >= 1 else "dim", per_second)


def traffic_cells(traffic: tuple[float, Sequence[float]] | None) -> tuple[Cell, Cell]:
    """Return the cells for a link's ViewContext.traffic_of() and its trend."""
    if traffic is None:
        return NONE, NONE
    rate, history = traffic
    return bits(rate), trend(history, rate)


def trend(history: Sequence[float], rate: float, width: int = 8) -> Cell:
    """Return a cell of a sparkline, sorted by the current rate."""
    return Cell(formatting.sparkline(history, width), "" if rate >= 1 else "dim", rate)


def name_and_namespace(topology: Topology, link: Link) -> str:
    """Return a link's name, with its namespace if that isn't the host's."""
    return link.name if link.ns == topology.host else f"{link.name} in {topology.label(link.ns)}"


def on_off(value: bool) -> Cell:
    """Return the cell "on" or "off"."""
    return Cell("on") if value else Cell("off", "dim")


def state(link: Link) -> Cell:
    """Return the cell of a link's state.

    Disabled is dim, down though enabled is bad, idle is neutral.
    """
    if link.kind == "loopback" and link.admin_up:
        return Cell("up", "dim")
    if not link.admin_up:
        return Cell("down", "warn" if link.master is not None else "dim")
    if link.state == "up" or (link.state == "unknown" and link.carrier):
        return Cell("up", "ok")
    if link.carrier:
        return Cell(safe(link.state), "bad")
    return Cell("idle", "dim") if link.kind == "bridge" else Cell("no carrier", "bad")


def addresses(link: Link, with_length: bool = True) -> str:
    """Return a link's addresses, IPv4 first, without link-local ones."""
    kept = sorted((one for one in link.addresses if one.scope != "link"), key=lambda one: one.family)
    return " ".join(str(one) if with_length else one.address for one in kept)


def section(title: str, lines: Iterable[Line]) -> tuple[Section, ...]:
    """Return one section, or none if it would be empty."""
    kept = tuple(lines)
    return (Section(title, kept),) if kept else ()


def related(topology: Topology, ref: Ref) -> Sequence[tuple[str, Ref]]:
    """Return the related objects with printable labels."""
    return tuple((safe(label), target) for label, target in related_things(topology, ref))


_SPEEDS: tuple[tuple[str, Callable[[LinkRate], float], Callable[[float], str]], ...] = (
    ("receives", lambda rate: rate.rx_bps, formatting.bits),
    ("sends", lambda rate: rate.tx_bps, formatting.bits),
    ("packets in", lambda rate: rate.rx_pps, formatting.packets),
    ("packets out", lambda rate: rate.tx_pps, formatting.packets),
)
_Histories = Sequence[WindowValues | None]
_Wanted = Sequence[tuple[str, int, Callable[[float], str]]]
_TRAFFIC: _Wanted = (("packets", 0, formatting.packets), ("traffic", 1, formatting.bits))


def link_lines(keys: Sequence[LinkKey], rates: Rates | None) -> Iterator[Line]:
    """Yield the lines with the traffic of links together, by direction."""
    found = [rate for key in keys if rates and (rate := rates.of(key))]
    if rates is None or not found:
        return
    histories = _histories(rates, "links", keys)
    for column, (title, speed, unit) in enumerate(_SPEEDS):
        now = sum(speed(rate) for rate in found)
        yield title, Trend(unit(now), unit=unit, curves=_curves(histories, column)), None


def bridge_lines(topology: Topology, bridge: Link, rates: Rates | None) -> Iterator[Line]:
    """Yield the lines with a bridge's traffic.

    Each frame counts once, where it enters.
    """
    own = rates.of(bridge.key) if rates else None
    if rates is None or own is None:
        return
    ports = [port.key for port in topology.ports_of(bridge.key)]
    came = [rate for key in ports if (rate := rates.of(key))]
    within, above = _histories(rates, "links", ports), _histories(rates, "links", [bridge.key])
    traffic_cells = own.tx_bps + sum(rate.rx_bps for rate in came)
    curves = _curves([_added(one, 0, other, 1) for one, other in zip(within, above, strict=True)], 0)
    yield "rate", Trend(formatting.bits(traffic_cells), unit=formatting.bits, curves=curves), None
    frames = own.tx_pps + sum(rate.rx_pps for rate in came)
    curves = _curves([_added(one, 2, other, 3) for one, other in zip(within, above, strict=True)], 0)
    yield "frames", Trend(formatting.packets(frames), unit=formatting.packets, curves=curves), None
    for kind in ("broadcast", "multicast"):
        yield from _group_lines(bridge.key, kind, frames, rates)


def _group_lines(bridge: LinkKey, kind: str, frames: float, rates: Rates) -> Iterator[Line]:
    histories = _histories(rates, "group", [(bridge, kind)])
    now = _newest(histories[0])
    if now is not None:
        share = f", {min(1.0, now / frames):.0%} of its frames" if now and frames else ""
        words = f"{formatting.frequency(now)}{share}"
        yield kind, Trend(words, unit=formatting.frequency, curves=_curves(histories, 0)), None


def rule_lines(entry: NatEntry, rates: Rates | None) -> Iterator[Line]:
    """Yield the lines with counters of the rules behind an entry.

    Rules that translate see only new connections, so their traffic is that of their connections. Rules of
    other hooks that do the same have the same connections.
    """
    if rates is None:
        return
    counted = _histories(rates, "rules", [(entry.ns, rule) for rule in entry.doing])
    if entry.kind == "filter":
        yield from _columns(counted, _TRAFFIC)
        return
    yield from _columns(counted, (("new connections", 0, formatting.frequency),))
    yield from _columns(
        _histories(rates, "translated", [(entry.ns, rule) for rule in entry.doing[:1]]), _TRAFFIC
    )


def _columns(histories: _Histories, columns: _Wanted) -> Iterator[Line]:
    for title, column, unit in columns:
        now = _newest(histories[0], column)
        if now is not None:
            yield title, Trend(unit(now), unit=unit, curves=_curves(histories, column)), None


_WORDS_OF_CURVE = 0.6  # of its line, at most


def scale(trend: Trend, window: int) -> tuple[str, ...]:
    """Return the maximum and the average of a window as text, () if unknown."""
    known = _known_values(trend, window)
    if not known:
        return ()
    return f"peak {trend.unit(max(known))}", f"average {trend.unit(sum(known) / len(known))}"


def curve_text(trend: Trend, window: int, width: int, more: Sequence[str] = ()) -> str:
    """Return the curve of a window with its length and further text that fits.

    It is "" if nothing is known.
    """
    if not _known_values(trend, window):
        return ""
    curve = trend.curves[window]
    title = f" {curve.title}"
    for words in more:
        if len(title) + len(words) + 2 <= width * _WORDS_OF_CURVE:
            title = f"{title}, {words}"
    return formatting.curve(curve.values, curve.newest, max(1, width - len(title))) + title


def _known_values(trend: Trend, window: int) -> list[float]:
    return [value for value in trend.curves[window].values if value == value] if trend.curves else []


def _histories(rates: Rates, what: str, keys: Sequence[Hashable]) -> _Histories:
    return [rates.history(what, keys, window) for window in WINDOWS]


def _curves(histories: _Histories, column: int) -> tuple[Curve, ...]:
    if any(history is None for history in histories):
        return ()
    return tuple(
        Curve(history.window.title, history.newest, tuple(history.values[:, column].tolist()))
        for history in histories
        if history
    )


def _added(
    one: WindowValues | None, column: int, other: WindowValues | None, other_column: int
) -> WindowValues | None:
    """Return the sum of a column of each; if only one is known, that one."""
    parts = [history.values[:, place] for history, place in ((one, column), (other, other_column)) if history]
    history = one or other
    if history is None:
        return None
    whole = np.array(parts)
    sums = np.where(np.isnan(whole).all(axis=0), np.nan, np.nansum(whole, axis=0))
    return WindowValues(history.window, history.newest, sums[:, None])


def _newest(history: WindowValues | None, column: int = 0) -> float | None:
    """Return the last known value of a column."""
    values = history.values[:, column] if history is not None else np.zeros(0)
    known = values[~np.isnan(values)]
    return float(known[-1]) if len(known) else None
