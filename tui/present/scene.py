"""What a view needs to present: the topology of one moment, the rates, and the log of what changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from core.flows.merge import table_of
from core.model import Change, FastPath, LinkKey, Ref, Snapshot
from core.rates import LinkRate, Rates
from core.topology import Topology
from core.topology.flow_index import FlowPicture

# What flows are added up by, in the order in which one key goes through them.
GROUPINGS = ("", "container", "network", "peer", "port", "process", "client", "matrix")


@dataclass(frozen=True, slots=True)
class Lens:
    """`per_hop`: each namespace's entry is a row of its own, else a connection is one row; `by` one of
    GROUPINGS; `pins` stay on top, whatever the filter and the order."""

    per_hop: bool = False
    by: str = ""
    pins: frozenset[Ref] = frozenset()

    @property
    def told(self) -> str:
        """What flows are added up by, in words."""
        return {"": "one by one", "matrix": "who sends to whom"}.get(self.by, f"by {self.by}")

    def grouped_next(self) -> Lens:
        """Added up by the next thing."""
        return replace(self, by=GROUPINGS[(GROUPINGS.index(self.by) + 1) % len(GROUPINGS)])

    def pinned(self, ref: Ref) -> Lens:
        """With that one pinned, or no longer."""
        return replace(self, pins=self.pins ^ {ref})


PLAIN = Lens()


LOG_LENGTH = 1000


@dataclass(frozen=True, slots=True)
class ChangeLog:
    """The last LOG_LENGTH changes, oldest first; `dropped` counts those that came before, so that a change
    keeps its number as long as it is in the log."""

    changes: tuple[Change, ...] = ()
    dropped: int = 0

    def extended(self, changes: Iterable[Change]) -> ChangeLog:
        """The log with more changes at its end."""
        whole = (*self.changes, *changes)
        surplus = max(0, len(whole) - LOG_LENGTH)
        return ChangeLog(whole[surplus:], self.dropped + surplus)

    def numbered(self) -> Iterator[tuple[Ref, Change]]:
        """Each change with its reference, oldest first."""
        for place, change in enumerate(self.changes):
            yield Ref("event", (self.dropped + place,)), change

    def change(self, ref: Ref) -> Change | None:
        """The change of that reference, None where it has left the log."""
        place = int(ref.key[0]) - self.dropped
        return self.changes[place] if 0 <= place < len(self.changes) else None


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """One moment as the views present it; `rates` is None where nothing counts (a dump file). `lens` and
    `flows_filter` say how the person looks at the flows, which what flows add up to depends on; `offers_demo`
    whether a key opens the demo where there is nothing else to see."""

    topology: Topology
    rates: Rates | None = None
    log: ChangeLog = field(default_factory=ChangeLog)
    flows: FlowPicture | None = None
    fast: FastPath = field(default_factory=FastPath)
    flows_filter: str = ""
    lens: Lens = PLAIN
    offers_demo: bool = False

    @property
    def flow_picture(self) -> FlowPicture:
        """The flows as they were measured; where nothing measures, as the tables have them."""
        if self.flows is not None:
            return self.flows
        snapshot = self.snapshot
        return FlowPicture.of(self.topology, table_of(snapshot.conntracks, at=snapshot.taken_at))

    @property
    def snapshot(self) -> Snapshot:
        """The snapshot behind the topology."""
        return self.topology.snapshot

    def rate(self, key: LinkKey) -> LinkRate | None:
        """The speed of a link, None where it is not known."""
        return self.rates.of(key) if self.rates else None

    def carried(self, key: LinkKey) -> tuple[float, tuple[float, ...]] | None:
        """What a link carries, in bits a second, and its history; None where it is not known.

        Of a bridge, each frame counts once, where it enters: received by a port, or sent by the bridge's own
        link; its history is both directions of all ports, which tells the shape only.
        """
        own, ports = self.rate(key), self.topology.ports_of(key)
        if not ports:
            return (own.rx_bps + own.tx_bps, own.history) if own else None
        rates = [rate for port in ports if (rate := self.rate(port.key))]
        if own is None and not rates:
            return None
        length = max((len(rate.history) for rate in rates), default=0)
        padded = ((0.0,) * (length - len(rate.history)) + rate.history for rate in rates)
        history = tuple(map(sum, zip(*padded, strict=True)))
        return sum(rate.rx_bps for rate in rates) + (own.tx_bps if own else 0.0), history
