"""The filter of the flows view: what conntrack's filter knows, and what was measured."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial

import numpy as np

from core.flows import PROTOCOLS, STATES
from core.flows.merge import FAST, PART
from core.topology import Topology
from core.topology.flow_index import CLIENTS, FlowPicture
from tui.present import address_match, query
from tui.present.conntrack_filter import FlowFilter
from tui.present.query import Term, bounds, fits

Mask = np.ndarray
SIZES = frozenset({"rate", "bytes", "packets", "age", "timeout", "rtt", "hops"})


def mask_of(terms: Iterable[Term], topology: Topology, picture: FlowPicture) -> Mask:
    """Which flows all terms let through."""
    return _Filter(topology, picture).all(terms)


def remarks(text: str, known: Collection[str], inverted: bool = False) -> Iterator[str]:
    """As `query.remarks`."""
    yield from query.remarks(text, known, inverted)
    for each in query.parse(text):
        if each.key in SIZES and each.inverted >= inverted and not _means_something(each.value):
            yield f"{each.value} is no figure such as >1M, and no range such as 10k-1M."


def _means_something(value: str) -> bool:
    least, most = bounds(value)
    return least <= most


def keys_of(topology: Topology, picture: FlowPicture) -> frozenset[str]:
    """The keys of all terms that there are."""
    return frozenset(_Filter(topology, picture).by_key)


class _Filter(FlowFilter):
    """Masks over the rows of a picture."""

    def __init__(self, topology: Topology, picture: FlowPicture) -> None:
        super().__init__(topology, picture.index.columns)
        self._picture = picture
        table, index = picture.table, picture.index
        sizes: dict[str, Callable[[], np.ndarray]] = {
            "rate": lambda: table.bits,
            "bytes": lambda: np.where(table.counted, table.octets.sum(axis=1).astype(float), np.nan),
            "packets": lambda: np.where(table.counted, table.packets.sum(axis=1).astype(float), np.nan),
            "age": lambda: table.age,
            "timeout": lambda: table.columns.column("timeout"),
            "rtt": lambda: picture.ends.rtt * 1e3,
            "hops": lambda: np.bincount(index.connection, minlength=len(index))[index.connection],
        }
        self.by_key |= {key: partial(self._sized, make) for key, make in sizes.items()}
        self.by_key |= {
            "state": lambda value: self._word(STATES, table.columns.state, value),
            "path": lambda value: self._on_path(value.lstrip("=")),
            "client": lambda value: np.array([fits(value, name) for name in CLIENTS])[index.client],
            "proto": lambda value: np.array([fits(value, name) for name in PROTOCOLS])[
                index.columns.column("l4_proto")
            ],
            "process": self._process,
            "via": self._translation,
            "from": partial(self._end_of, "orig_src"),
            "to": partial(self._end_of, "reply_src"),
        }

    def _on_path(self, word: str) -> Mask:
        """Where the fast path carries (nearly) all, a part, or nothing now."""
        path = self._picture.table.path
        if "fast".startswith(word):
            return np.asarray(path == FAST)
        if "part fast".startswith(word):
            return np.asarray(path == PART)
        return np.asarray((path != FAST) & (path != PART))

    def _sized(self, make: Callable[[], np.ndarray], value: str) -> Mask:
        """Where a figure lies in a range such as ">1M", "<10" or "5-20"; a bare number is the least."""
        least, most = bounds(value)
        figures = make()
        return np.asarray((figures.astype(float) >= least) & (figures <= most))

    def _process(self, value: str) -> Mask:
        ends = self._picture.ends
        wanted = [pid for pid, name in ends.commands.items() if fits(value, name) or fits(value, str(pid))]
        return np.isin(ends.pids, wanted).any(axis=1)

    def _end_of(self, column: str, value: str) -> Mask:
        addresses = self._columns.column(column)
        bare = value.lstrip("=")
        found = address_match.matching(addresses, bare)
        return self._columns.owned(addresses, lambda name: fits(value, name)) if found is None else found
