"""Draw random rules, changes and connections, each about equally often."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

from tests.kernel.rule_fuzz import iptables
from tests.kernel.rule_fuzz.changes import CHANGES, Change
from tests.kernel.rule_fuzz.state import ROWS as NFT_ROWS
from tests.kernel.rule_fuzz.traffic import TCP, TRAFFIC_PATHS, UDP, Facts, Flow
from tests.kernel.rule_fuzz.vocabulary import Row

ROWS = (*NFT_ROWS, *iptables.ROWS)
# Base chains by the letters of Row.where: family ("" for any of IP's), type, hook, priority.
_HOOKS = {
    "p": [("", "filter", "prerouting", each) for each in (-150, 10, -350)],
    "f": [("", "filter", "forward", each) for each in (-10, 0, 10)],
    "o": [("", "filter", "postrouting", each) for each in (-10, 150, 2147483647)],
    "i": [("", "filter", "input", 0)],
    "r": [("", "filter", "prerouting", -300)],
    "n": [("", "nat", "prerouting", -101)],
    "N": [("", "nat", "postrouting", 99)],
    "4": [("ip", "filter", "prerouting", -150)],
    "I": [("netdev", "filter", "ingress device v-a", 0)],
    "B": [
        ("bridge", "filter", "forward", -200), ("bridge", "filter", "prerouting", -300),
        ("bridge", "filter", "input", -200), ("bridge", "filter", "postrouting", 0),
        ("bridge", "filter", "output", 0),
    ],
    "D": [
        ("netdev", "filter", "ingress device v-a", 0), ("netdev", "filter", "egress device up0", 0),
        ("inet", "filter", "ingress device up0", 0), ("netdev", "filter", "egress device v-a", 0),
        ("netdev", "filter", "ingress device docker0", 0),
    ],
}  # fmt: skip
_FAMILIES = {0: ("inet", "ip", "ip6", "inet"), 4: ("inet", "ip"), 6: ("inet", "ip6")}
# Matches that restrict a rule to a family.
_OF_FAMILY = {4: re.compile(r"\bip [a-z]|protocol ip "), 6: re.compile(r"\bip6 [a-z]|protocol ip6")}
# How packets reach a rule: the base chain's rules, and chains in between; {} is the rule.
_DIRECT = ("{}", "")
_REACHED = (
    _DIRECT,
    ("jump one", "chain two {{ {}; }}\nchain one {{ jump two; }}"),
    ("goto one", "chain one {{ {}; }}"),
    ('iifname vmap {{ "docker0" : jump one, "up0" : jump one, "br-two" : goto one }}', "chain one {{ {}; }}"),
    ("meta l4proto vmap {{ tcp : jump one, udp : goto one }}", "chain one {{ {}; }}"),
    (
        "jump one; {}",
        "chain two {{ }}\nchain one {{ meta l4proto vmap {{ tcp : goto two, udp : return }}; accept; }}",
    ),
)
_REACHED_BY_STATE = (
    ("ct state vmap {{ invalid : drop, * : jump one }}", "chain one {{ {}; }}"),
    ("ct state vmap @doors", "chain one {{ {}; }}\nmap doors {{ type ct_state : verdict; "
     "elements = {{ invalid : drop, * : jump one }}; }}"),
    ("ct state established jump one", "chain one {{ {}; }}"),
    ("ct state vmap {{ established : jump one, related : accept }}", "chain one {{ {}; }}"),
)  # fmt: skip
_VERDICTS = ("drop", "counter drop", "goto ended", "drop", "jump ended", "reject")
FAILED = "failed:"  # printed by a change's script before a command that was refused
_ENDED = "chain ended { drop; }"


class Shuffled[T]:
    """Draw items in random order, each once before any is repeated."""

    def __init__(self, dice: random.Random, items: Sequence[T]) -> None:
        self._dice, self._items = dice, tuple(items)
        self._left: list[T] = []

    def draw(self) -> T:
        """Return the next item."""
        if not self._left:
            self._left = list(self._items)
            self._dice.shuffle(self._left)
        return self._left.pop()


@dataclass(frozen=True, slots=True)
class Rule:
    """Scripts that add a rule and remove it; `table` is its nftables table."""

    row: Row
    put: str
    take: str
    table: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """Scripts that prepare, do and undo a change, and where; the rest as in Change."""

    name: str
    do: str
    back: str = ""
    before: str = ""
    facts: Facts = field(default_factory=Facts)
    loose: bool = False
    takes: float = 0.0

    @property
    def change(self) -> str:
        """Return the script that does the change and prints which command was refused."""
        return f"trap 'echo \"{FAILED} $BASH_COMMAND\"' ERR\n{self.do}"


@dataclass(frozen=True, slots=True)
class Case:
    """Permanent rules, rules that are added later, changes in turn, and connections."""

    seed: int
    number: int
    rules: tuple[Rule, ...]
    late: tuple[Rule, ...]
    steps: tuple[Step, ...]
    flows: tuple[Flow, ...]

    @property
    def setup(self) -> str:
        """Return the script that runs before the connections."""
        return "\n".join(("set -e", *(rule.put for rule in self.rules)))

    @property
    def takes(self) -> float:
        """Return the seconds without packets after that."""
        return max((_silence(rule) for rule in self.rules), default=0.0)

    @property
    def clean(self) -> str:
        """Return the script that removes the rules."""
        return "\n".join((*(rule.take for rule in (*self.late, *self.rules)), "conntrack -F"))

    @property
    def is_loose(self) -> bool:
        """Return whether the kernel itself gives different results under its rules."""
        return any(rule.row.loose for rule in (*self.rules, *self.late))

    @property
    def name(self) -> str:
        """Return what it is about, on one line."""
        rules = ", ".join(rule.row.name for rule in self.rules)
        return f"{rules or 'no rule'} / {'; '.join(step.name for step in self.steps)}"

    def __str__(self) -> str:
        """Return the commands, to type on a host as tests/kernel/fastlab.py builds it."""
        steps = (
            f"--- {step.name}\n{step.before}\n{step.do}\n--- packets: {step.facts}\n{step.back}"
            for step in self.steps
        )
        return "\n".join((f"seed {self.seed}, case {self.number}: {self.name}", self.setup, *steps))


def cases(seed: int) -> Iterator[Case]:
    """Yield all cases of a seed, without end."""
    builder = _CaseBuilder(seed)
    for number in count(1):
        yield builder.case(number)


def all_rules(seed: int) -> Iterator[Rule]:
    """Yield a rule for each text of each row."""
    builder = _CaseBuilder(seed)
    for row in ROWS:
        yield from (builder.rule(row, 1) for _ in row.texts)


def _family_of(text: str) -> int:
    found = [family for family, words in _OF_FAMILY.items() if words.search(text)]
    return found[0] if len(found) == 1 else 0


def _bound(change: Change, table: str) -> Change:
    """Return the change for something in that table."""
    return replace(change, do=change.do.replace("$T", table), undo=change.undo.replace("$T", table))


def _adding_step(rule: Rule) -> Step:
    return Step(f"comes: {rule.row.name}", rule.put, takes=_silence(rule))


def _removing_step(rule: Rule) -> Step:
    return Step(f"goes: {rule.row.name}", rule.take, takes=_silence(rule))


def _silence(rule: Rule) -> float:
    """Return the seconds without packets that legacy iptables rules need.

    They are checked once a second. If their effect on connections, or their counts, are permanent, no packet
    may come before.
    """
    lasts = rule.row.whole or rule.row.permanent_only or "ctmark" in rule.row.reads
    return 1.5 if lasts and "-legacy" in rule.put else 0.0


class _CaseBuilder:
    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.dice = random.Random(seed)
        self._rows = Shuffled(self.dice, ROWS)
        self._changes = Shuffled(self.dice, CHANGES)
        self._sizes = Shuffled(self.dice, (1, 1, 1, 1, 1, 2, 3))
        self._lengths = Shuffled(self.dice, (2, 3, 4))
        self._is_matched = Shuffled(self.dice, (True, True, True, False))
        self._is_taken = Shuffled(self.dice, (True, False, False, False))
        self._is_late = Shuffled(self.dice, (False, False, False, True))
        self._is_second = Shuffled(self.dice, (False, False, False, True))
        self._verdicts = Shuffled(self.dice, _VERDICTS)
        self._reached = Shuffled(self.dice, (*_REACHED, *_REACHED_BY_STATE))
        self._without_state = Shuffled(self.dice, _REACHED)
        self._protocols = Shuffled(self.dice, (TCP, UDP))
        self._hooks = {letter: Shuffled(self.dice, hooks) for letter, hooks in _HOOKS.items()}
        self._letters = {row.name: Shuffled(self.dice, row.where) for row in ROWS}
        self._texts = {row.name: Shuffled(self.dice, row.texts) for row in ROWS}
        self._chains = {row.name: Shuffled(self.dice, row.chains) for row in ROWS if row.chains}
        self._tools = Shuffled(self.dice, ("", "-legacy"))
        self._used: Counter[str] = Counter()

    def case(self, number: int) -> Case:
        rules = [self.rule(self._rows.draw(), place + 1) for place in range(self._sizes.draw())]
        late = tuple(rule for rule in rules[:1] if self._is_late.draw() and not rule.row.permanent_only)
        steps = [_adding_step(rule) for rule in late]
        seen: set[str] = set()
        steps += [self._step(rules, seen) for _ in range(self._lengths.draw() - len(late))]
        steps += [
            _removing_step(rule)
            for rule in rules[:1]
            if self._is_taken.draw() and not rule.row.permanent_only
        ]
        permanent = tuple(rule for rule in rules if rule not in late)
        return Case(self.seed, number, permanent, late, tuple(steps), self._flows(number))

    def _step(self, rules: list[Rule], seen: set[str]) -> Step:
        """Draw one change, or two at once, of what a rule matches or any.

        Changes in `seen` have been used in this case.
        """
        changes = [self._matched(rules, seen) if self._is_matched.draw() else None]
        if changes[0] is None or self._is_second.draw():
            changes.append(self._changes.draw())
        chosen = {each.name: each for each in changes if each is not None}.values()
        self._used.update(each.name for each in chosen)
        seen.update(each.name for each in chosen)
        facts = Facts()
        for each in chosen:
            facts |= each.facts
        return Step(
            ", ".join(each.name for each in chosen),
            "\n".join(each.do for each in chosen),
            "\n".join(each.undo for each in reversed(chosen)),
            "\n".join(each.before for each in chosen if each.before),
            facts,
            any(each.loose for each in chosen),
            max(each.takes for each in chosen),
        )

    def _matched(self, rules: list[Rule], seen: set[str]) -> Change | None:
        """Return the least used change of what a rule matches."""
        fitting = []
        for rule in rules:
            fitting += [_bound(each, rule.table) for each in rule.row.own]
            fitting += [each for each in CHANGES if each.touches & rule.row.reads]
        fitting = [each for each in fitting if each.name not in seen]
        self.dice.shuffle(fitting)
        return min(fitting, key=lambda each: self._used[each.name], default=None)

    def _flows(self, number: int) -> tuple[Flow, ...]:
        paths = [(path, family) for path in TRAFFIC_PATHS for family in (4, 6)]
        base = 5000 + number * len(paths) % 900
        return tuple(
            Flow(base + place, path, family, self._protocols.draw(), base + place)
            for place, (path, family) in enumerate(paths)
        )

    def rule(self, row: Row, place: int) -> Rule:
        return self._nft(row, place) if row.tool == "nft" else self._iptables(row)

    def _nft(self, row: Row, place: int) -> Rule:
        letter = self._letters[row.name].draw()
        family, kind, hook, priority = self._hooks[letter].draw()
        text = self._texts[row.name].draw()
        family = family or self.dice.choice(_FAMILIES[row.family or _family_of(text)])
        ended = ""
        if not row.whole:
            verdict = self._verdicts.draw()
            verdict = "drop" if verdict == "reject" and letter not in "f" else verdict
            ended = _ENDED if "ended" in verdict else ""
            text = f"{text} {verdict}"
        knows_state = letter in "fo" or (letter == "p" and priority > -200)
        shuffled = self._reached if knows_state else self._without_state
        base, chains = _DIRECT if kind == "nat" or letter in "DI" else shuffled.draw()
        table = f"{family} fuzz{place}"
        body = (
            f"table {table} {{\n{row.objects}\n{ended}\n{chains.format(text)}\n"
            f"chain it {{ type {kind} hook {hook} priority {priority}; {base.format(text)}; }}\n}}"
        )
        put = f"nft -f - <<'END'\n{body}\nEND"
        return Rule(row, put, f"nft delete table {table}", table)

    def _iptables(self, row: Row) -> Rule:
        tool = self._tools.draw()
        table, chain = self._chains[row.name].draw().split()
        text = self._texts[row.name].draw() + ("" if row.whole else " -j DROP")
        names = {4: ("iptables",), 6: ("ip6tables",), 0: ("iptables", "ip6tables")}[row.family]
        commands = {
            verb: [f"{name}{tool} -w -t {table} -{verb} {chain} {text}" for name in names] for verb in "ID"
        }
        return Rule(row, "\n".join((row.objects or "true", *commands["I"])), "\n".join(commands["D"]))
