"""The last hour of what is counted, as detail lines: the figure now, and curves with their scale."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy as np

from core.history import WINDOWS, Past
from core.model import Link, LinkKey, NatEntry
from core.rates import LinkRate, Rates
from core.topology import Topology
from tui.present import units
from tui.present.cells import Line
from tui.present.rows import Curve, Trend

_SPEEDS: tuple[tuple[str, Callable[[LinkRate], float], Callable[[float], str]], ...] = (
    ("receives", lambda rate: rate.rx_bps, units.bits),
    ("sends", lambda rate: rate.tx_bps, units.bits),
    ("packets in", lambda rate: rate.rx_pps, units.packets),
    ("packets out", lambda rate: rate.tx_pps, units.packets),
)
_Pasts = Sequence[Past | None]
_Wanted = Sequence[tuple[str, int, Callable[[float], str]]]
_TRAFFIC: _Wanted = (("packets", 0, units.packets), ("traffic", 1, units.bits))


def link_lines(keys: Sequence[LinkKey], rates: Rates | None) -> Iterator[Line]:
    """What these links carry together, by direction."""
    found = [rate for key in keys if rates and (rate := rates.of(key))]
    if rates is None or not found:
        return
    pasts = _pasts(rates, "links", keys)
    for column, (title, speed, unit) in enumerate(_SPEEDS):
        now = sum(speed(rate) for rate in found)
        yield title, Trend(unit(now), unit=unit, curves=_curves(pasts, column)), None


def bridge_lines(topology: Topology, bridge: Link, rates: Rates | None) -> Iterator[Line]:
    """What a bridge carries: each frame counts once, where it enters, by a port or from the host's side."""
    own = rates.of(bridge.key) if rates else None
    if rates is None or own is None:
        return
    ports = [port.key for port in topology.ports_of(bridge.key)]
    came = [rate for key in ports if (rate := rates.of(key))]
    within, above = _pasts(rates, "links", ports), _pasts(rates, "links", [bridge.key])
    carried = own.tx_bps + sum(rate.rx_bps for rate in came)
    curves = _curves([_added(one, 0, other, 1) for one, other in zip(within, above, strict=True)], 0)
    yield "carries", Trend(units.bits(carried), unit=units.bits, curves=curves), None
    frames = own.tx_pps + sum(rate.rx_pps for rate in came)
    curves = _curves([_added(one, 2, other, 3) for one, other in zip(within, above, strict=True)], 0)
    yield "frames", Trend(units.packets(frames), unit=units.packets, curves=curves), None
    for kind in ("broadcast", "multicast"):
        yield from _group_lines(bridge.key, kind, frames, rates)


def _group_lines(bridge: LinkKey, kind: str, frames: float, rates: Rates) -> Iterator[Line]:
    pasts = _pasts(rates, "group", [(bridge, kind)])
    now = _newest(pasts[0])
    if now is not None:
        share = f", {min(1.0, now / frames):.0%} of its frames" if now and frames else ""
        words = f"{units.each_second(now)}{share}"
        yield kind, Trend(words, unit=units.each_second, curves=_curves(pasts, 0)), None


def rule_lines(entry: NatEntry, rates: Rates | None) -> Iterator[Line]:
    """What the rules behind an entry counted. Rules that translate see new connections only: what these carry
    is told by the connections, of which rules that do the same (in other hooks) have the same."""
    if rates is None:
        return
    counted = _pasts(rates, "rules", [(entry.ns, rule) for rule in entry.doing])
    if entry.kind == "filter":
        yield from _columns(counted, _TRAFFIC)
        return
    yield from _columns(counted, (("new connections", 0, units.each_second),))
    yield from _columns(_pasts(rates, "translated", [(entry.ns, rule) for rule in entry.doing[:1]]), _TRAFFIC)


def _columns(pasts: _Pasts, columns: _Wanted) -> Iterator[Line]:
    for title, column, unit in columns:
        now = _newest(pasts[0], column)
        if now is not None:
            yield title, Trend(unit(now), unit=unit, curves=_curves(pasts, column)), None


_WORDS_OF_CURVE = 0.6  # of its line, at most


def scale(trend: Trend, window: int) -> tuple[str, ...]:
    """The highest and the average of a window in words; nothing where nothing is known of it."""
    known = _known(trend, window)
    if not known:
        return ()
    return f"peak {trend.unit(max(known))}", f"average {trend.unit(sum(known) / len(known))}"


def drawn(trend: Trend, window: int, width: int, more: Sequence[str] = ()) -> str:
    """The curve of a window, with its length and as much more of it as leaves room for the curve; "" where
    nothing is known of it."""
    if not _known(trend, window):
        return ""
    curve = trend.curves[window]
    title = f" {curve.title}"
    for words in more:
        if len(title) + len(words) + 2 <= width * _WORDS_OF_CURVE:
            title = f"{title}, {words}"
    return units.curve(curve.values, curve.newest, max(1, width - len(title))) + title


def _known(trend: Trend, window: int) -> list[float]:
    return [value for value in trend.curves[window].values if value == value] if trend.curves else []


def _pasts(rates: Rates, what: str, keys: Sequence[Hashable]) -> _Pasts:
    return [rates.past(what, keys, window) for window in WINDOWS]


def _curves(pasts: _Pasts, column: int) -> tuple[Curve, ...]:
    if any(past is None for past in pasts):
        return ()
    return tuple(
        Curve(past.window.title, past.newest, tuple(past.values[:, column].tolist()))
        for past in pasts
        if past
    )


def _added(one: Past | None, column: int, other: Past | None, other_column: int) -> Past | None:
    """A column of each, added up; where only one is known, that one."""
    parts = [past.values[:, place] for past, place in ((one, column), (other, other_column)) if past]
    past = one or other
    if past is None:
        return None
    whole = np.array(parts)
    sums = np.where(np.isnan(whole).all(axis=0), np.nan, np.nansum(whole, axis=0))
    return Past(past.window, past.newest, sums[:, None])


def _newest(past: Past | None, column: int = 0) -> float | None:
    """The last value that is known of a column."""
    values = past.values[:, column] if past is not None else np.zeros(0)
    known = values[~np.isnan(values)]
    return float(known[-1]) if len(known) else None
