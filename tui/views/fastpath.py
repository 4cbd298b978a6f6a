"""The fast path's view: verdicts in total and by link, and requirements."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from core.model import Change, FastPath, FastPort, Link, Ref, Requirement
from core.model.fastpath import ALL, FAST
from core.text import safe
from core.topology import Topology
from tui.views import cells, formatting
from tui.views.cells import Line
from tui.views.lists import ListRows
from tui.views.rows import Cell, Column, Detail, ListView, Row, Section, Tone, ViewContext

COLUMNS = (
    Column("name", "link / verdict", 25),
    Column("state", "", 9),
    Column("packets", "packets", 8, align="right"),
    Column("share", "share", 6, align="right", priority=1),
    Column("words", "meaning", 18, grow=3),
)
_COLUMNS_OF_REQUIREMENTS = (
    Column("name", "requirement", 25, grow=1),
    Column("state", "met", 9),
    Column("words", "found", 22, grow=2),
)
# Long names of requirements, as the table has room for them; the details pane shows them whole.
_SHORT_NAMES = {
    "CAP_NET_ADMIN, CAP_NET_RAW and CAP_SYS_ADMIN": "capabilities",
    "no kernel lockdown for confidentiality": "no kernel lockdown",
    "the kernel's type information (BTF)": "kernel BTF",
    "headers of the C library": "C library headers",
}
STATES = {
    "off": "off", "on": "on", "paused": "paused", "changing": "on (the rules are changing)",
    "silent": "process doesn't answer", "hidden": "unknown (only root can read it)",
    "unknown": "unknown",
}  # fmt: skip
_TONES: Mapping[str, Tone] = {"on": "ok", "changing": "ok", "paused": "warn", "silent": "bad", "off": "dim"}
COST_IS = "the program's average run time, including packets that it leaves to the kernel"
ENDS_WITH = "with the dashboard or agent that started it"
_NOT_STORED = "Files and recordings don't contain the fast path's state; flows show their path."
_FORWARDS = ("on", "changing")
_ALL, _NEEDS = "all links", "requirements"


class FastRows(ListRows):
    """The rows, and above their columns how the fast path stands."""

    __slots__ = ("head",)

    def __init__(self, rows: list[Row], columns: tuple[Column, ...], head: tuple[Cell, ...]) -> None:
        super().__init__(rows, columns)
        self.head = head


def rows(context: ViewContext) -> FastRows:
    """Return the rows: all links, each link with its verdicts, requirements."""
    fast = context.fast
    made: list[Row] = []
    if fast.is_running:
        made += _counted(fast, _ALL, "", fast.verdicts)
        for port in fast.ports:
            made += _counted(fast, port.name, port.role, port.verdicts)
    else:
        return FastRows([*_requirements(fast)], _COLUMNS_OF_REQUIREMENTS, tuple(_head(fast)))
    return FastRows([*made, *_requirements(fast, True)], COLUMNS, tuple(_head(fast)))


def state_change(before: FastPath, now: FastPath, at: float) -> tuple[Change, ...]:
    """Return the event of a change of the fast path's state, if any.

    `at` is Unix time.
    """
    words, action = "", "changed"
    if now.state == "off" and before.is_running:
        words, action = "fast path stopped: the kernel forwards everything", "removed"
    elif now.state == "silent" != before.state:
        words = "fast path: its process doesn't answer"
    elif now.state == "paused" and (before.state, before.reasons) != (now.state, now.reasons):
        words = f"fast path paused: {_reasons(now)}"
    elif now.state in _FORWARDS and before.state == "off":
        words, action = f"fast path turned on: {', '.join(now.targets)}", "added"
    elif now.state in _FORWARDS and before.state not in _FORWARDS:
        words = "fast path forwards again"
    elif now.is_running and before.targets and now.targets and now.targets != before.targets:
        words = f"fast path now accelerates: {', '.join(now.targets)}"
    return (Change(at, action, _ref("all", _ALL), words),) if words else ()


def _reasons(fast: FastPath) -> str:
    more = f" (and {len(fast.reasons) - 1} more)" if len(fast.reasons) > 1 else ""
    return f"{fast.reasons[0]}{more}" if fast.reasons else "no reason is known"


def _ref(*key: str) -> Ref:
    return Ref("fast", key)


def _counted(fast: FastPath, name: str, role: str, verdicts: Mapping[str, int]) -> Iterator[Row]:
    seen, by_fast = sum(verdicts.values()), verdicts.get(FAST, 0)
    words = f"{formatting.count(by_fast)} forwarded by the fast path" if seen else "no packets yet"
    terms = {"name": safe(name), "state": role}
    yield Row(
        _ref("link" if role else "all", name),
        (cells.text(name), Cell(role, "dim"), cells.count(seen), _share(by_fast, seen), Cell(words)),
        terms,
    )
    for verdict, count in ranked(verdicts):
        yield Row(
            _ref("verdict", name, verdict),
            (
                Cell(verdict.lower().replace("_", " "), "ok" if verdict == FAST else ""),
                Cell("fast" if verdict == FAST else "kernel", "ok" if verdict == FAST else "dim"),
                cells.count(count), _share(count, seen), cells.text(fast.words.get(verdict, verdict)),
            ),
            terms | {"verdict": verdict.lower()}, depth=1,
        )  # fmt: skip


def ranked(verdicts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return verdicts with their packets.

    The fast path's own come first, then the most frequent ones.
    """
    return sorted(verdicts.items(), key=lambda pair: (pair[0] != FAST, -pair[1]))


def _share(count: int, seen: int) -> Cell:
    return Cell(f"{count / seen:.1%}", sort=count / seen) if seen else cells.NONE


def _requirements(fast: FastPath, counting: bool = False) -> Iterator[Row]:
    """Yield a row for each requirement, below one for all of them.

    `counting` adds the columns of packets.
    """
    found, blank = fast.requirements, (Cell(""), Cell("")) if counting else ()
    if not found:
        return
    met = sum(one.met for one in found)
    tone: Tone = "ok" if all(one.met for one in found if one.needed) else "bad"
    words = "all met" if met == len(found) else f"{len(found) - met} missing"
    yield Row(
        _ref("needs", _NEEDS),
        (Cell(_NEEDS), Cell(f"{met} of {len(found)}", tone), *blank, Cell(words, tone)),
    )
    for one in found:
        yield Row(
            _ref("need", one.name),
            (cells.text(_short_name(one.name)), _met(one), *blank, cells.text(one.found)),
            {"name": safe(one.name)},
            depth=1,
        )


def _short_name(name: str) -> str:
    return _SHORT_NAMES.get(name) or name.removeprefix("kernel function ")


def _met(one: Requirement) -> Cell:
    return Cell("yes", "ok") if one.met else Cell("no", "bad" if one.needed else "warn")


def _head(fast: FastPath) -> Iterator[Cell]:
    if fast.state == "unknown":
        yield Cell(_NOT_STORED, "dim")
        return
    words = [f"fast path {STATES[fast.state]}"]
    if fast.state == "hidden":
        yield Cell(f"{words[0]}: run sudo vnet-tui", "dim")
        return
    if not fast.is_running:
        yield Cell(f"{words[0]}: the kernel forwards everything. Press W, then f to turn it on.", "dim")
        return
    words += [", ".join(map(safe, fast.targets))]
    words += [f"{fast.flows:,} flows"] if fast.flows is not None else []
    words += [f"{fast.ns_per_packet:.0f} ns a packet"] if fast.ns_per_packet else []
    words += [f"captured: {', '.join(fast.captured)}"] if fast.captured else []
    yield Cell(" · ".join(words), _TONES.get(fast.state, ""))
    for reason in fast.reasons[:3]:
        yield Cell(f"because {safe(reason)}", "warn")


def detail(context: ViewContext, ref: Ref) -> Detail:
    """Return the details of one line of the view."""
    fast, kind, name = context.fast, str(ref.key[0]), str(ref.key[1])
    if kind == "need":
        found = next((one for one in fast.requirements if one.name == name), None)
        return _need(found) if found else Detail("this requirement")
    if kind == "needs":
        return Detail(_NEEDS, tuple(_all_needs(fast)))
    if kind == "verdict":
        return _verdict(fast, str(ref.key[2]))
    if kind == "link":
        port = next((one for one in fast.ports if one.name == name), None)
        return _port(context, port) if port else Detail(f"{safe(name)} is no longer accelerated")
    return Detail("fast path", (*cells.section("Fast path", _state_lines(fast)), *_left_out(fast)))


def _state_lines(fast: FastPath) -> Iterator[Line]:
    yield "state", Cell(STATES[fast.state], _TONES.get(fast.state, "")), None
    for reason in fast.reasons:
        yield "reason", cells.text(reason, "warn"), None
    if fast.left:
        yield "left behind", Cell("a killed fast path left settings; run: vnet-tui recover", "warn"), None
    if not fast.is_running:
        return
    for target in fast.targets:
        is_missing = target in fast.unknown
        yield (
            "target",
            cells.text(
                f"{target} (doesn't exist now)" if is_missing else target, "warn" if is_missing else ""
            ),
            None,
        )
    for bridge in fast.bridges:
        yield "bridge", cells.text(bridge), None
    yield "links", cells.number(len(fast.ports)), None
    if fast.flows is not None:
        yield "flows", Cell(f"{fast.flows:,} of {fast.flows_limit or 0:,}"), None
    cost = f"{fast.ns_per_packet:.0f} ns a packet" if fast.ns_per_packet else "being measured"
    yield "cost", Cell(cost), None
    yield "", Cell(COST_IS, "dim"), None
    for tunnel, why in fast.tunnels.items():
        yield "tunnel", cells.text(f"{tunnel}: {tunnel_text(why)}"), None
    for address in fast.captured:
        yield "captured", cells.text(address), None
    yield "generation", cells.text(f"{fast.generation} of 15"), None
    yield "ct mark", Cell(f"bits 0x{fast.mark_mask:08x}"), None
    if fast.strict:
        yield "strict", Cell("yes"), None
    if fast.tied:
        yield "ends", Cell(ENDS_WITH), None
    yield "process", cells.number(fast.pid), None


def _left_out(fast: FastPath) -> tuple[Section, ...]:
    return cells.section(
        "Left to the kernel", ((safe(k), cells.text(v), None) for k, v in fast.refused.items())
    )


def _port(context: ViewContext, port: FastPort) -> Detail:
    link = next(
        (one for one in context.snapshot.links() if one.key == (context.topology.host, port.ifindex)), None
    )
    target = Ref("link", tuple(link.key)) if link else None
    lines: list[Line] = [("link", cells.text(port.name), target), ("role", Cell(port.role), None)]
    return Detail(
        f"fast path on {safe(port.name)}",
        (
            *cells.section("Link", lines),
            *cells.section(
                "Packets", ((name, cells.count(count), None) for name, count in ranked(port.verdicts))
            ),
        ),
        ((f"link {safe(port.name)}", target),) if target else (),
    )


def _verdict(fast: FastPath, verdict: str) -> Detail:
    links = [(one.name, one.verdicts[verdict]) for one in fast.ports if verdict in one.verdicts]
    links.sort(key=lambda pair: -pair[1])
    meaning: list[Line] = [("meaning", cells.text(fast.words.get(verdict, "")), None)]
    meaning += [("name", Cell(verdict), None)]
    return Detail(
        verdict.lower().replace("_", " "),
        (
            *cells.section("Verdict", meaning),
            *cells.section("By link", ((safe(name), cells.count(count), None) for name, count in links)),
        ),
    )


def _all_needs(fast: FastPath) -> Iterator[Section]:
    missing = [one for one in fast.requirements if not one.met]
    for one in missing:
        yield from cells.section(safe(one.name), _need_lines(one))
    if not missing:
        yield from cells.section("Requirements", [("met", Cell("all of them", "ok"), None)])


def _need(one: Requirement) -> Detail:
    return Detail(safe(one.name), cells.section("Requirement", _need_lines(one)))


def _need_lines(one: Requirement) -> Iterator[Line]:
    """Yield the lines for requirements: what was found, and what is to do."""
    yield "required", cells.text(one.name), None
    yield "met", _met(one), None
    yield "found", cells.text(one.found), None
    yield "without it", cells.text(one.follows, "" if one.met else "warn"), None
    if not one.met:
        yield "try", cells.text(one.try_), None


VIEW = ListView(
    "fastpath", "Fast path", ("fast", "accelerate"), COLUMNS, rows,
    empty="The fast path is off: the kernel forwards everything.",
    help=(
        ("f", "turn it on for all bridges, or off"),
        ("verdict:WORD", "packets with a verdict: verdict:mtu"),
        ("share", "of the packets that the link received"),
    ),
    empty_file=_NOT_STORED,
    parts=frozenset(),
    problem_parts=(),
    stays_on_top=True,
    is_recorded=False,
)  # fmt: skip


def tunnel_text(why: str) -> str:
    """Say who writes the outer headers of a tunnel's packets."""
    return f"each packet passes the kernel: {why}" if why else "outer headers are remembered"


MARK = "»"
COLUMN = Column("fast", "fast", 8)
_MARK_TONES: dict[str, Tone] = {"on": "ok", "changing": "ok", "paused": "warn", "silent": "bad"}
_NONE = Cell("")


def mark_of(context: ViewContext, bridge: Link | None) -> Cell:
    """Return the mark of a bridge, an empty cell if it isn't accelerated."""
    fast = context.fast
    if bridge is None or not fast.is_running or not is_target(fast, context.topology, bridge):
        return _NONE
    words = "on" if fast.state == "changing" else fast.state
    return Cell(f"{MARK} {words}", _MARK_TONES[fast.state])


def is_target(fast: FastPath, topology: Topology, bridge: Link) -> bool:
    """Return whether a bridge is accelerated, or will be with its first container."""
    if bridge.ns != topology.host or bridge.kind != "bridge":
        return False
    if bridge.name in fast.bridges or ALL in fast.targets:
        return True
    network = topology.network_of(bridge)
    names = {bridge.name, *bridge.altnames, *((network.name, network.id) if network else ())}
    return bool(names & set(fast.targets))


def marked(
    context: ViewContext, rows: ListRows, at: int, bridge_of: Callable[[Ref], Link | None]
) -> ListRows:
    """Insert a column of marks into rows while anything is accelerated."""
    if not context.fast.is_running:
        return rows

    def with_mark(row: Row) -> Row:
        cell = mark_of(context, bridge_of(row.ref))
        return replace(row, cells=(*row.cells[:at], cell, *row.cells[at:]))

    columns = (*rows.columns[:at], COLUMN, *rows.columns[at:])
    return ListRows([with_mark(row) for row in rows], columns)
