"""Looks for what stands in the fast path's way in this network namespace, and names it."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from bpf import hooks, judging, marks
from bpf.judging import Links, RuleSet, SetName
from bpf.ruleset import read_rules
from bpf.rulewatch import Heard
from core.netlink.client import Netlink, attributes
from core.tools import ToolFailed

_XFRM = 6
_GET_SPD_INFO, _SPD_INFO = 0x25, 1
_MOST = 20  # reasons told


@dataclass(frozen=True, slots=True)
class Obstacles:
    """`reasons` why nothing may be forwarded, in words; `marks_taken` where the bits of the ct mark are
    another's, so that none may even be written; `bridge_rules` whether there are rules for frames that
    conntrack never sees. `sets` are those that packets of established connections are looked up in: after a
    change of their elements these pass the rules anew; `maps` are those among them after whose changes the
    rules may judge otherwise, and `jumps` the chains that they were judged with; `expiring` says that
    elements time out, of which there is no event. `reads_marks`: a rule looks at the ct mark of such
    connections. `invalid` are the rules about what conntrack calls invalid: the fast path checks neither
    checksums nor TCP windows, so that they stand in its way where it is strict."""

    reasons: tuple[str, ...] = ()
    marks_taken: bool = False
    bridge_rules: bool = False
    sets: frozenset[SetName] = frozenset()
    maps: frozenset[SetName] = frozenset()
    jumps: Mapping[SetName, frozenset[str]] = field(default_factory=dict)
    expiring: bool = False
    reads_marks: bool = False
    invalid: tuple[str, ...] = ()

    def turns(self, heard: Heard) -> bool:
        """Whether the rules may have to be judged again, and not only passed: what goes may take an obstacle
        away."""
        may_go = bool(self.reasons) and heard.concerns(self.maps)
        return (
            heard.rules
            or bool(heard.chains)
            or may_go
            or any(name in self.maps and chain not in self.jumps.get(name, ()) for name, chain in heard.turns)
        )


def find(links: Links | None = None, read: Callable[[], RuleSet] = read_rules) -> Obstacles:
    """All that stands in the way now of packets that come in and leave by these links (None: by any), with
    the rules as `read` reads them."""
    try:
        rules = read()
    except ToolFailed as error:
        return Obstacles((f"the rules cannot be told: {error.what}: {error.why}",), bridge_rules=True)
    except OSError as error:
        return Obstacles((f"the rules cannot be read: {error.strerror}",), bridge_rules=True)
    except (KeyError, IndexError, ValueError, struct.error) as error:
        why = f"the rules were not understood ({type(error).__name__}: {error})"
        return Obstacles((why,), marks_taken=True, bridge_rules=True)
    users = judging.mark_users(rules)
    bits = f"bits 0x{marks.field_mask():08x} of the ct mark"
    judged = judging.judge(rules, links)
    reasons = [f"{bits} are used by a rule: {user}" for user in users] + list(judged.reasons)
    if has_ipsec_policies():
        reasons.append("IPsec policies (ip xfrm policy) decide about packets one by one")
    reasons += hooks.strangers()
    return Obstacles(
        tuple(reasons[:_MOST]),
        bool(users),
        rules.has_bridge_rules(),
        judged.sets,
        judged.sets & rules.maps,
        _jumps(rules, judged.sets & rules.maps),
        bool(judged.sets & rules.expiring),
        judged.reads_marks,
        judged.invalid[:_MOST],
    )


def _jumps(rules: RuleSet, maps: frozenset[SetName]) -> dict[SetName, frozenset[str]]:
    """The chains that all rules which look up a map may come to."""
    found: dict[SetName, frozenset[str]] = {}
    for held in rules.chains.values():
        for rule in held:
            for name in maps.intersection(rule.sets):
                chains = frozenset(target[2] for target in rule.targets)
                found[name] = found.get(name, chains) & chains
    return found


def has_ipsec_policies() -> bool:
    """Whether there is any policy of IPsec (xfrm); a kernel without has none."""
    with suppress(OSError), Netlink(_XFRM) as kernel:
        for message in kernel.request(_GET_SPD_INFO, bytes(4)):
            counts = attributes(message.payload, 4).get(_SPD_INFO, b"")
            return any(struct.unpack_from(f"={len(counts) // 4}I", counts))
    return False
