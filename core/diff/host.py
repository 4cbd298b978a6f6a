"""What concerns the host as a whole: forwarding switches, full conntrack tables, problems."""

from __future__ import annotations

from core.diagnose import storm_words
from core.diff.change_list import ChangeList, in_both, missing_in
from core.model import Conntrack, Problem, Ref, Snapshot, Storm, link_ref, namespace_ref
from core.model.refs import LinkKey

# Shares of nf_conntrack_max; two of them, so that a table near one does not come and go.
NEARLY_FULL = 0.9
ROOM_AGAIN = 0.7

ProblemKey = tuple[str, str, int | None]


def tell_sysctls(told: ChangeList) -> None:
    """Tell which of the kernel's forwarding switches were turned."""
    old, new = told.old.snapshot.host.sysctls, told.new.snapshot.host.sysctls
    if old is new or not old:
        return
    for name, value in new.items():
        if old.get(name, value) != value and not name.endswith("_count"):
            words = f"{name} changed from {old[name]} to {value}"
            told.tell("changed", namespace_ref(told.new.host), words)


def tell_conntrack(told: ChangeList) -> None:
    """Tell when a conntrack table gets nearly full: a full one drops new connections."""
    for ns, old, new in in_both(told.old.snapshot.conntracks, told.new.snapshot.conntracks):
        before, after = _share(old), _share(new)
        count = f"{len(new.entries)} of {new.limit} entries"
        words = f"the conntrack table of {told.place(ns)}"
        if before < NEARLY_FULL <= after:
            told.tell("changed", namespace_ref(ns), f"{words} is nearly full: {count}")
        elif after < ROOM_AGAIN <= before:
            told.tell("changed", namespace_ref(ns), f"{words} has room again: {count}")


def _share(table: Conntrack) -> float:
    return len(table.entries) / table.limit if table.limit else 0.0


def tell_problems(told: ChangeList) -> None:
    """Tell which problems appeared and which are solved."""
    old, new = _problems(told.old.snapshot), _problems(told.new.snapshot)
    for key, problem in new.items():
        if key not in old:
            told.tell("added", _ref(problem), f"problem: {_words(told, problem)}")
    for key, problem in old.items():
        if key not in new and (problem.ns is None or problem.ns in told.new.snapshot.namespaces):
            told.tell("removed", _ref(problem), f"solved: {_words(told, problem)}")


def _problems(snapshot: Snapshot) -> dict[ProblemKey, Problem]:
    return {(each.part, each.what, each.ns): each for each in snapshot.problems}


def _ref(problem: Problem) -> Ref:
    key = (problem.part, problem.what) if problem.ns is None else (problem.part, problem.what, problem.ns)
    return Ref("problem", key)


def _words(told: ChangeList, problem: Problem) -> str:
    where = "" if problem.ns is None else f" in {told.place(problem.ns)}"
    return f"{problem.what}{where}{f' ({problem.why})' if problem.why else ''}"


def tell_namespaces(told: ChangeList) -> None:
    """Tell which namespaces are new, gone or renamed."""
    old, new = told.old.snapshot.namespaces, told.new.snapshot.namespaces
    if old is new:
        return
    for inode in missing_in(old, new):
        told.tell("added", namespace_ref(inode), f"namespace {told.place(inode)} appeared")
    for inode in missing_in(new, old):
        told.tell("removed", namespace_ref(inode), f"namespace {told.place(inode)} is gone")
    for inode in (inode for inode in new if inode in old):
        for name in missing_in(old[inode].names, new[inode].names):
            told.tell(
                "changed", namespace_ref(inode), f"namespace {told.old.label(inode)} got the name {name}"
            )
        for name in missing_in(new[inode].names, old[inode].names):
            told.tell("changed", namespace_ref(inode), f"namespace {told.place(inode)} lost the name {name}")


def tell_storms(told: ChangeList) -> None:
    """Tell of each storm that begins, and of each that is over."""
    old, new = told.old.snapshot, told.new.snapshot
    if old.storms is new.storms:
        return
    before, now = ({_key(storm) for storm in one.storms} for one in (old, new))
    for storm in new.storms:
        bridge = new.link((storm.ns, storm.ifindex))
        if bridge is not None and _key(storm) not in before:
            told.tell("added", link_ref(bridge.key), storm_words(storm, bridge))
    for storm in old.storms:
        bridge = old.link((storm.ns, storm.ifindex))
        if bridge is not None and _key(storm) not in now:
            told.tell("removed", link_ref(bridge.key), f"the storm of {storm.kind}s on {bridge.name} is over")


def _key(storm: Storm) -> tuple[LinkKey, str]:
    return LinkKey(storm.ns, storm.ifindex), storm.kind
