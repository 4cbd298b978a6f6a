"""The generations of the rules: which one may be forwarded now, and when none may."""

from __future__ import annotations

from collections.abc import Iterator

from bpf import hooks, layout
from bpf.ct_marks import GENERATIONS, SHIFT, MarkChain, clear_generation, field_mask, hand_back
from bpf.maps import Tables
from bpf.preconditions import Obstacles, has_ipsec_policies
from bpf.rulewatch import fingerprint

_AHEAD = 8  # generations whose marks are cleared before their time


class Gate:
    """Closed at first; `reasons` say what keeps it closed, `found` what was found in the rules last. `strict`
    keeps it closed for rules about invalid packets as well."""

    def __init__(self, tables: Tables, strict: bool = False) -> None:
        self._tables = tables
        self.strict = strict
        self._chain: MarkChain | None = None
        self._generation = 0
        self._used: set[int] = set()
        self.reasons: tuple[str, ...] = ()
        self.found = Obstacles()
        self._silent = self._read_silent()

    def pause(self) -> None:
        """Nothing is forwarded from here on."""
        if self._tables.config["generation"]:
            self._tables.config["generation"] = 0
            self._tables.ask_again()

    def settle(self, found: Obstacles) -> None:
        """The rules stand still: forward what passes them from now on, unless something stands in the way."""
        self.found, self.reasons = found, (*found.reasons, *self._strict_reasons(found))
        self._silent = self._read_silent()
        self._tables.set_flag(layout.READS_CT_MARKS, found.reads_marks)
        try:
            if found.marks_taken:
                self._leave_marks()
            elif not self.reasons:
                self._next()
        except OSError as error:
            self.reasons = (_not_written(error),)

    def _strict_reasons(self, found: Obstacles) -> Iterator[str]:
        for rule in found.invalid if self.strict else ():
            yield f"{rule}: it is about invalid packets, which the fast path does not look for (--strict)"

    def admit_anew(self) -> None:
        """The rules stand still, but what they look at beside the packet changed (a link's name or group, a
        route, where an address is): every connection passes them once more, without a pause."""
        if not self._tables.config["generation"]:
            return  # it is paused: settling will do it
        try:
            self._next()
        except OSError as error:
            self.pause()
            self.reasons = (_not_written(error),)

    def prepare(self) -> bool:
        """Clear the marks of one of the generations to come, so that it need not pause for that; whether
        there are more to clear."""
        used = [each for each in map(self._following, range(_AHEAD)) if each in self._used]
        if not used:
            return False
        try:
            clear_generation(used[0], SHIFT)
        except OSError:
            return False  # where it must be, the kernel is asked again
        self._used.discard(used[0])
        return len(used) > 1

    def _following(self, after: int = 0) -> int:
        """The next generation, or one that many later."""
        return (self._generation + after) % GENERATIONS + 1

    def _next(self) -> None:
        following = self._following()
        if self._chain is None:
            hand_back(field_mask())  # whatever stands there is not ours, or of long ago
            self._chain, self._used = MarkChain(), set()
        if following in self._used:
            self.pause()
            clear_generation(following, SHIFT)
        self._chain.write(following)
        self._used.add(following)
        self._generation = following
        self._tables.config["generation"] = following
        self._tables.ask_again()

    def _leave_marks(self) -> None:
        """The bits are somebody else's: take back what we wrote."""
        if self._chain is not None:
            self.close()
            hand_back(field_mask())

    @property
    def port(self) -> int:
        """The port of the socket that changes the rules for us, 0 before the first change."""
        return self._chain.port if self._chain else 0

    def has_changed_silently(self) -> bool:
        """Whether something changed of which no event tells: iptables-legacy, other users of hooks."""
        before, self._silent = self._silent, self._read_silent()
        return self._silent != before

    def _read_silent(self) -> tuple[object, ...]:
        return fingerprint(), has_ipsec_policies(), hooks.strangers()

    def close(self) -> None:
        """The chain is gone afterwards."""
        if self._chain is not None:
            self._chain.close()
            self._chain = None


def _not_written(error: OSError) -> str:
    return f"the marks cannot be written: {error.strerror}"
