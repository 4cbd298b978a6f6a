"""Delete and add firewall rules of other programs, by nft(8) and iptables(8)."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.collect.iptables import read_iptables, rule_words
from core.collect.nft import read_rule_texts
from core.operations.base import Operation
from core.operations.executor import Executor, inside, run_holding_lock
from core.operations.values import HOST, NetnsTarget, recorded
from core.text import joined, quoted
from core.tools import ToolFailed, find_tool

_LONGEST = 120  # characters of a rule in a sentence

# Rules of a chain in their order, as (handle, text); handles are 0 for iptables.
Listed = list[tuple[int, str]]


class _RuleOperation(Operation):
    """An operation on the rule `rule`."""

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        def rule(self) -> AddFirewallRule: ...

    def affects(self) -> tuple[str, ...]:
        one = self.rule
        return (f"rules of {one.family} {one.table} in {one.place}",)


@recorded()
@dataclass(frozen=True, slots=True)
class AddFirewallRule(_RuleOperation):
    """Add a rule to a chain, with counters at 0.

    `backend` to `text` are those of core.model.FirewallRule. Its place is `number`, from 1 on; for nft,
    `after` and `before` are the handles of the rules beside it (0: none). With `at_end` it becomes the last
    rule. The chain then has `length` rules, `copies` of which are equal to it.
    """

    backend: str
    family: str
    table: str
    chain: str
    text: str
    place: NetnsTarget = HOST
    after: int = 0
    before: int = 0
    number: int = 1
    at_end: bool = False
    copies: int = 1
    length: int = 0

    @property
    def rule(self) -> AddFirewallRule:
        """The rule itself."""
        return self

    @property
    def is_nft(self) -> bool:
        """Whether nft(8) made it, and not iptables(8)."""
        return self.backend == "nft"

    def command(self) -> str:
        if self.is_nft:
            return self.place.inside(f"nft {quoted(self._adding(self.after, 0))}")
        return self.place.inside(joined(self._words("-A" if self.at_end else "-I", self.number)))

    def inverse(self) -> tuple[DeleteFirewallRule, ...]:
        return (DeleteFirewallRule(self),)

    def describe(self) -> str:
        return f"add {self.described}"

    @property
    def described(self) -> str:
        """Return the rule in short."""
        text = self.text if len(self.text) <= _LONGEST else self.text[: _LONGEST - 1] + "…"
        return f'the rule "{text}" of {self.family} {self.table} {self.chain} in {self.place}'

    def target_words(self) -> str:
        """Return the chain as nft(8) takes it."""
        return f"{self.family} {self.table} {self.chain}"

    def _adding(self, after: int, before: int) -> str:
        """Return the command of nft that adds it after or before a rule, else first."""
        where = f" position {after or before}" if after or before else ""
        verb = "add" if after or self.at_end else "insert"
        return f"{verb} rule {self.target_words()}{where} {self.text}"

    def _words(self, verb: str, number: int = 0) -> list[str]:
        """Return the command of iptables(8); a number is only for "-I"."""
        place = [str(number)] if verb == "-I" else []
        matches = [word for word, _ in rule_words(self.text)]
        return [self._tool(), "-t", self.table, verb, self.chain, *place, *matches]

    def _tool(self) -> str:
        program = "iptables" if self.family == "ip" else "ip6tables"
        return program + self.backend.removeprefix("iptables")

    # ---- execution, in the rule's namespace

    def listed(self) -> Listed:
        """Return the rules of the chain as they are now. Raises OSError."""
        try:
            with inside(self.place):
                if self.is_nft:
                    return read_rule_texts(self.family, self.table, self.chain)
                found = read_iptables(self.family, self.backend).rules
        except ToolFailed as error:
            raise OSError(errno.EIO, f"the chain {self.chain} can't be read: {error}") from error
        return [(0, one.text) for one in found if (one.table, one.chain) == (self.table, self.chain)]

    def copies_in(self, listed: Listed) -> int:
        """Return how many of these rules equal it."""
        return sum(text == self.text for _, text in listed)

    def execute(self, executor: Executor) -> None:
        listed = self.listed()
        if self.is_nft:
            executor.load_rules(self.place, self._beside(listed) + "\n")
        else:
            self.run("-A" if self.at_end else "-I", min(self.number, len(listed) + 1))

    def _beside(self, listed: Listed) -> str:
        """Return the command of nft for its place among the present rules. Raises OSError."""
        handles = {handle for handle, _ in listed}
        if self.at_end or (not self.after and not self.before):
            return self._adding(0, 0)
        if self.after in handles:
            return self._adding(self.after, 0)
        if self.before in handles:
            return self._adding(0, self.before)
        if not self.after:
            return self._adding(0, 0)
        if len(listed) + 1 == self.length:  # the rules beside it were deleted and added again
            return self._adding(listed[self.number - 2][0], 0)
        raise OSError(errno.EBUSY, "another program has replaced the rules beside it")

    def run(self, verb: str, number: int = 0) -> None:
        """Run iptables(8) on it. Raises OSError."""
        tool, *words = self._words(verb, number)
        found = find_tool(tool, tool.partition("-")[0]) or tool
        with inside(self.place):
            done = run_holding_lock([found, *self._waiting(), *words])
        if done.returncode:
            raise OSError(errno.EIO, (done.stderr or f"{found} ended with {done.returncode}").strip())

    def _waiting(self) -> list[str]:
        return ["-w", "10"] if self.backend == "iptables-legacy" else []

    # ---- after an interrupt

    def may_be_done(self, executor: Executor) -> bool:
        return self.copies_in(self.listed()) >= self.copies

    def remaining(self, executor: Executor, was_interrupted: bool) -> Operation:
        if was_interrupted and self.may_be_done(executor):
            raise FileExistsError(errno.EEXIST, "it exists already")
        return self


@recorded()
@dataclass(frozen=True, slots=True)
class DeleteFirewallRule(_RuleOperation):
    """Delete a rule; `rule` is its undo.

    `handle` is nft's, 0 if unknown: then it is the first rule of that text.
    """

    rule: AddFirewallRule
    handle: int = 0

    def command(self) -> str:
        rule = self.rule
        if not rule.is_nft:
            return rule.place.inside(joined(rule._words("-D")))
        return rule.place.inside(f"nft delete rule {rule.target_words()} handle {self.handle or 'HANDLE'}")

    def inverse(self) -> tuple[AddFirewallRule, ...]:
        return (self.rule,)

    def describe(self) -> str:
        return f"delete {self.rule.described}"

    def execute(self, executor: Executor) -> None:
        listed = self.rule.listed()
        if not self.rule.copies_in(listed):
            raise OSError(errno.ENOENT, "it no longer exists, or another program has changed it")
        if self.rule.is_nft:
            self._check_undo()
            words = f"delete rule {self.rule.target_words()} handle {self._present_handle(listed)}"
            executor.load_rules(self.rule.place, words + "\n")
        else:
            self.rule.run("-D")

    def _present_handle(self, listed: Listed) -> int:
        """Return the handle, or that of an equal rule, as after an undo of its deletion."""
        equal = [handle for handle, text in listed if text == self.rule.text]
        return self.handle if self.handle in equal else equal[-1 if self.rule.at_end else 0]

    def _check_undo(self) -> None:
        """Raise OSError if nft could not add the rule again."""
        if not find_tool("nft"):
            return
        with inside(self.rule.place):
            text = f"add rule {self.rule.target_words()} {self.rule.text}\n"
            done = run_holding_lock(["nft", "-c", "-f", "-"], text)
        if done.returncode:
            why = (done.stderr.strip().splitlines() or ["it was refused"])[0]
            raise OSError(errno.EOPNOTSUPP, f"nft couldn't add it again ({why})")

    def may_be_done(self, executor: Executor) -> bool:
        return self.rule.copies_in(self.rule.listed()) < self.rule.copies

    def remaining(self, executor: Executor, was_interrupted: bool) -> Operation:
        if was_interrupted and self.may_be_done(executor):
            raise FileNotFoundError(errno.ENOENT, "it no longer exists")
        return self
