"""The generations of the rules: which one may be forwarded now, and when none may."""

from __future__ import annotations

from bpf import entries, legacy, marks, obstacles
from bpf.marks import MarkChain
from bpf.obstacles import Obstacles
from bpf.tables import Tables


class Gate:
    """Closed at first; `reasons` say what keeps it closed."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._chain: MarkChain | None = None
        self._generation = 0
        self._used: set[int] = set()
        self.reasons: tuple[str, ...] = ()
        self._silent = self._read_silent()

    def pause(self) -> None:
        """Nothing is forwarded from here on."""
        if self._tables.config["generation"]:
            self._tables.config["generation"] = 0
            self._tables.ask_again()

    def settle(self, found: Obstacles) -> None:
        """The rules stand still: forward what passes them from now on, unless something stands in the way."""
        self.reasons = found.reasons
        self._silent = self._read_silent()
        try:
            if found.marks_taken:
                self._leave_marks()
            elif not found.reasons:
                self._next()
        except OSError as error:
            self.reasons = (f"the marks cannot be written: {error.strerror}",)

    def _next(self) -> None:
        following = self._generation % marks.GENERATIONS + 1
        if self._chain is None:
            entries.hand_back(marks.field_mask())  # whatever stands there is not ours, or of long ago
            self._chain, self._used = MarkChain(), set()
        if following in self._used:
            entries.clear_generation(following, marks.SHIFT)
        self._chain.write(following)
        self._used.add(following)
        self._generation = following
        self._tables.config["generation"] = following
        self._tables.ask_again()

    def _leave_marks(self) -> None:
        """The bits are somebody else's: take back what we wrote."""
        if self._chain is not None:
            self.close()
            entries.hand_back(marks.field_mask())

    @property
    def port(self) -> int:
        """The port of the socket that changes the rules for us, 0 before the first change."""
        return self._chain.port if self._chain else 0

    def has_changed_silently(self) -> bool:
        """Whether something changed of which no event tells: iptables-legacy, IPsec policies."""
        before, self._silent = self._silent, self._read_silent()
        return self._silent != before

    def _read_silent(self) -> tuple[bytes, bool]:
        return legacy.fingerprint(), obstacles.has_ipsec_policies()

    def close(self) -> None:
        """The chain is gone afterwards."""
        if self._chain is not None:
            self._chain.close()
            self._chain = None
