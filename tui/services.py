"""Define what the dashboard needs for changes, fast path, captures and faults."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:  # this module is imported before the first paint
    from core.capture.lines import PacketLine
    from core.capture.targets import Target
    from core.model import FastPath, Requirement
    from core.operations import Operation
    from core.plan import Plan, Refused
    from core.plan.requests import Request
    from core.topology import Topology
    from tui.views.fast_targets import BridgeChoice

# How much a plan needs to be read: "network" adds what FRRouting knows, "publishing" ports in use on the
# host, "tuning" offloads and steering of links, "whole" FRRouting and the rules of other namespaces, which
# only their deletion needs, "repair" also forwarding tables and policy rules.
PlanScope = Literal["light", "network", "publishing", "tuning", "whole", "repair"]
# The variable with LabHosts as JSON, which the launcher of the dashboard sets.
LAB_HOSTS = "VNET_LAB_HOSTS"
# Called with each operation before it is executed.
type Progress = Callable[[Operation], None]


@dataclass(frozen=True, slots=True)
class ChangeResult:
    """Hold the outcome of a change.

    `plan` is the one made of the newest snapshot. `end` is "done", "undone" (it failed and was undone),
    "failed" (and couldn't be undone), or "" if nothing was begun, as that plan isn't the one that was agreed
    to. An undo ends "undone", "failed", or "kept" (it failed, and everything is as before). A guarded change
    is undone after `seconds` unless confirmed (0: not guarded). `made` is the name of the network or
    container that it made.
    """

    plan: Plan | Refused
    end: str = ""
    errors: tuple[str, ...] = ()
    entry_id: str = ""
    seconds: float = 0.0
    made: str = ""


@dataclass(frozen=True, slots=True)
class PastChange:
    """A change in the journal.

    `end` as in ChangeResult, "undone" after an undo, "" if it was interrupted, "under way" while another
    process executes it. `begun` are the steps that were begun, `dependents` the ids of later changes that
    depend on it.
    """

    entry_id: str
    title: str
    at: float
    end: str
    begun: tuple[Operation, ...] = ()
    dependents: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()

    @property
    def is_open(self) -> bool:
        """Whether it was cut off, or taken back in part only."""
        return self.end in ("", "failed") and not self.is_final

    @property
    def is_final(self) -> bool:
        """Whether nothing can take it back."""
        from core.operations import is_final

        return is_final(self.begun)


@dataclass(frozen=True, slots=True)
class UnconfirmedChange:
    """A guarded change that is taken back in `seconds_left` unless it is kept."""

    entry_id: str
    title: str
    seconds_left: float


@dataclass(slots=True)
class LoggedChange:
    """A change of this session, with its commands in the order of execution.

    `at` is Unix time, `end` as in ChangeResult ("…" while it is under way); `undone` are the commands that
    reverted a failed change.
    """

    title: str
    at: float
    commands: list[str] = field(default_factory=list)
    end: str = "…"
    errors: tuple[str, ...] = ()
    undone: tuple[str, ...] = ()


class ChangeService(Protocol):
    """Plan and execute changes. Every method may block, and raise CommandError."""

    log: list[LoggedChange]

    def missing_rights(self) -> str:
        """Return why this process may change nothing, "" where it may."""
        ...

    def read_topology(self, parts: PlanScope) -> Topology:
        """Read the host as it is now."""
        ...

    def plan(self, requests: Sequence[Request], topology: Topology) -> Plan | Refused:
        """Plan requests."""
        ...

    def change(
        self, requests: Sequence[Request], parts: PlanScope, agreed: Plan, progress: Progress
    ) -> ChangeResult:
        """Plan on a new snapshot, and execute the plan if it is the agreed one."""
        ...

    def history(self) -> tuple[PastChange, ...]:
        """Return the changes in the journal, newest first."""
        ...

    def undo(self, past: PastChange, progress: Progress) -> ChangeResult:
        """Undo a change."""
        ...

    def forget(self, past: PastChange) -> None:
        """Keep what an interrupted change has made, and don't offer it again."""
        ...

    def unconfirmed(self) -> tuple[UnconfirmedChange, ...]:
        """Return the guarded changes that wait to be kept."""
        ...

    def confirm(self, entry_id: str) -> bool:
        """Keep a guarded change; False where it is too late."""
        ...


@dataclass(frozen=True, slots=True)
class FastPathPreview:
    """Describe what turning the fast path on or off would change.

    `targets` are those accelerated afterwards (none: it is off), `changes` sentences, `links` those that the
    program is attached to or detached from, `notes` warnings. `refused` are reasons why it is impossible,
    `nothing` why there is nothing to do. `strict` is the mode afterwards.
    """

    title: str
    targets: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    nothing: tuple[str, ...] = ()
    strict: bool = False

    @property
    def can_be_done(self) -> bool:
        """Whether there is something to do, and nothing in the way."""
        return not self.refused and bool(self.changes)


@dataclass(frozen=True, slots=True)
class LabFault:
    """A fault of the demo lab; `active` if it is injected now."""

    name: str
    sentence: str
    active: bool = False


class LabFaultService(Protocol):
    """Inject faults into the demo lab.

    `inject` and `undo` may block, and raise CommandError.
    """

    def faults(self) -> Sequence[LabFault]:
        """Return all faults, none outside of a demo lab."""
        ...

    def inject(self, name: str) -> None:
        """Inject a fault."""
        ...

    def undo(self, name: str) -> None:
        """Undo a fault."""
        ...


class FastPathService(Protocol):
    """Turn the fast path on and off. Every method may block, and raise CommandError."""

    def status(self, closely: bool = False) -> FastPath:
        """Read the state; `closely` also counts flows and measures the cost of a packet."""
        ...

    def requirements(self) -> tuple[Requirement, ...]:
        """Check the requirements on this machine."""
        ...

    def read_topology(self) -> Topology:
        """Read the host as it is now."""
        ...

    def preview(
        self, choices: tuple[BridgeChoice, ...], on: bool, topology: Topology, strict: bool | None = None
    ) -> FastPathPreview:
        """Preview turning targets on or off.

        `strict` says whether rules about invalid packets pause it (None: as it is).
        """
        ...

    def perform(self, preview: FastPathPreview, progress: Callable[[str], None]) -> str:
        """Execute the preview; returns a sentence about the end. `progress` gets steps."""
        ...

    def close(self) -> None:
        """End everything that was turned on by this service."""
        ...


@dataclass(frozen=True, slots=True)
class CaptureState:
    """How far a capture of the dashboard is.

    Packets are numbered; those from `first` up to `last`, exclusive, are in memory. `dropped` counts those
    that the kernel dropped. `ended` is why it has ended ("" while it runs), `error` a failure as a sentence;
    `file` the file that is written ("" for none), `notice` a sentence about the last file that was completed.
    """

    first: int = 0
    last: int = 0
    dropped: int = 0
    seconds: float = 0.0
    ended: str = ""
    error: str = ""
    file: str = ""
    notice: str = ""


class PacketSource(Protocol):
    """A capture that runs in a thread.

    Only `set_filter`, `save` and `end_file` may block."""

    @property
    def state(self) -> CaptureState:
        """How far it is."""
        ...

    def lines(self, first: int, last: int) -> list[PacketLine]:
        """Return packets by number as text, those in memory."""
        ...

    def set_filter(self, text: str) -> None:
        """Use another filter from now on. Raises CommandError."""
        ...

    def save(self, path: Path) -> None:
        """Write packets, those in memory first, to a new file. Raises CommandError."""
        ...

    def end_file(self) -> None:
        """Complete the file."""
        ...

    def stop(self) -> None:
        """End the capture and its file."""
        ...


class FlowTracer(Protocol):
    """Trace one flow; blocks."""

    def __call__(self, stopped: Callable[[], bool]) -> Callable[[int], list[Sequence[tuple[str, str]]]]:
        """Return what makes lines of (text, tone) for a width; end early once `stopped`."""
        ...


class CaptureService(Protocol):
    """Start captures. Every method may block, and raise CommandError."""

    def missing_rights(self) -> str:
        """Return why this process may not capture, "" where it may."""
        ...

    def start(self, target: Target, topology: Topology, filter_text: str) -> PacketSource:
        """Start a capture."""
        ...


@dataclass(frozen=True, slots=True)
class LabHosts:
    """The hosts of a demo lab, by name.

    The dashboard runs on the one at `current` and opens with `view` ("": the first one). `request` asks the
    launcher to open it on another one, with a view, when this dashboard has ended.
    """

    names: tuple[str, ...]
    current: int
    view: str
    request: Callable[[int, str], None]


@dataclass(frozen=True, slots=True)
class Services:
    """Functions that make the dashboard's services at their first use; None: without.

    They change networks, control the fast path, capture packets, and inject faults into the demo lab.
    `lab_hosts` is a value, None but in a lab of several hosts.
    """

    change: Callable[[], ChangeService] | None = None
    fast_path: Callable[[], FastPathService] | None = None
    capture: Callable[[], CaptureService] | None = None
    lab_faults: Callable[[], LabFaultService] | None = None
    lab_hosts: LabHosts | None = None


NO_SERVICES = Services()
