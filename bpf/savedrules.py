"""What one rule of iptables-legacy does to packets of established connections, as iptables-save prints it.

Pure. The same as expressions.py for nftables.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from bpf.judging import ABSENT_MATCHES, PLAIN_MATCHES, PLAIN_TARGETS, ChainName, Rule, flags_match
from bpf.rulefacts import ALL_BITS

# It changes packets, and none of a connection's middle: see saved_rule.
_OPENING_TARGETS = frozenset({"TCPMSS"})


def saved_rule(text: str, ct_state: str, chains: frozenset[str], table: ChainName, mask: int) -> Rule:
    """One rule of iptables-legacy, as iptables-save prints it (`-A CHAIN ...`); `table` is (backend,
    table, "")."""
    words = _words(text)
    matches = [words[at + 1] for at, word in enumerate(words[:-1]) if word in ("-m", "--match")]
    target = next((words[at + 1] for at, word in enumerate(words[:-1]) if word in ("-j", "-g")), "")
    judges = next((each for each in matches if each not in PLAIN_MATCHES | ABSENT_MATCHES), "")
    known = target in PLAIN_TARGETS or target in chains or not target
    if not judges and not known:
        judges = f"target {target}"
    if target == "CT" and not judges and {"--zone", "--zone-orig", "--zone-reply", "--timeout"} & set(words):
        judges = "it sets the conntrack zone or a time-out policy"
    flags = _needed_flags(words)
    translated = not ct_state.startswith("!") and bool({"snat", "dnat"} & set(ct_state.split(",")))
    opening = flags == "never"
    if target in _OPENING_TARGETS and not opening:
        judges = f"target {target}"
    judges = judges or _options_judge(words, flags)
    established = _has_state(ct_state, "established")
    part = (established or translated) and not opening and not _is_of_other_protocol(words)
    part = part and (bool(judges) or ABSENT_MATCHES.isdisjoint(matches))
    rest = list(_without_state(words[2:]))
    simple = all(word in ("-m", "conntrack", "state") for word in rest) and rest.count("-m") < 2
    verdict = {"ACCEPT": "accept", "DROP": "drop", "RETURN": "return"}.get(target, "")
    if target in chains:
        verdict = "goto" if "-g" in words else "jump"
    return Rule(
        text,
        judges,
        part,
        always=simple and part and established,
        verdict=verdict,
        targets=((*table[:2], target),) if target in chains else (),
        marks=("CONNMARK" in words or "connmark" in matches) and _uses(words, mask),
        reads_mark="connmark" in matches,
        link_in=_named_link(words, "-i"),
        link_out=_named_link(words, "-o"),
        reads_mac="mac" in matches,
        reads_invalid=not established and _has_state(ct_state, "invalid"),
    )


# What is written behind these is anything, an option's name as well.
_FREE_TEXT = frozenset(
    {"--comment", "--log-prefix", "--nflog-prefix", "--string", "--hex-string", "--helper", "--name"}
)


def _words(text: str) -> list[str]:
    """The words of a rule; a text that somebody made up is "TEXT"."""
    words = shlex.split(text)
    return [
        "TEXT" if before in _FREE_TEXT else word for before, word in zip(["", *words], words, strict=False)
    ]


def _named_link(words: Sequence[str], option: str) -> str:
    """The link that `-i` or `-o` names, with "*" for iptables' "+" at its end; "" where none is, or it is
    negated."""
    if option not in words[2:]:
        return ""
    at = words.index(option, 2)
    name = words[at + 1]
    return "" if words[at - 1] == "!" else f"{name[:-1]}*" if name.endswith("+") else name


_JUDGING_OPTIONS = {
    "--ctexpire": "it looks at time-outs of connections",
    "--ctstatus": "it looks at what becomes of connections",
    "--tcp-option": "it looks at TCP options",
}


def _options_judge(words: Sequence[str], flags: str) -> str:
    """What options of matches that are plain otherwise look at in single packets, "" for nothing."""
    if flags == "sometimes":
        return "it looks at TCP flags"
    return next((_JUDGING_OPTIONS[word] for word in words if word in _JUDGING_OPTIONS), "")


def _needed_flags(words: Sequence[str]) -> str:
    """Whether `--tcp-flags MASK COMP` and `--syn`, however often, let established packets match, as
    flags_match() says it."""
    found = set()
    for at, word in enumerate(words):
        is_negated = words[at - 1] == "!"
        if word == "--syn":
            found.add(flags_match(_flags("FIN,SYN,RST,ACK"), _flags("SYN"), is_negated))
        elif word == "--tcp-flags":
            found.add(flags_match(_flags(words[at + 1]), _flags(words[at + 2]), is_negated))
    return next((each for each in ("never", "sometimes") if each in found), "always")


def _flags(names: str) -> int:
    numbers = {"FIN": 1, "SYN": 2, "RST": 4, "PSH": 8, "ACK": 16, "URG": 32, "ALL": 63, "NONE": 0}
    return sum(numbers[each] for each in names.split(","))


def _is_of_other_protocol(words: Sequence[str]) -> bool:
    """Whether `-p` leaves neither TCP nor UDP."""
    if "-p" not in words[2:]:
        return False
    at = words.index("-p", 2)
    return words[at - 1] != "!" and words[at + 1] not in ("tcp", "udp", "all", "0", "6", "17")


def _has_state(ct_state: str, which: str) -> bool:
    """Whether packets of that state match: "established", or "invalid"."""
    if not ct_state:
        return True
    return (which in ct_state.lstrip("!").split(",")) != ct_state.startswith("!")


def _without_state(words: Sequence[str]) -> Iterator[str]:
    """The words of a rule without its state and its target."""
    skip = 0
    for word in words:
        if skip:
            skip -= 1
        elif word in ("-j", "-g", "--ctstate", "--state"):
            skip = 1
        else:
            yield word


def _uses(words: Sequence[str], mask: int) -> bool:
    """Whether `-m connmark` or `-j CONNMARK` uses bits of the ct mark that are ours; without a mask they use
    all. What is set or saved changes bits outside the mask as well."""
    part, used = "", 0
    copies = {"--save-mark", "--restore-mark"} & set(words)
    has_mask = not copies or bool({"--ctmask", "--mask"} & set(words))
    for word, following in zip(words, (*words[1:], ""), strict=True):
        part = following if word in ("-m", "-j") else part
        if part not in ("connmark", "CONNMARK") or (word == "--nfmask" and "--save-mark" not in words):
            continue
        try:
            used |= _bits(word, following)
        except ValueError:
            return True
    return bool(used & mask) or not has_mask


def _bits(option: str, value: str) -> int:
    """The bits of the ct mark that an option of connmark or CONNMARK uses."""
    number, _, mask = value.partition("/")
    if option in ("--nfmask", "--ctmask", "--mask"):
        return int(number, 0)
    if option == "--mark":
        return int(mask, 0) if mask else ALL_BITS
    if option in ("--set-mark", "--set-xmark") and mask:
        return int(number, 0) | int(mask, 0)
    return ALL_BITS if option.endswith("-mark") and option not in ("--save-mark", "--restore-mark") else 0
