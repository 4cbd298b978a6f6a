"""What an empty list says: what the view is about, or what kept it from being read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from core.model import Container, Problem, Snapshot
from core.text import safe
from tui.present.rows import ListView

# The capabilities without which a view has nothing at all; the others miss only what lies in namespaces that
# cannot be entered.
_NEEDED: Mapping[str, tuple[str, ...]] = dict.fromkeys(
    ("nat", "conntrack", "flows"), ("CAP_NET_ADMIN", "CAP_SYS_ADMIN")
)
_TO_ENTER = ("CAP_SYS_ADMIN", "CAP_SYS_PTRACE")
_AS_ROOT = "Run it as root (sudo vnet-tui); in a container, start that with --privileged."
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
    if parts and (hidden := out_of_sight(snapshot)):
        return f"Nothing is there in what could be read; {hidden}"
    if failed := _first(snapshot.problems, parts):
        return f"Cannot be read: {failed}"
    unmade = _first(snapshot.problems, _MAKERS.get(view.name, ()))
    return f"{view.empty}\n{unmade}" if unmade else view.empty


def nothing_to_see(snapshot: Snapshot) -> bool:
    """Whether there is no container, or none that could be looked into; False until they were read."""
    if "containers" in snapshot.pending:
        return False
    return all(_is_hidden(snapshot, container) for container in snapshot.containers())


def _is_hidden(snapshot: Snapshot, container: Container) -> bool:
    """Whether it runs, and nothing is known of its network."""
    net = snapshot.nets.get(container.netns or 0)
    return container.state == "running" and (net is None or not net.links)


def out_of_sight(snapshot: Snapshot) -> str:
    """What keeps other namespaces out of sight, "" where nothing does."""
    missing = [name for name in _TO_ENTER if name in snapshot.host.missing_capabilities]
    if not missing:
        return ""
    return f"to look into the other network namespaces needs {_listed(missing)}. {_AS_ROOT}"


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
