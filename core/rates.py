"""Rates from counters: what link statistics, read again and again, say about speed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from core.model import LinkKey, LinkStats

HISTORY = 60
_AVERAGED = 5  # samples; sorting by a single tick would make rows jump


@dataclass(frozen=True, slots=True)
class LinkRate:
    """The speed of one link: bits and packets a second, averaged over the last few samples; `history` holds
    rx+tx bits a second of up to HISTORY samples, oldest first."""

    rx_bps: float
    tx_bps: float
    rx_pps: float
    tx_pps: float
    history: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Rates:
    """The speeds of many links. `speeds` has shape (links, samples, 4): rx and tx bits, rx and tx packets a
    second, newest last, NaN where a link was not there yet; `counters` are the statistics behind them."""

    places: Mapping[LinkKey, int] = field(default_factory=dict)
    speeds: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 4), "f4"))
    counters: LinkStats | None = None

    def of(self, key: LinkKey) -> LinkRate | None:
        """That link's speed, None where fewer than two samples of it were taken."""
        place = self.places.get(key)
        if place is None or not self.speeds.shape[1]:
            return None
        samples = self.speeds[place]
        seen = samples[~np.isnan(samples[:, 0])]
        if not len(seen):
            return None
        rx_bps, tx_bps, rx_pps, tx_pps = seen[-_AVERAGED:].mean(axis=0).tolist()
        return LinkRate(rx_bps, tx_bps, rx_pps, tx_pps, tuple(seen[:, :2].sum(axis=1).tolist()))

    def counters_of(self, key: LinkKey) -> np.void | None:
        """That link's counters, a row of STATS_DTYPE."""
        place = self.places.get(key)
        return None if place is None or self.counters is None else self.counters.rows[place]


class RateMeter:
    """Turns one reading of the counters after another into rates."""

    def __init__(self) -> None:
        self.rates = Rates()

    def feed(self, stats: LinkStats) -> Rates:
        """Take the next reading. A counter that went backwards (a link made anew) counts as no sample."""
        before = self.rates
        keys = [LinkKey(*key) for key in stats.rows[["ns", "ifindex"]].tolist()]
        places = {key: place for place, key in enumerate(keys)}
        old = np.array([before.places.get(key, -1) for key in keys], dtype=int)
        newest = _speeds(before.counters, stats, old)
        samples = before.speeds.shape[1]
        past = np.full((len(keys), samples, 4), np.nan, "f4")
        past[old >= 0] = before.speeds[old[old >= 0]]
        speeds = np.concatenate([past, newest[:, None, :]], axis=1)[:, -HISTORY:]
        self.rates = Rates(places if places != before.places else before.places, speeds, stats)
        return self.rates


def _speeds(before: LinkStats | None, now: LinkStats, old: np.ndarray) -> np.ndarray:
    speeds = np.full((len(now.rows), 4), np.nan, "f4")
    if before is None or now.taken_at <= before.taken_at:
        return speeds
    seconds = now.taken_at - before.taken_at
    known = np.flatnonzero(old >= 0)
    for column, name, unit in (
        (0, "rx_bytes", 8), (1, "tx_bytes", 8), (2, "rx_packets", 1), (3, "tx_packets", 1),
    ):  # fmt: skip
        risen = now.rows[name][known].astype("i8") - before.rows[name][old[known]].astype("i8")
        speeds[known, column] = np.where(risen >= 0, risen * unit / seconds, np.nan)
    speeds[np.isnan(speeds).any(axis=1)] = np.nan
    return speeds
