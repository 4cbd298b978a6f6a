"""Format findings: short for the overview, as sentences for the details."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from core.diagnose import Finding, findings_of
from core.model import (
    Container,
    Link,
    LinkKey,
    Network,
    Part,
    Problem,
    Ref,
    Snapshot,
    container_ref,
    link_ref,
    namespace_ref,
    network_ref,
)
from core.model.finding import SEVERITIES
from core.text import safe
from core.topology import Topology
from tui.views import cells
from tui.views.cells import Line
from tui.views.rows import Cell, ListView, Section, Tone

_OF_NETWORKS = ("bridge", "overlap", "storm", "forward", "nat")


def tone_of(finding: Finding) -> Tone:
    """Return the tone that a finding is painted with."""
    return "accent" if finding.severity == "info" else finding.severity


def of_network(topology: Topology, network: Network) -> tuple[Cell, ...]:
    """Return the findings of a network: its bridge, its subnet, its uplink."""
    ref, bridge = network_ref(network.id), topology.bridge_link(network)
    found = [one for one in findings_of(topology, ref) if one.kind in _OF_NETWORKS]
    if bridge is not None:
        own = link_ref(bridge.key)
        found += [one for one in findings_of(topology, own) if one.ref == own]
    distinct = dict.fromkeys(found)
    return tuple(Cell(safe(_short_text(topology, one, ref)), tone_of(one)) for one in distinct)


def _short_text(topology: Topology, finding: Finding, ref: Ref) -> str:
    """Return a finding's short text; an overlap names the other side."""
    if finding.kind == "overlap" and finding.ref != ref:
        return f"overlaps {name_of(topology, finding.ref)}"
    return finding.short


def name_of(topology: Topology, ref: Ref) -> str:
    """Return the name of a finding's subject, verbatim."""
    if ref.kind == "network":
        network = topology.network(str(ref.key[0]))
        return network.name if network else "a network"
    if ref.kind == "container":
        container = topology.containers.get(":".join(map(str, ref.key)))
        return container.name if container else "a container"
    if ref.kind == "link":
        link = topology.snapshot.link((int(ref.key[0]), int(ref.key[1])))
        return f"{link.name} in {topology.label(link.ns)}" if link else "a link"
    if ref.kind == "nat":
        entry = topology.nat_entry(ref)
        return entry.name if entry else "a rule"
    return topology.label(int(ref.key[0]))


def of_container(topology: Topology, container: Container, link: Link | None) -> tuple[Cell, ...]:
    """Return the findings of a container, and of its link to the network."""
    own = container_ref(container.runtime, container.id)
    if link is None:
        found = [one for one in findings_of(topology, own) if one.ref == own and one.kind == "dead join"]
    else:
        peer = topology.peer(link)
        ends = [link_ref(end.key) for end in (link, peer) if end is not None]
        refs = (*ends, own, namespace_ref(container.netns or 0))
        found = [one for ref in refs for one in findings_of(topology, ref) if one.ref == ref]
    distinct = dict.fromkeys(sorted(found, key=lambda one: SEVERITIES.index(one.severity)))
    return tuple(Cell(safe(one.short), tone_of(one)) for one in distinct)


def findings_sections(topology: Topology, ref: Ref) -> tuple[Section, ...]:
    """Return the section with the findings of an object, for its details' top."""
    return cells.section("Findings", _lines(topology, ref))


def _lines(topology: Topology, ref: Ref) -> Iterator[Line]:
    repair = "F"  # it opens the first repair
    for finding in findings_of(topology, ref):
        others = (one for one in (finding.ref, *finding.related) if one != ref)
        yield "", cells.text(finding.sentence, tone_of(finding)), next(others, None)
        fix = finding.fix if finding.fix is not None and finding.fix.steps else None
        if fix is not None:
            yield repair, cells.text(fix.sentence, "accent"), None
            repair = "repair"
        if finding.advice and (fix is None or finding.advice != fix.sentence):
            yield "try", cells.text(finding.advice), None


def port_of(topology: Topology, container: Container, bridge: LinkKey) -> Link | None:
    """Return the container's link that is attached to that bridge."""
    for link in topology.links_of(container):
        found = topology.bridge_of(link)
        if found is not None and found.key == bridge:
            return link
    return None


_TO_ENTER = ("CAP_SYS_ADMIN", "CAP_SYS_PTRACE")
_AS_ROOT = "Try: run it as root (sudo vnet-tui); in a container, start that with --privileged."


def empty_text(view: ListView, snapshot: Snapshot) -> str:
    """Explain why the list of a view is empty: nothing exists, or it is out of sight."""
    parts = view.problem_parts
    lacking = snapshot.host.missing_capabilities if parts else ()
    if Part.DROPS in parts and (failed := _first(snapshot.problems, parts)):
        return failed
    if missing := [name for name in view.capabilities if name in lacking]:
        return f"Can't read this: it needs {_listed(missing)}. {_AS_ROOT}"
    if parts and (hidden := hidden_reason(snapshot)):
        return f"Nothing found in the namespaces that could be read. {hidden}"
    if failed := _first(snapshot.problems, parts):
        return failed
    unmade = _first(snapshot.problems, view.maker_parts)
    return f"{view.empty}\n{unmade}" if unmade else view.empty


def no_container_visible(snapshot: Snapshot) -> bool:
    """Return whether no container can be inspected; False until they are read."""
    if Part.CONTAINERS in snapshot.pending:
        return False
    return all(_is_hidden(snapshot, container) for container in snapshot.containers())


def _is_hidden(snapshot: Snapshot, container: Container) -> bool:
    """Return whether it runs and its network is unknown."""
    net = snapshot.nets.get(container.netns or 0)
    return container.state == "running" and (net is None or not net.links)


def hidden_reason(snapshot: Snapshot) -> str:
    """Return why other namespaces are out of sight, "" if they aren't."""
    missing = [name for name in _TO_ENTER if name in snapshot.host.missing_capabilities]
    if not missing:
        return ""
    return f"Reading other network namespaces needs {_listed(missing)}. {_AS_ROOT}"


def _first(problems: Iterable[Problem], parts: Iterable[str]) -> str:
    """Return the first problem of those parts as a sentence, "" without one."""
    wanted = frozenset(parts)
    for problem in problems:
        if problem.part in wanted:
            return safe(f"{problem.sentence[:1].upper()}{problem.sentence[1:]}.")
    return ""


def _listed(names: list[str]) -> str:
    return " and ".join(names)
