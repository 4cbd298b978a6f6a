"""Tables as differences from those of the moment before: what stayed, or counts on evenly, takes no room."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from core.codec import WrongValue
from core.model import CONNTRACK_DTYPE, FASTFLOW_DTYPE, STATS_DTYPE

# By which columns a row is known again. It decides about the size only: any row may stand for any other.
_KEYS: tuple[tuple[np.dtype[Any], tuple[str, ...]], ...] = (
    (CONNTRACK_DTYPE, ("id",)),
    (STATS_DTYPE, ("ns", "ifindex")),
    (FASTFLOW_DTYPE, ("src", "dst", "sport", "dport", "l4_proto", "in_ifindex")),
)
_HEAD = struct.Struct("<I?")  # rows; whether the places of the rows before follow
_MIX = np.uint64(0x9E3779B97F4A7C15)


def pack(old: np.ndarray | None, new: np.ndarray) -> bytes:
    """The rows of `new`, each column as its differences (modulo its width) from the rows of `old` that they
    continue; docs/recording.md has the layout."""
    places = np.full(len(new), -1, "<i4") if old is None else _continued(old, new)
    known = bool((places >= 0).any())
    parts = [_HEAD.pack(len(new), known)]
    if known:
        parts.append(np.diff(places, prepend=places.dtype.type(-1)).astype("<i4").tobytes())
    for name in new.dtype.names or ():
        column = _numbers(new[name])
        if known and old is not None:
            column = column - _base(_numbers(old[name]), places)
        parts.append(column.astype(column.dtype.newbyteorder("<"), copy=False).tobytes())
    return b"".join(parts)


def unpack(old: np.ndarray | None, data: bytes, dtype: np.dtype[Any]) -> np.ndarray:
    """The read-only array that `pack` took, given the same `old`; raises WrongValue where it is none."""
    if len(data) < _HEAD.size or data[4] > 1:
        raise WrongValue("a table's columns are cut short")
    count, known = _HEAD.unpack_from(data)
    if len(data) != _HEAD.size + count * (dtype.itemsize + 4 * known):
        raise WrongValue("a table's columns are not of the size that they tell")
    offset, places = _HEAD.size, None
    if known:
        places = np.cumsum(np.frombuffer(data, "<i4", count, offset), dtype="i8") - 1
        offset += 4 * count
        if old is None or ((places < -1) | (places >= len(old))).any():
            raise WrongValue("a table continues rows that there are not")
    rows = np.zeros(count, dtype)
    for name in dtype.names or ():
        offset = _read_column(rows, name, data, offset, None if places is None else old, places)
    rows.flags.writeable = False
    return rows


def _read_column(
    rows: np.ndarray, name: str, data: bytes, offset: int, old: np.ndarray | None, places: np.ndarray | None
) -> int:
    """Fill in one column; returns where the next one begins."""
    target = _numbers(rows[name])
    read = np.frombuffer(data, target.dtype.newbyteorder("<"), target.size, offset).reshape(target.shape)
    if old is not None and places is not None:
        read = read + _base(_numbers(old[name]), places)
    if rows.dtype[name] == np.bool_ and (read > 1).any():
        raise WrongValue("a table holds a truth that is neither true nor false")
    target[...] = read
    return offset + target.nbytes


def _numbers(column: np.ndarray) -> np.ndarray:
    """The column as unsigned numbers, of which differences can be taken."""
    return column.view("u1") if column.dtype == np.bool_ else column


def _base(column: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The old values that the rows continue; 0 for rows that are new."""
    base = np.zeros((len(places), *column.shape[1:]), column.dtype)
    found = places >= 0
    base[found] = column[places[found]]
    return base


def _continued(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """For each new row the place of the old row of its key, -1 where there is none."""
    names = next((keys for dtype, keys in _KEYS if dtype == new.dtype), ())
    if not names or not len(old) or not len(new):
        return np.full(len(new), -1, "i4")
    olds, news = _hashes(old, names), _hashes(new, names)
    if len(olds) == len(news) and (olds == news).all():
        return np.arange(len(new), dtype="i4")
    order = np.argsort(olds, kind="stable")
    found = np.searchsorted(olds, news, sorter=order)
    candidates = order[np.minimum(found, len(olds) - 1)]
    return np.where(olds[candidates] == news, candidates, -1).astype("i4")


def _hashes(rows: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """One number a row, made from its key."""
    hashes = np.zeros(len(rows), "u8")
    for name in names:
        column = np.ascontiguousarray(rows[name])
        words = column.view("u8") if column.ndim > 1 else column.astype("u8")[:, None]
        for word in words.reshape(len(rows), -1).T:
            hashes = (hashes ^ word) * _MIX
            hashes ^= hashes >> np.uint64(29)
    return hashes
