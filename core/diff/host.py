"""What concerns the host as a whole: forwarding switches, full conntrack tables, problems."""

from __future__ import annotations

from core.diff.told import Told, in_both
from core.model import Conntrack, Problem, Ref, Snapshot, namespace_ref

# Shares of nf_conntrack_max; two of them, so that a table near one does not come and go.
NEARLY_FULL = 0.9
ROOM_AGAIN = 0.7

ProblemKey = tuple[str, str, int | None]


def tell_sysctls(told: Told) -> None:
    """Tell which of the kernel's forwarding switches were turned."""
    old, new = told.old.snapshot.host.sysctls, told.new.snapshot.host.sysctls
    if old is new or not old:
        return
    for name, value in new.items():
        if old.get(name, value) != value and not name.endswith("_count"):
            words = f"{name} changed from {old[name]} to {value}"
            told.tell("changed", namespace_ref(told.new.host), words)


def tell_conntrack(told: Told) -> None:
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


def tell_problems(told: Told) -> None:
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


def _words(told: Told, problem: Problem) -> str:
    where = "" if problem.ns is None else f" in {told.place(problem.ns)}"
    return f"{problem.what}{where}{f' ({problem.why})' if problem.why else ''}"
