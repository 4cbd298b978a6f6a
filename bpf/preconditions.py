"""Looks for what stands in the fast path's way in this network namespace, and names it."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from bpf import hooks, rule_analysis
from bpf.ct_marks import field_mask
from bpf.rule_analysis import ChainName, Links, RuleSet, SetName
from bpf.ruleset import RuleCache, read_rules, reread
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
    users = rule_analysis.mark_users(rules)
    bits = f"bits 0x{field_mask():08x} of the ct mark"
    judged = rule_analysis.judge(rules, links)
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


# Reads the rules in a thread: tens of thousands take seconds, in which the lease must be renewed. Where
# only some chains changed, only these are read: a change of one must not take longer than it is until the
# next.


class RuleReading:
    """One reading at a time; its descriptor is readable when a reading is done. `took` are the seconds that
    the last one took."""

    def __init__(self) -> None:
        self._cache = RuleCache()
        self._rules: RuleSet | None = None  # as read last
        self._changed: set[ChainName] | None = None  # since then; None: anything may have
        self._done = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._thread: threading.Thread | None = None
        self._found: Obstacles | Exception = Obstacles()
        self._again = False
        self._links: Links | None = None
        self.took = 0.0

    def fileno(self) -> int:
        """What to wait for."""
        return self._done[0]

    @property
    def is_busy(self) -> bool:
        """Whether they are being read, or were and wait to be taken."""
        return self._thread is not None

    @property
    def is_short(self) -> bool:
        """Whether the next reading is of some chains alone."""
        return self._changed is not None

    def note(self, heard: Heard) -> None:
        """That changed. Rules are understood together with the verdicts in maps."""
        if heard.rules or heard.verdicts:
            self.forget()
        elif self._changed is not None:
            self._changed |= heard.chains

    def forget(self) -> None:
        """Anything may have changed."""
        self._changed = None

    def now(self, links: Links | None) -> Obstacles:
        """Read them all, and wait for it."""
        self._changed = set()
        return find(links, lambda: self._read_changed(None))

    def start(self, links: Links | None) -> None:
        """Read them from now on, for packets on these links; where they are being read already, once more
        after that."""
        self._links = links
        if self._thread is not None:
            self._again = True
            return
        changed, self._changed = self._changed, set()
        self._thread = threading.Thread(target=self._read, args=(changed,), daemon=True)
        self._thread.start()

    def _read(self, changed: set[ChainName] | None) -> None:
        began = time.thread_time()
        try:
            self._found = find(self._links, lambda: self._read_changed(changed))
        except Exception as error:
            self._found = error
        self.took = time.thread_time() - began
        with suppress(OSError):
            os.write(self._done[1], b"\0")

    def _read_changed(self, changed: set[ChainName] | None) -> RuleSet:
        """What could not be read is read whole the next time."""
        before, self._rules = self._rules, None
        if before is None or changed is None:
            self._rules = read_rules(cache=self._cache)
        else:
            self._rules = reread(before, changed, self._cache)
        return self._rules

    def take(self) -> Obstacles | None:
        """What was found; None where they are read once more. Raises what the thread came upon."""
        os.read(self._done[0], 64)
        if self._thread is not None:
            self._thread.join()
        self._thread = None
        if self._again:
            self._again = False
            self.start(self._links)
            return None
        if isinstance(self._found, Exception):
            raise self._found
        return self._found
