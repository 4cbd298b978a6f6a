"""The filter of the conntrack view: each term becomes a mask over columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial, reduce

import numpy as np

from core.flows import PROTOCOLS, STATES, TRANSLATIONS, FlowColumns
from core.model.conntrack import IPS_ASSURED, IPS_SEEN_REPLY
from core.topology import Topology
from core.topology.related import of_entry, of_names, of_network
from tui.present import address_match
from tui.present.query import Term, bounds, fits, port_range

Mask = np.ndarray
_SOURCES = ("orig_src", "reply_dst")
_DESTINATIONS = ("orig_dst", "reply_src")
_SOURCE_PORTS = ("orig_sport", "reply_dport")
_DESTINATION_PORTS = ("orig_dport", "reply_sport")
_NUMBERS = {"id": "id", "mark": "mark", "zone": "zone", "timeout": "timeout"}


def mask_of(terms: Iterable[Term], topology: Topology, columns: FlowColumns) -> Mask:
    """Which entries all terms let through."""
    return FlowFilter(topology, columns).all(terms)


def keys_of(topology: Topology, columns: FlowColumns) -> frozenset[str]:
    """The keys of all terms that there are."""
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
            "inside": lambda value: self._whose(columns.inside()[0], value),
            "peer": lambda value: self._whose(columns.peer()[0], value),
            "bytes": lambda value: self._between(columns.total("bytes"), value),
            "packets": lambda value: self._between(columns.total("packets"), value),
            **{key: partial(self._number, name) for key, name in _NUMBERS.items()},
        }

    def all(self, terms: Iterable[Term]) -> Mask:
        """Where every term holds."""
        found = np.ones(len(self._columns), bool)
        for term in terms:
            found &= self._holds(term) != term.inverted
        return found

    def _holds(self, term: Term) -> Mask:
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
        """Where one of the two ends is somebody of that name."""
        return of_names(self._columns, lambda name: fits(value, name))

    def _network(self, value: str) -> Mask:
        """Where one of the two ends is a container's address on a network of that name, or bridge."""
        every = self._topology.networks
        networks = (net for net in every if fits(value, net.name) or (net.bridge and fits(value, net.bridge)))
        return _any((self._nothing(), *(of_network(self._topology, net) for net in networks)))

    def _nat(self, value: str) -> Mask:
        """By the translation's word, or by the NAT entry that made it ("=" and its whole name or id)."""
        if not value.startswith("="):
            return self._translation(value)
        entries = (
            entry for entry in self._topology.nat if fits(value, entry.name) or fits(value, entry.entry_id)
        )
        return _any((self._nothing(), *(of_entry(self._topology, entry) for entry in entries)))

    def _owned(self, addresses: np.ndarray, value: str) -> Mask:
        return self._columns.owned(addresses, lambda name: fits(value, name))

    def _word(self, words: Sequence[str], codes: np.ndarray, value: str) -> Mask:
        """Where the word of a code contains the value."""
        return np.asarray(np.array([value in word.casefold() for word in words])[codes])

    def _state(self, value: str) -> Mask:
        """By the state's word; "unreplied" and "assured" hold for TCP as well."""
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
        """Where one of the ports is the value, or lies in it ("8000-8010")."""
        wanted = port_range(value)
        if wanted is None:
            return self._nothing()
        ports = (self._columns.column(name) for name in names)
        return _any((wanted[0] <= port) & (port <= wanted[-1]) for port in ports) & self._columns.has_ports

    def _between(self, figures: np.ndarray, value: str) -> Mask:
        """Where a figure lies in a range such as ">1M"; a bare number is the least."""
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
        """Where an address is the value, lies in it or begins with it, or its owner has that name."""
        return _any(self._whose(self._columns.column(name), value) for name in names)

    def _whose(self, addresses: np.ndarray, value: str) -> Mask:
        found = address_match.matching(addresses, value)
        return self._owned(addresses, value) if found is None else found

    def _anywhere(self, value: str) -> Mask:
        """Where an address, a port, the protocol, the state, the translation or a name contains the value."""
        columns = self._columns
        found = self._namespace(value)
        found |= self._named(value)
        found |= self._word(PROTOCOLS, columns.column("l4_proto"), value)
        found |= self._word(STATES, columns.state, value)
        found |= self._translation(value)
        for address, port in zip(_SOURCES + _DESTINATIONS, _SOURCE_PORTS + _DESTINATION_PORTS, strict=True):
            found |= address_match.containing(columns.column(address), value)
            found |= self._end(columns.column(address), columns.column(port), value)
        return found

    def _end(self, addresses: np.ndarray, ports: np.ndarray, value: str) -> Mask:
        """Where "address:port", or the port alone, contains the value."""
        address, colon, port = value.rpartition(":")
        if not port.isdecimal() and not (colon and not port):
            return self._nothing()
        found = address_match.numbers(ports, port, whole_start=bool(colon)) & self._columns.has_ports
        if address:
            found &= address_match.ending(addresses, address)
        return np.asarray(found)


def _any(masks: Iterable[Mask]) -> Mask:
    return reduce(np.logical_or, masks)
