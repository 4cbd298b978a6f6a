"""Control the fast path: state, preview, on and off."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from bpf import attachments, build, layout, rpc
from bpf.attachments import NO_FOREIGN, Foreign
from bpf.btf import CONNTRACK_MODULE, module_state
from bpf.client import start
from bpf.connections import field_mask
from bpf.hostwatch import read_sysctl
from bpf.link_state import engine_networks, find_bridges
from bpf.ports import MapContents, map_contents, observed_links
from bpf.preconditions import Preconditions, read_preconditions
from bpf.reconcile import Observer
from bpf.requirements import requirements, unmet
from bpf.runfile import DIRECTORY, child_pids, clean_up, lock_owner, netns_inode, unlock
from core.collect.snapshot import read_snapshot
from core.model import FastFlows, FastPath, Part, Requirement
from core.model.fastpath import ALL
from core.text import safe
from core.topology import Topology
from tui.cli.fastpath_agent import SHORT_TIMEOUT, SharedFlows, read_fast_path
from tui.command import CommandError
from tui.services import FastPathPreview
from tui.views.fast_targets import BridgeChoice, added, is_covered, removed
from tui.views.fastpath import ENDS_WITH

_MASK = f"0x{field_mask():08x}"


def preview(
    choices: Sequence[BridgeChoice],
    on: bool,
    topology: Topology,
    fast: FastPath,
    tied: bool,
    strict: bool | None = None,
) -> FastPathPreview:
    """Preview what turning the fast path on or off would change.

    With `tied` it ends with this process; `strict` as in tui/services.py.
    """
    wanted = [one for one in choices if one.target and _is_on(one, fast, on) != on]
    label = ", ".join(one.label for one in wanted or choices)
    title = f"{'Accelerate' if on else 'Stop accelerating'} {label}"
    nothing = [f"{one.label}: {one.nothing}" for one in choices if one.nothing]
    nothing += [
        f"{one.label}: it is {'accelerated already' if on else 'not accelerated'}"
        for one in choices
        if one.target and one not in wanted
    ]
    strict = fast.strict if strict is None else strict
    if not wanted and on and fast.is_running and strict != fast.strict:
        notes = tuple(_invalid_notes(read_preconditions(), strict))
        return FastPathPreview(
            "Fast path", fast.targets, (_strict_sentence(strict),), notes=notes, strict=strict
        )
    if not wanted:
        return FastPathPreview(title, fast.targets, nothing=tuple(nothing), strict=fast.strict)
    after = added(wanted, fast) if on else removed(wanted, fast, topology)
    if on and not fast.is_running and (lacking := unmet(requirements())):
        return FastPathPreview(
            title, after, refused=tuple(map(requirement_sentence, lacking)), nothing=tuple(nothing)
        )
    return _preview_links(title, after, fast, tied, tuple(nothing), strict)


def _is_on(choice: BridgeChoice, fast: FastPath, on: bool) -> bool:
    """Return whether it is accelerated; for all of them to turn off, whether any is."""
    return is_covered(choice, fast) or (choice.target == ALL and not on and fast.is_running)


def requirement_sentence(lacking: Requirement) -> str:
    """Return a requirement that is not met, as a sentence."""
    return f"it needs {lacking.name}: {lacking.found}. Try: {lacking.try_}"


def _preview_links(
    title: str, after: tuple[str, ...], fast: FastPath, tied: bool, nothing: tuple[str, ...], strict: bool
) -> FastPathPreview:
    observer = Observer()
    try:
        observer.read_host()
        before, _ = _attached(observer, fast.targets, NO_FOREIGN)
        foreign = attachments.foreign_programs(
            ifindex for ifindex in observer.links if ifindex not in before.links
        )
        then, bridges = _attached(observer, after, foreign)
    finally:
        observer.close()
    more, fewer = _by_role(then, before.links), _by_role(before, then.links)
    if not after:
        changes = _end_sentences(len(fewer))
    elif fast.is_running:
        changes = [_change_sentence(len(more), len(fewer))]
    else:
        changes = [_attach_sentence(len(more)), *_start_sentences(tied)]
    if observed_links(then) and not observed_links(before):
        changes.append(_observer_sentence(then))
    if after and strict != fast.strict:
        changes.append(_strict_sentence(strict))
    refused = [f"{safe(name)} is left to the kernel: {why}" for name, why in then.refused.items()]
    notes = [*_notes(bridges, not fast.is_running, strict), *refused] if after and (more or not fewer) else []
    return FastPathPreview(title, after, tuple(changes), more or fewer, tuple(notes), (), nothing, strict)


def _strict_sentence(strict: bool) -> str:
    if strict:
        return (
            "Strict mode is turned on: while a rule matches on `ct state invalid`, the fast path is paused "
            "and the kernel forwards everything."
        )
    return "Strict mode is turned off: rules that match on `ct state invalid` don't pause the fast path."


def _attached(observer: Observer, names: Iterable[str], foreign: Foreign) -> tuple[MapContents, set[int]]:
    """Return the links to attach the program to for targets, and their bridges."""
    names = tuple(names)
    if not names:
        return MapContents(), set()
    bridges, unknown = find_bridges(names, observer.links, {})
    if unknown:
        bridges, _ = find_bridges(names, observer.links, engine_networks())
    return map_contents(observer.link_state(bridges, foreign), bridges), bridges


def _by_role(found: MapContents, without: Iterable[int]) -> tuple[str, ...]:
    """Return links with their roles, containers' links first."""
    left = set(without)
    links = [link for ifindex, link in found.links.items() if ifindex not in left]
    links.sort(key=lambda link: (not link.flags & layout.LINK_CONTAINER, link.name))
    return tuple(safe(f"{link.name} ({layout.role_of(link.flags)})") for link in links)


def _attach_sentence(count: int) -> str:
    return (
        f"A BPF program is attached to the ingress of {_links(count)}{' (below)' if count else ''}, and to "
        "links that are added later. Packets that it doesn't forward go to the kernel unchanged, except for "
        "FINs and RSTs far outside the acknowledged range of their connection, which are dropped."
    )


def _observer_sentence(contents: MapContents) -> str:
    uplinks = ", ".join(safe(contents.links[ifindex].name) for ifindex in observed_links(contents))
    return (
        f"A second program at the egress of {uplinks} sees which outer headers the kernel gives a "
        "connection's packets to other hosts; they are repeated for at most a second."
    )


def _links(count: int) -> str:
    return f"{count} link{'' if count == 1 else 's'}"


def _start_sentences(tied: bool) -> list[str]:
    return [*_module_sentence(), *_process_sentences(tied)]


def _module_sentence() -> Iterator[str]:
    if module_state().loadable:
        yield f"The kernel module {CONNTRACK_MODULE} (connection tracking) is loaded, and stays loaded."


def _process_sentences(tied: bool) -> list[str]:
    end = "with the dashboard" if tied else "by `vnet-tui accelerate --off`"
    return [
        "Checksums and TCP windows of the packets that it forwards aren't verified, as with nftables' own "
        "flowtables; conntrack still checks all other connections.",
        f"Bits {_MASK} of the ct mark record which rules a connection passed; they are cleared at the end.",
        "A chain in the nftables table inet vnet_fastpath writes them, after every filter; the kernel "
        "removes the table when the fast path's process ends.",
        "It runs in two processes: if the first is killed, the fast path stops and the second cleans up. "
        f"Otherwise it ends {end}.",
    ]


def _change_sentence(more: int, fewer: int) -> str:
    if not more and not fewer:
        return "No link is affected now."
    if more:
        return f"The program is attached to {_links(more)} more."
    return f"The program is detached from {_links(fewer)}; the kernel forwards their connections."


def _end_sentences(count: int) -> list[str]:
    return [
        f"The program is detached from {_links(count)}; the kernel forwards their connections.",
        f"The table inet vnet_fastpath is removed, and bits {_MASK} of the ct mark are cleared.",
    ]


def _invalid_notes(found: Preconditions, strict: bool) -> Iterator[str]:
    rules = "; ".join(map(safe, found.invalid))
    if rules and strict:
        yield f"It would be paused now, because it is strict: {rules}"
    elif rules:
        yield (
            f"These rules match on invalid packets, but don't see packets that the fast path forwards: "
            f"{rules}. --strict (s in the dashboard) pauses the fast path instead."
        )


def _notes(bridges: set[int], begins: bool, strict: bool) -> Iterable[str]:
    """Yield the warnings."""
    found = read_preconditions()
    if found.reasons:
        reasons = "; ".join(map(safe, found.reasons))
        yield f"It would be paused now, and the kernel would forward everything: {reasons}"
    yield from _invalid_notes(found, strict)
    with suppress(build.CompileError):
        if begins and not build.is_compiled():
            yield "The program is compiled for this kernel first: a second or two, once."
    if read_sysctl("net.ipv4.ip_forward") == "0":
        yield "net.ipv4.ip_forward is 0: nothing is routed, so only traffic within a bridge is accelerated."
    yield (
        "tcpdump no longer sees accelerated packets on every link, and counters of rules and of conntrack "
        "miss them; `vnet-tui accelerate --capture ADDRESS` leaves an address to the kernel."
    )
    if not bridges:
        yield "There is no bridge to accelerate yet."


_PARTS = {Part.LINKS, Part.CONTAINERS}
_END_SECONDS = 60.0  # usually one; a slow machine takes its time
_CLEANUP_SECONDS = 10.0  # seconds in which a supervisor cleans up


class FastPathSession:
    """Implement FastPathService for this process's network namespace.

    With `tied`, what it starts ends with this process.
    """

    def __init__(self, tied: bool) -> None:
        self.tied = tied
        self._lock = threading.Lock()
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._flows = SharedFlows()

    def status(self, closely: bool = False) -> FastPath:
        found = read_fast_path(closely, closely, SHORT_TIMEOUT if self.tied else rpc.TIMEOUT)
        if not found.is_running:
            self._flows.close()  # maps live as long as they are open
        return found

    def read_flows(self) -> FastFlows:
        """Return the counters of each flow; can be called from any thread."""
        return self._flows()

    def requirements(self) -> tuple[Requirement, ...]:
        from bpf.requirements import read_host_features, requirements

        return requirements(read_host_features(whole=True))

    def read_topology(self) -> Topology:
        return Topology(read_snapshot(_PARTS))

    def preview(
        self, choices: tuple[BridgeChoice, ...], on: bool, topology: Topology, strict: bool | None = None
    ) -> FastPathPreview:

        return preview(choices, on, topology, self.status(), self.tied, strict)

    def perform(self, preview: FastPathPreview, progress: Callable[[str], None]) -> str:
        with self._lock:
            if not preview.targets:
                return self._off(progress)
            if self.status().is_running:
                return self._retarget(preview.targets, preview.strict)
            return self._start(preview, progress)

    def _retarget(self, targets: Sequence[str], strict: bool) -> str:
        """Have the one that runs accelerate these."""
        ask({"do": "targets", "targets": list(targets), "strict": strict})
        found = self._wait_until_read()
        ends = f" It ends {ENDS_WITH}." if found.tied and not self.tied else ""
        return f"{state_sentence(found)}{ends}"

    def _wait_until_read(self) -> FastPath:
        """Wait until the rules are read again, within limits; return the state."""
        deadline = time.monotonic() + SHORT_TIMEOUT
        while (found := self.status()).state == "changing" and time.monotonic() < deadline:
            time.sleep(0.02)
        return found

    def _start(self, preview: FastPathPreview, progress: Callable[[str], None]) -> str:
        try:
            if not build.is_compiled():
                progress("Compiling the program for this kernel…")
                build.compiled_program()
            progress("Loading it…")
            started = start(list(preview.targets), self.tied, preview.strict)
        except build.CompileError as error:
            raise CommandError(f"can't compile the program: {safe(str(error))}") from error
        except OSError as error:
            raise CommandError(f"can't start the fast path: {error.strerror or error}") from error
        if not started.answer.get("ok") and (running := self._started_by_another()):
            targets = tuple(dict.fromkeys((*running.targets, *preview.targets)))
            return self._retarget((ALL,) if ALL in targets else targets, preview.strict or running.strict)
        _checked(started.answer)
        self._supervisor = started.supervisor if self.tied else None
        return state_sentence(self.status())

    def _started_by_another(self) -> FastPath | None:
        """Return the state of a fast path that another process is starting, if any."""
        deadline = time.monotonic() + _END_SECONDS
        while lock_owner() and time.monotonic() < deadline:
            found = self.status()
            if found.is_running and found.state != "silent":
                return found
            time.sleep(0.02)
        return None

    def _off(self, progress: Callable[[str], None]) -> str:
        progress("Cleaning up…")
        with suppress(_NotRunning):
            ask({"do": "off"})
        wait_until_ended()
        self._close_supervisor(_END_SECONDS)
        return "The fast path is off: the kernel forwards everything."

    def end_silent(self) -> str:
        """Kill a fast path that doesn't answer, and clean up if its supervisor doesn't."""
        supervisor = lock_owner()
        _kill(*child_pids(supervisor))
        deadline = time.monotonic() + _CLEANUP_SECONDS
        while lock_owner() and time.monotonic() < deadline:
            time.sleep(0.02)
        if lock_owner():
            _kill(supervisor)
            clean_up()
            unlock()
        return "The process was killed. The fast path is off: the kernel forwards everything."

    def _close_supervisor(self, seconds: float) -> None:
        """Close the supervisor's standard input, which makes it end."""
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            if supervisor.stdin:
                with suppress(OSError):
                    supervisor.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                supervisor.wait(seconds)

    def close(self) -> None:
        """End what was started here, without waiting for it."""
        self._flows.close()
        self._close_supervisor(0.0)


def _kill(*pids: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class _NotRunning(CommandError):
    """Nothing is accelerated here."""


def ask(request: dict[str, Any]) -> dict[str, Any]:
    """Send a request to the daemon. Raises CommandError if refused, or none runs."""
    try:
        return _checked(rpc.ask(request))
    except rpc.NotRunning:
        raise _NotRunning("can't change the fast path: it is off. Try: vnet-tui accelerate NETWORK") from None
    except OSError as error:
        why = error.strerror or str(error) or type(error).__name__
        raise CommandError(
            f"can't reach the process of the fast path: {why}. Try: vnet-tui fastpath status"
        ) from error


def _checked(answer: dict[str, Any]) -> dict[str, Any]:
    """Return the answer; raise CommandError if it is a refusal."""
    if answer.get("ok"):
        return answer
    raise CommandError(safe(rpc.refusal_text(answer)))


def state_sentence(fast: FastPath) -> str:
    """Return the state as a sentence."""
    names = ", ".join(map(safe, fast.targets))
    paused = f" Paused: {'; '.join(map(safe, fast.reasons))}." if fast.state == "paused" else ""
    return f"Accelerated: {names}.{paused}"


def wait_until_ended() -> None:
    """Wait until the fast path has ended and everything is restored."""
    deadline = time.monotonic() + _END_SECONDS
    while time.monotonic() < deadline:
        if not any(DIRECTORY.glob(f"fastpath-{netns_inode()}.*")):
            return
        time.sleep(0.02)
    raise CommandError(
        f"can't clean up after the fast path: not everything was restored in {_END_SECONDS:g} s. "
        "Try: vnet-tui fastpath status"
    )
