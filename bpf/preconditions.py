"""Check the preconditions of the fast path in this network namespace."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from bpf import hooks, rule_analysis
from bpf.connections import field_mask
from bpf.hostwatch import RuleChanges
from bpf.rule_analysis import ChainName, PacketLinks, RuleSet, SetName
from bpf.ruleset import RuleCache, read_rules, reread
from core.netlink.client import Netlink, attributes
from core.tools import ToolFailed

_XFRM = 6
_GET_SPD_INFO, _SPD_INFO = 0x25, 1
_MAX_REASONS = 20


@dataclass(frozen=True, slots=True)
class Preconditions:
    """Hold what was found in the rules and other parts of the host.

    - `reasons`: why nothing may be forwarded
    - `marks_in_use`: a rule uses our bits of the ct mark, so that they may not even be written
    - `bridge_rules`: there are rules for frames that conntrack never sees
    - `sets`: those that packets of established connections are looked up in; after a change of their elements
      these connections pass the rules once more
    - `maps`: those among them after whose changes the rules need another analysis; `jumps`: the chains that
      the analysis found for each
    - `expiring`: elements time out, which sends no event
    - `reads_marks`: a rule matches the ct mark of such connections
    - `invalid`: rules about packets that conntrack calls invalid; in strict mode they are reasons to pause,
      as the fast path checks neither checksums nor TCP windows
    - `of_tunnels`: why the kernel has to write and remove the outer headers of each packet of a tunnel
    """

    reasons: tuple[str, ...] = ()
    marks_in_use: bool = False
    bridge_rules: bool = False
    sets: frozenset[SetName] = frozenset()
    maps: frozenset[SetName] = frozenset()
    jumps: Mapping[SetName, frozenset[str]] = field(default_factory=dict)
    expiring: bool = False
    reads_marks: bool = False
    invalid: tuple[str, ...] = ()
    of_tunnels: tuple[str, ...] = ()

    def needs_analysis(self, changes: RuleChanges) -> bool:
        """Return whether the rules must be read and analysed again after these changes.

        A deleted element can remove a reason, too.
        """
        may_go = bool(self.reasons) and changes.affects(self.maps)
        return (
            changes.rules
            or bool(changes.chains)
            or may_go
            or any(
                name in self.maps and chain not in self.jumps.get(name, ())
                for name, chain in changes.verdict_changes
            )
        )


def read_preconditions(
    links: PacketLinks | None = None, read: Callable[[], RuleSet] = read_rules
) -> Preconditions:
    """Check all preconditions for packets on these links (None: any).

    `read` reads the rules.
    """
    try:
        rules = read()
    except ToolFailed as error:
        return Preconditions((str(error),), bridge_rules=True)
    except OSError as error:
        return Preconditions((f"can't read the rules: {error.strerror}",), bridge_rules=True)
    except (KeyError, IndexError, ValueError, struct.error) as error:
        why = f"can't parse the rules: {type(error).__name__}: {error}"
        return Preconditions((why,), marks_in_use=True, bridge_rules=True)
    users = rule_analysis.mark_users(rules)
    bits = f"bits 0x{field_mask():08x} of the ct mark"
    analysis = rule_analysis.analyse(rules, links)
    reasons = [f"{bits} are used by a rule: {user}" for user in users] + list(analysis.reasons)
    if has_ipsec_policies():
        reasons.append("IPsec policies (ip xfrm policy) apply to each packet")
    reasons += hooks.foreign_hooks()
    return Preconditions(
        tuple(reasons[:_MAX_REASONS]),
        bool(users),
        rules.has_bridge_rules(),
        analysis.sets,
        analysis.sets & rules.maps,
        _jumps(rules, analysis.sets & rules.maps),
        bool(analysis.sets & rules.expiring),
        analysis.reads_marks,
        analysis.invalid[:_MAX_REASONS],
        (*analysis.of_tunnels, *hooks.foreign_hooks_of_tunnels())[:_MAX_REASONS],
    )


def _jumps(rules: RuleSet, maps: frozenset[SetName]) -> dict[SetName, frozenset[str]]:
    """Return the chains that all rules which look up a map may jump to."""
    found: dict[SetName, frozenset[str]] = {}
    for chain_rules in rules.chains.values():
        for rule in chain_rules:
            for name in maps.intersection(rule.sets):
                chains = frozenset(target[2] for target in rule.targets)
                found[name] = found.get(name, chains) & chains
    return found


def has_ipsec_policies() -> bool:
    """Return whether there are IPsec policies (xfrm); a kernel without xfrm has none."""
    with suppress(OSError), Netlink(_XFRM) as kernel:
        for message in kernel.request(_GET_SPD_INFO, bytes(4)):
            counts = attributes(message.payload, 4).get(_SPD_INFO, b"")
            return any(struct.unpack_from(f"={len(counts) // 4}I", counts))
    return False


class RuleReader:
    """Read the rules on a thread, one reading at a time.

    Tens of thousands of rules take seconds, during which the lease must be renewed. If only some chains
    changed, only these are read: that must take less time than passes until the next change. The descriptor
    becomes readable when a reading is done. `duration`: seconds of CPU time of the last one.
    """

    def __init__(self) -> None:
        self._cache = RuleCache()
        self._rules: RuleSet | None = None  # of the last reading
        self._changed: set[ChainName] | None = None  # since then; None: all
        self._done = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._thread: threading.Thread | None = None
        self._result: Preconditions | Exception = Preconditions()
        self._restart = False
        self._links: PacketLinks | None = None
        self.duration = 0.0

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._done[0]

    @property
    def is_busy(self) -> bool:
        """Say whether a reading is under way, or its result wasn't taken yet."""
        return self._thread is not None

    @property
    def is_partial(self) -> bool:
        """Say whether the next reading is of some chains only."""
        return self._changed is not None

    def note_changes(self, changes: RuleChanges) -> None:
        """Remember changes for the next reading.

        Rules are parsed together with the verdicts in maps, so a change of these invalidates them.
        """
        if changes.rules or changes.verdicts:
            self.invalidate()
        elif self._changed is not None:
            self._changed |= changes.chains

    def invalidate(self) -> None:
        """Read all rules the next time."""
        self._changed = None

    def read_now(self, links: PacketLinks | None) -> Preconditions:
        """Read all rules, and wait for the result."""
        self._changed = set()
        return read_preconditions(links, lambda: self._read_changed(None))

    def start(self, links: PacketLinks | None) -> None:
        """Start to read the rules, for packets on these links.

        If a reading is under way, another one follows it.
        """
        self._links = links
        if self._thread is not None:
            self._restart = True
            return
        changed, self._changed = self._changed, set()
        self._thread = threading.Thread(target=self._read, args=(changed,), daemon=True)
        self._thread.start()

    def _read(self, changed: set[ChainName] | None) -> None:
        began = time.thread_time()
        try:
            self._result = read_preconditions(self._links, lambda: self._read_changed(changed))
        except Exception as error:
            self._result = error
        self.duration = time.thread_time() - began
        with suppress(OSError):
            os.write(self._done[1], b"\0")

    def _read_changed(self, changed: set[ChainName] | None) -> RuleSet:
        """Read the changed chains; after an error the next reading is complete."""
        before, self._rules = self._rules, None
        if before is None or changed is None:
            self._rules = read_rules(cache=self._cache)
        else:
            self._rules = reread(before, changed, self._cache)
        return self._rules

    def result(self) -> Preconditions | None:
        """Return the result, or None if another reading has started.

        Raises what the thread raised.
        """
        os.read(self._done[0], 64)
        if self._thread is not None:
            self._thread.join()
        self._thread = None
        if self._restart:
            self._restart = False
            self.start(self._links)
            return None
        if isinstance(self._result, Exception):
            raise self._result
        return self._result
