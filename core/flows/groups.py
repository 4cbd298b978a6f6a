"""Flows added up: by whom or what, and who with whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Column = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """What was added up, one row a group: `codes` says which, `flows` how many flows, `sums` has shape
    (groups, values)."""

    codes: Column
    flows: Column
    sums: Column


def added(codes: Sequence[Column], values: Column) -> Sums:
    """Add `values` (shape (flows, values)) up by code; a flow may belong to several groups, one for each
    column of codes, but counts once in each. A code below 0 means none."""
    rows, group = [], []
    for number, column in enumerate(codes):
        mine = column >= 0
        for earlier in codes[:number]:
            mine &= column != earlier
        found = np.flatnonzero(mine)
        rows.append(found)
        group.append(column[found])
    every, of = np.concatenate(rows), np.concatenate(group)
    unique, place = np.unique(of, return_inverse=True)
    flows = np.bincount(place, minlength=len(unique))
    parts = [np.bincount(place, values[every, one], len(unique)) for one in range(values.shape[1])]
    sums = np.stack(parts, axis=1) if parts else np.zeros((len(unique), 0))
    return Sums(unique, flows, sums)


def crossed(senders: Column, receivers: Column, size: int, values: Column) -> Column:
    """A matrix of sums, shape (size, size): what each sent to each; a code below 0 is left out."""
    known = (senders >= 0) & (receivers >= 0)
    cell = senders[known].astype(np.int64) * size + receivers[known]
    return np.bincount(cell, values[known], size * size).reshape(size, size)
