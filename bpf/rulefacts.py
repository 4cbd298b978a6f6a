"""What is found out about one rule, whatever backend it is of."""

from __future__ import annotations

from bpf.judging import FIXED_STATUS, ChainName, Rule, flags_match

ALL_BITS = 0xFFFFFFFF
INVALID, ESTABLISHED = 1, 2  # NF_CT_STATE_INVALID_BIT, NF_CT_STATE_BIT(IP_CT_ESTABLISHED)


class RuleFacts:
    """A rule in the making; the fields are those of Rule. `looks_up_state`: the ct state was asked
    for in a way that isn't worked out. `conditional`: not every packet matches."""

    def __init__(self, chain: ChainName, mask: int) -> None:
        self.chain, self.mask = chain, mask
        self.judges = ""
        self.takes_part = True
        self.conditional = False
        self.verdict, self.targets = "", list[str]()
        self.looked_up = list[str]()
        self.reads_mark = False
        self.links = {"in": "", "out": ""}
        self.reads_mac = False
        self.reads_invalid = self.looks_up_state = False
        self.marks = False

    def rule(self, name: str) -> Rule:
        """What was found."""
        targets = tuple((*self.chain[:2], target) for target in dict.fromkeys(self.targets))
        return Rule(
            name,
            self.judges,
            self.takes_part,
            not self.conditional,
            self.verdict,
            targets,
            self.marks,
            tuple((*self.chain[:2], name) for name in self.looked_up),
            self.reads_mark,
            self.links["in"],
            self.links["out"],
            self.reads_mac,
            self.reads_invalid or (self.looks_up_state and self.verdict != "accept"),
        )

    def judge(self, what: str) -> None:
        """It looks at single packets, or changes them; the first reason counts."""
        self.judges = self.judges or what

    def take_mark(self, used: int) -> None:
        """It uses these bits of the ct mark."""
        if used & self.mask:
            self.marks = True

    def compare_state(self, number: int, negated: bool, mask: int = ALL_BITS, inverted: int = 0) -> None:
        """`(state & mask) != 0` is how a list of states is asked for, `state == number` one of them."""
        established, invalid = (each & mask ^ inverted for each in (ESTABLISHED, INVALID))
        if (established == number) == negated:
            self.takes_part = False
            self.reads_invalid |= (invalid == number) != negated

    def look_at_status(self, mask: int) -> None:
        """It looks at these bits of the ct status."""
        if mask & ~FIXED_STATUS:
            self.judge("it looks at what becomes of connections (ct status)")

    def compare_flags(self, mask: int, number: int, negated: bool) -> None:
        """It asks whether these TCP flags are, or are not, that number."""
        found = flags_match(mask, number, negated)
        if found == "never":
            self.takes_part = False
        elif found == "sometimes":
            self.judge("it looks at TCP flags")
