"""What is wrong, in the few words that a drawing has room for and in the sentences of a detail pane."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from core.diagnose import Finding, findings_of
from core.model import (
    Container,
    Link,
    LinkKey,
    Network,
    Problem,
    Ref,
    Snapshot,
    container_ref,
    link_ref,
    network_ref,
)
from core.text import safe
from core.topology import Topology
from tui.present import cells
from tui.present.cells import Line
from tui.present.rows import Cell, ListView, Section


def of_network(topology: Topology, network: Network) -> tuple[Cell, ...]:
    """What is wrong with a network: its bridge gone or off or in a storm, its subnet used
    twice, its way out shut."""
    ref = network_ref(network.id)
    found = (
        one for one in findings_of(topology, ref) if one.kind in ("bridge", "overlap", "storm", "forward")
    )
    return tuple(Cell(safe(_seen_from(topology, one, ref)), one.severity) for one in found)


def _seen_from(topology: Topology, finding: Finding, ref: Ref) -> str:
    """A finding's few words; of an overlap, the other side is named on either."""
    if finding.kind == "overlap" and finding.ref != ref:
        return f"overlaps {name_of(topology, finding.ref)}"
    return finding.short


def name_of(topology: Topology, ref: Ref) -> str:
    """What a person calls a thing that findings point at, verbatim."""
    if ref.kind == "network":
        network = topology.network(str(ref.key[0]))
        return network.name if network else "a network"
    if ref.kind == "container":
        container = topology.containers.get(":".join(map(str, ref.key)))
        return container.name if container else "a container"
    if ref.kind == "link":
        link = topology.snapshot.link((int(ref.key[0]), int(ref.key[1])))
        return f"{link.name} in {topology.label(link.ns)}" if link else "a link"
    return "the rule" if ref.kind == "nat" else topology.label(int(ref.key[0]))


def of_container(topology: Topology, container: Container, link: Link | None) -> tuple[Cell, ...]:
    """What is wrong with a container, and with the link that joins it to the network in question."""
    own = container_ref(container.runtime, container.id)
    wanted: dict[Ref, tuple[str, ...]] = {own: ("dead join", "dropped") if link else ("dead join",)}
    if link is not None:
        wanted[link_ref(link.key)] = ("link", "port", "mtu")
    found = (
        one
        for ref, kinds in wanted.items()
        for one in findings_of(topology, ref)
        if one.ref == ref and one.kind in kinds
    )
    return tuple(Cell(safe(one.short), one.severity) for one in sorted(found, key=_by_kind))


def _by_kind(finding: Finding) -> int:
    return ("dead join", "link", "port", "mtu", "dropped").index(finding.kind)


def attention(topology: Topology, ref: Ref) -> tuple[Section, ...]:
    """The section that opens a detail pane where something is wrong with the thing, or concerns it."""
    return cells.section("Attention", _lines(topology, ref))


def _lines(topology: Topology, ref: Ref) -> Iterator[Line]:
    for finding in findings_of(topology, ref):
        others = (one for one in (finding.ref, *finding.related) if one != ref)
        yield "", cells.text(finding.sentence, finding.severity), next(others, None)
        if finding.advice:
            yield "try", cells.text(finding.advice), None


def port_of(topology: Topology, container: Container, bridge: LinkKey) -> Link | None:
    """The container's link that is plugged into that bridge."""
    for link in topology.links_of(container):
        found = topology.bridge_of(link)
        if found is not None and found.key == bridge:
            return link
    return None


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
