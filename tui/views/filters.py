"""The filter of the conntrack view: each term becomes a mask over columns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial, reduce

import numpy as np

from core.flows import PROTOCOLS, STATES, TRANSLATIONS, FlowColumns
from core.flows.merge import FAST, PART
from core.model.conntrack import IPS_ASSURED, IPS_SEEN_REPLY
from core.topology import Topology
from core.topology.flow_index import CLIENTS, SEGMENTS, FlowView
from core.topology.related import mask_by_name, mask_by_nat_entry, mask_by_network
from tui.views import query
from tui.views.query import Term, bounds, fits, port_range

Mask = np.ndarray
_SOURCES = ("orig_src", "reply_dst")
_DESTINATIONS = ("orig_dst", "reply_src")
_SOURCE_PORTS = ("orig_sport", "reply_dport")
_DESTINATION_PORTS = ("orig_dport", "reply_sport")
_NUMBERS = {"id": "id", "mark": "mark", "zone": "zone", "timeout": "timeout"}


def conntrack_mask_of(terms: Iterable[Term], topology: Topology, columns: FlowColumns) -> Mask:
    """Return a mask of the entries that match all terms."""
    return FlowFilter(topology, columns).all(terms)


def conntrack_keys_of(topology: Topology, columns: FlowColumns) -> frozenset[str]:
    """Return the keys of all terms."""
    return frozenset(FlowFilter(topology, columns).by_key)


class FlowFilter:
    """Masks over the entries of `columns`."""

    def __init__(self, topology: Topology, columns: FlowColumns) -> None:
        self._topology = topology
        self._columns = columns
        self._labels = [topology.label(table.ns).casefold() for table in columns.tables]
        self.by_key: dict[str, Callable[[str], Mask]] = {
            "ns": lambda value: self._namespace(value) | self._named(value),
            "ct": self._named,
            "proto": partial(self._word, PROTOCOLS, columns.column("l4_proto")),
            "state": self._state,
            "net": self._network,
            "nat": self._nat,
            "translation": self._translation,
            "port": partial(self._port, _SOURCE_PORTS + _DESTINATION_PORTS),
            "sport": partial(self._port, _SOURCE_PORTS),
            "dport": partial(self._port, _DESTINATION_PORTS),
            "addr": partial(self._address, _SOURCES + _DESTINATIONS),
            "src": partial(self._address, _SOURCES),
            "dst": partial(self._address, _DESTINATIONS),
            "inside": lambda value: self._named_by(columns.inside()[0], value),
            "peer": lambda value: self._named_by(columns.peer()[0], value),
            "bytes": lambda value: self._between(columns.total("bytes"), value),
            "packets": lambda value: self._between(columns.total("packets"), value),
            **{key: partial(self._number, name) for key, name in _NUMBERS.items()},
        }

    def all(self, terms: Iterable[Term]) -> Mask:
        """Return a mask of the rows that every term matches."""
        found = np.ones(len(self._columns), bool)
        for term in terms:
            found &= self._mask_of(term) != term.inverted
        return found

    def _mask_of(self, term: Term) -> Mask:
        by_key = self.by_key.get(term.key)
        return by_key(term.value) if by_key is not None else self._anywhere(term.text)

    def _nothing(self) -> Mask:
        return np.zeros(len(self._columns), bool)

    def _namespace(self, value: str) -> Mask:
        fits = [
            value in label or value == str(table.ns)
            for label, table in zip(self._labels, self._columns.tables, strict=True)
        ]
        return self._columns.by_table(np.array(fits, bool))

    def _named(self, value: str) -> Mask:
        """Return a mask of the rows with an end whose owner has that name."""
        return mask_by_name(self._columns, lambda name: fits(value, name))

    def _network(self, value: str) -> Mask:
        """Return a mask of the rows with an end on a network or bridge of that name."""
        every = self._topology.networks
        networks = (net for net in every if fits(value, net.name) or (net.bridge and fits(value, net.bridge)))
        return _any(
            (self._nothing(), *(mask_by_network(self._topology, net, self._columns) for net in networks))
        )

    def _nat(self, value: str) -> Mask:
        """Match the text of the translation, or the NAT entry that made it.

        "=" asks for the whole name or id.
        """
        if not value.startswith("="):
            return self._translation(value)
        entries = (
            entry for entry in self._topology.nat if fits(value, entry.name) or fits(value, entry.entry_id)
        )
        return _any(
            (self._nothing(), *(mask_by_nat_entry(self._topology, entry, self._columns) for entry in entries))
        )

    def _owned(self, addresses: np.ndarray, value: str) -> Mask:
        return self._columns.owned(addresses, lambda name: fits(value, name))

    def _word(self, words: Sequence[str], codes: np.ndarray, value: str) -> Mask:
        """Return a mask of the rows whose code's text contains the value."""
        return np.asarray(np.array([value in word.casefold() for word in words])[codes])

    def _state(self, value: str) -> Mask:
        """Match the text of the state; "unreplied" and "assured" apply to TCP, too."""
        found = self._word(STATES, self._columns.state, value)
        status = self._columns.column("status")
        if value in "unreplied":
            found |= status & IPS_SEEN_REPLY == 0
        if value in "assured":
            found |= status & IPS_ASSURED != 0
        return found

    def _translation(self, value: str) -> Mask:
        return self._word(TRANSLATIONS, self._columns.translation, value)

    def _port(self, names: Sequence[str], value: str) -> Mask:
        """Return a mask of the rows with a port in the value, such as "8000-8010"."""
        wanted = port_range(value)
        if wanted is None:
            return self._nothing()
        ports = (self._columns.column(name) for name in names)
        return _any((wanted[0] <= port) & (port <= wanted[-1]) for port in ports) & self._columns.has_ports

    def _between(self, figures: np.ndarray, value: str) -> Mask:
        """Return a mask of the figures in a range: ">1M"; a number is the minimum."""
        least, most = bounds(value)
        return np.asarray((figures.astype(float) >= least) & (figures <= most))

    def _number(self, name: str, value: str) -> Mask:
        if value[0] in "<>":
            return self._between(self._columns.column(name), value)
        try:
            return np.asarray(self._columns.column(name) == int(value, 0))
        except ValueError:
            return self._nothing()

    def _address(self, names: Sequence[str], value: str) -> Mask:
        """Return a mask of the addresses that match the value.

        They are equal to it, lie in it, begin with it, or have an owner of that name.
        """
        return _any(self._named_by(self._columns.column(name), value) for name in names)

    def _named_by(self, addresses: np.ndarray, value: str) -> Mask:
        found = query.matching(addresses, value)
        return self._owned(addresses, value) if found is None else found

    def _anywhere(self, value: str) -> Mask:
        """Return a mask of the rows with the value in any of these columns.

        They are address, port, protocol, state, translation and name.
        """
        columns = self._columns
        found = self._namespace(value)
        found |= self._named(value)
        found |= self._word(PROTOCOLS, columns.column("l4_proto"), value)
        found |= self._word(STATES, columns.state, value)
        found |= self._translation(value)
        for address, port in zip(_SOURCES + _DESTINATIONS, _SOURCE_PORTS + _DESTINATION_PORTS, strict=True):
            found |= query.containing(columns.column(address), value)
            found |= self._end(columns.column(address), columns.column(port), value)
        return found

    def _end(self, addresses: np.ndarray, ports: np.ndarray, value: str) -> Mask:
        """Return a mask of the rows whose "address:port" or port contains the value."""
        address, colon, port = value.rpartition(":")
        if not port.isdecimal() and not (colon and not port):
            return self._nothing()
        found = query.numbers(ports, port, whole_start=bool(colon)) & self._columns.has_ports
        if address:
            found &= query.ending(addresses, address)
        return np.asarray(found)


def _any(masks: Iterable[Mask]) -> Mask:
    return reduce(np.logical_or, masks)


SIZES = frozenset({"rate", "bytes", "packets", "age", "timeout", "rtt", "hops", *SEGMENTS})


def flows_mask_of(terms: Iterable[Term], topology: Topology, flow_view: FlowView) -> Mask:
    """Return a mask of the flows that match all terms."""
    return _Filter(topology, flow_view).all(terms)


def remarks(text: str, known: Collection[str], inverted: bool = False) -> Iterator[str]:
    """Yield the same as `query.remarks`."""
    yield from query.remarks(text, known, inverted)
    for each in query.parse(text):
        if (
            each.key in SIZES
            and each.inverted >= inverted
            and not query.is_range(each.value)
            and each.value[0] not in "<>"
        ):
            remedy = f"{each.key}:>1M or {each.key}:10k-1M"
            yield f"can't filter by {each.text}: it isn't a number or a range. Try: {remedy}"


def flow_keys_of(topology: Topology, flow_view: FlowView) -> frozenset[str]:
    """Return the keys of all terms."""
    return frozenset(_Filter(topology, flow_view).by_key)


class _Filter(FlowFilter):
    """Masks over the rows of a picture."""

    def __init__(self, topology: Topology, flow_view: FlowView) -> None:
        super().__init__(topology, flow_view.index.columns)
        self._flow_view = flow_view
        table, index = flow_view.table, flow_view.index
        sizes: dict[str, Callable[[], np.ndarray]] = {
            "rate": lambda: table.bits,
            "bytes": lambda: np.where(table.counted, table.octets.sum(axis=1).astype(float), np.nan),
            "packets": lambda: np.where(table.counted, table.packets.sum(axis=1).astype(float), np.nan),
            "age": lambda: table.age,
            "timeout": lambda: table.columns.column("timeout"),
            "rtt": lambda: flow_view.ends.rtt * 1e3,
            **{name: partial(flow_view.ends.total, name) for name in SEGMENTS},
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
        """Return a mask of the flows on that path.

        The fast path carries (nearly) all, a part, or nothing of them now.
        """
        path = self._flow_view.table.path
        if "fast".startswith(word):
            return np.asarray(path == FAST)
        if "part fast".startswith(word):
            return np.asarray(path == PART)
        return np.asarray((path != FAST) & (path != PART))

    def _sized(self, make: Callable[[], np.ndarray], value: str) -> Mask:
        """Return a mask of the figures in a range.

        Such as ">1M", "<10" or "5-20"; a number is the minimum.
        """
        least, most = bounds(value)
        figures = make()
        return np.asarray((figures.astype(float) >= least) & (figures <= most))

    def _process(self, value: str) -> Mask:
        ends = self._flow_view.ends
        wanted = [pid for pid, name in ends.commands.items() if fits(value, name) or fits(value, str(pid))]
        return np.isin(ends.pids, wanted).any(axis=1)

    def _end_of(self, column: str, value: str) -> Mask:
        addresses = self._columns.column(column)
        bare = value.lstrip("=")
        found = query.matching(addresses, bare)
        return self._columns.owned(addresses, lambda name: fits(value, name)) if found is None else found
