"""Numbers that stand for connections: 64-bit keys made of tuples, and looking them up by the thousand."""

from __future__ import annotations

from typing import Any

import numpy as np

Column = np.ndarray[Any, Any]

_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(29)


def folded(*parts: Column) -> Column:
    """One key for each row of several columns of whole numbers; the order of the columns matters."""
    key = np.zeros(len(parts[0]), np.uint64)
    for part in parts:
        key ^= part if part.dtype == np.uint64 else part.astype(np.uint64)
        key *= _FACTOR
        key ^= key >> _SHIFT
    return key


def halves_of(addresses: Column) -> tuple[Column, Column]:
    """Addresses of 16 bytes each (shape (n, 16)) as two columns of numbers, good for comparing alone."""
    pairs = np.ascontiguousarray(addresses).view(np.uint64)
    return pairs[:, 0], pairs[:, 1]


def one_way(rows: Column, src: str, sport: str, dst: str, dport: str) -> Column:
    """The key of what packets carry one way; `rows` are structured, the names those of their fields."""
    return folded(*halves_of(rows[src]), *halves_of(rows[dst]), rows[sport], rows[dport], rows["l4_proto"])


def before(entries: Column) -> Column:
    """The packets of who opened it, as they came in."""
    return one_way(entries, "orig_src", "orig_sport", "orig_dst", "orig_dport")


def after(entries: Column) -> Column:
    """The same packets as they went on, translated."""
    return one_way(entries, "reply_dst", "reply_dport", "reply_src", "reply_sport")


def back(entries: Column) -> Column:
    """The packets back, as they came in."""
    return one_way(entries, "reply_src", "reply_sport", "reply_dst", "reply_dport")


def identity(ns: int, entries: Column) -> Column:
    """What makes an entry this one and no other, among all namespaces and over time."""
    whose = np.full(len(entries), ns, np.uint64)
    return folded(before(entries), entries["id"], entries["zone"], entries["start"], whose)


def any_of(rows: Column) -> Column:
    """Where any of a row's values is not 0 (or true); column by column, for numpy's any(axis=1) takes several
    times as long on short rows."""
    found = rows[:, 0] != 0
    for column in range(1, rows.shape[1]):
        found |= rows[:, column] != 0
    return np.asarray(found)


class Places:
    """Where each key of a column stands."""

    def __init__(self, keys: Column) -> None:
        self.keys = keys
        self._order = np.argsort(keys)
        self._sorted = keys[self._order]

    def of(self, wanted: Column) -> Column:
        """The place of each wanted key, -1 where it is not there."""
        if not len(self.keys):
            return np.full(len(wanted), -1, np.intp)
        found = np.minimum(np.searchsorted(self._sorted, wanted), len(self.keys) - 1)
        return np.where(self._sorted[found] == wanted, self._order[found], -1)
