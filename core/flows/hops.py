"""One connection, seen in several namespaces: which entries are hops of the same, and which one counts."""

from __future__ import annotations

from typing import Any

import numpy as np

Column = np.ndarray[Any, Any]

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
