"""What an empty list says: what the view is about, or what kept it from being read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from core.model import Problem, Snapshot
from core.text import safe
from tui.present.rows import ListView

# The capabilities without which a view has nothing at all; the others miss only what lies in namespaces that
# cannot be entered.
_NEEDED: Mapping[str, tuple[str, ...]] = dict.fromkeys(
    ("nat", "conntrack", "flows"), ("CAP_NET_ADMIN", "CAP_SYS_ADMIN")
)
_TO_ENTER = ("CAP_SYS_ADMIN", "CAP_SYS_PTRACE")
_AS_ROOT = "Run it as root: sudo vnet-tui."
# The parts of a snapshot whose problems leave a view empty, and those that make only some of its things.
_PARTS: Mapping[str, tuple[str, ...]] = {
    "nat": ("nat",), "conntrack": ("conntrack",), "flows": ("conntrack",), "events": (), "fastpath": (),
}  # fmt: skip
_MAKERS: Mapping[str, tuple[str, ...]] = {
    "containers": ("docker", "podman"), "networks": ("docker", "podman"), "bridges": ("ovs",),
}  # fmt: skip


def empty_text(view: ListView, snapshot: Snapshot) -> str:
    """What the empty list of a view says; that nothing is there only where it could have been seen."""
    parts = _PARTS.get(view.name, ("namespaces", "links"))
    lacking = snapshot.host.missing_capabilities if parts else ()
    if missing := [name for name in _NEEDED.get(view.name, ()) if name in lacking]:
        return f"Cannot be read: needs {_listed(missing)}. {_AS_ROOT}"
    if missing := [name for name in _TO_ENTER if name in lacking]:
        where = "Nothing is there in what could be read; to look into the other network namespaces"
        return f"{where} needs {_listed(missing)}. {_AS_ROOT}"
    if failed := _first(snapshot.problems, parts):
        return f"Cannot be read: {failed}"
    unmade = _first(snapshot.problems, _MAKERS.get(view.name, ()))
    return f"{view.empty}\n{unmade}" if unmade else view.empty


def _first(problems: Iterable[Problem], parts: Iterable[str]) -> str:
    """The first problem of those parts in a sentence, "" where there is none."""
    wanted = frozenset(parts)
    for problem in problems:
        if problem.part in wanted:
            why = f" ({problem.why})" if problem.why else ""
            return safe(f"{problem.what}{why}." + (f" Try: {problem.try_}." if problem.try_ else ""))
    return ""


def _listed(names: list[str]) -> str:
    return " and ".join(names)
