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


_LONGEST = 8  # entries of one tuple that are compared with one another


def connections(first: Column, last: Column, place: Column, neighbours: Column) -> Column:
    """A number for each row, the same for the hops of one connection.

    `first` and `last` are the keys of the tuple as it comes in and as it goes on, `place` the number of the
    row's namespace, `neighbours` a symmetric matrix that tells which namespaces hang together: only their
    entries can be hops of one connection, for the same tuple may well live in strangers' namespaces.
    """
    one, other = _links(first, last, place, neighbours)
    labels = np.arange(len(first))
    while True:
        least = np.minimum(labels[one], labels[other])
        before = labels.copy()
        np.minimum.at(labels, one, least)
        np.minimum.at(labels, other, least)
        labels = labels[labels]
        if np.array_equal(labels, before):
            return labels


def _links(first: Column, last: Column, place: Column, neighbours: Column) -> tuple[Column, Column]:
    """Pairs of rows that share a tuple and stand in namespaces that hang together."""
    rows = np.arange(len(first))
    changed = np.flatnonzero(first != last)
    keys, owners = np.concatenate((first, last[changed])), np.concatenate((rows, changed))
    order = np.argsort(keys, kind="stable")
    keys, owners = keys[order], owners[order]
    ones, others = [], []
    for step in range(1, _LONGEST):
        same = np.flatnonzero(keys[step:] == keys[:-step])
        if not same.size:
            break
        one, other = owners[same], owners[same + step]
        near = neighbours[place[one], place[other]] & (place[one] != place[other])
        ones.append(one[near])
        others.append(other[near])
    none = np.zeros(0, np.intp)
    return np.concatenate([none, *ones]), np.concatenate([none, *others])


def edges(labels: Column, rank: Column) -> Column:
    """Where a row stands for its connection: of its hops the one of the highest rank."""
    order = np.lexsort((-rank, labels))
    chosen = np.ones(len(labels), bool)
    chosen[1:] = labels[order][1:] != labels[order][:-1]
    result = np.zeros(len(labels), bool)
    result[order[chosen]] = True
    return result
