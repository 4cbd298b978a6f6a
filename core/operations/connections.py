"""The operation on tracked connections (conntrack(8)): what is forgotten cannot be told the kernel again."""

from __future__ import annotations

from dataclasses import dataclass

from core.operations.target import HOST, NetnsTarget

_NAMES = {6: "tcp", 17: "udp", 33: "dccp", 132: "sctp", 136: "udplite"}
_ICMP = {1: "icmp", 58: "icmpv6"}
_GRE = 47  # conntrack(8) knows its keys by its name only


@dataclass(frozen=True, slots=True)
class DeleteConnection:
    """Have the kernel forget one tracked connection: the entry whose original direction is this, in `zone`.

    `src` and `dst` are addresses in text, `sport` and `dport` ports in host order; for ICMP they hold the
    echo id, and type << 8 | code. `entry_id` is the entry's id, so that a later connection of the same
    addresses and ports is left alone; the printed command cannot say it, nor tell apart a zone of one
    direction only. An entry that is gone already counts as deleted.
    """

    src: str
    dst: str
    l4_proto: int
    sport: int
    dport: int
    entry_id: int
    place: NetnsTarget = HOST
    zone: int = 0

    @property
    def family(self) -> int:
        """4 or 6."""
        return 6 if ":" in self.src else 4

    def command(self) -> str:
        words = [
            "conntrack -D",
            f"-f ipv{self.family}",
            f"-p {self._protocol}",
            f"-s {self.src} -d {self.dst}",
        ]
        return self.place.inside(" ".join([*words, *self._ports(), f"-w {self.zone}"]))

    @property
    def _protocol(self) -> str:
        names = _NAMES | _ICMP | {_GRE: "gre"}
        return names.get(self.l4_proto) or str(self.l4_proto)

    def _ports(self) -> list[str]:
        if name := _ICMP.get(self.l4_proto):
            kind, code = self.dport >> 8, self.dport & 0xFF
            return [f"--{name}-type {kind} --{name}-code {code} --{name}-id {self.sport}"]
        if not (self.sport or self.dport):
            return []
        if self.l4_proto == _GRE:
            return [f"--srckey {self.sport} --dstkey {self.dport}"]
        return [f"--sport {self.sport} --dport {self.dport}"] if self.l4_proto in _NAMES else []

    def inverse(self) -> tuple[DeleteConnection, ...]:
        return ()

    def describe(self) -> str:
        where = f" in {self.place}" if self.place != HOST else ""
        return f"forget the {self._protocol} connection {self._end(0)} -> {self._end(1)}{where}"

    def _end(self, which: int) -> str:
        address, port = ((self.src, self.sport), (self.dst, self.dport))[which]
        if self.l4_proto not in _NAMES:
            return address
        return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def is_final(steps: tuple[object, ...]) -> bool:
    """Whether these steps cannot be taken back, not one of them."""
    return bool(steps) and all(isinstance(step, DeleteConnection) for step in steps)
