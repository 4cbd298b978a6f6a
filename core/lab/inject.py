"""Inject faults into the running lab, and undo them.

Run it in the lab as `python -m core.lab.inject (inject|undo) NAME...`; outside of a lab it refuses. The
commands that undo a fault are kept in /run of the lab. A step is a command line for the lab's host, without a
shell, or one of

- `lab stop CONTAINER`, `lab start CONTAINER [SERVER...]`: end its process; start it, with these servers
  instead of its own;
- `lab delete-rule FAMILY TABLE CHAIN COMMENT`: delete the nft rule with that comment.

What adds nft tables and rules or sets a sysctl is undone by itself.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from core.lab.blueprint import CONTAINERS, LabContainer, LabSettings
from core.lab.containers import BuildError, has_ipv6, run, start, stop
from core.lab.faults import Fault, UnknownFault, find_fault

_STATE = Path("/run/lab-faults")
_SUPERVISOR = b"core.lab.supervisor"
_HANDLE = re.compile(r" # handle (\d+)$", re.MULTILINE)
_COUNTED = re.compile(r"\bcounter packets \d+ bytes \d+")
_DELETE = "delete-added-rule"  # in an undo: an nft rule by chain, handle and text
# Errors of ip, bridge and nft when someone else has undone it already.
_UNDONE = re.compile(
    r"File exists|No such (file|process|device)|Cannot (find|assign|open network namespace)|not found|"
    r"does not exist"
)

type Argv = list[str]
type Undo = list[Argv]


class FaultError(Exception):
    """A fault can't be injected or undone; the text is the reason."""


def inject(name: str, settings: LabSettings) -> None:
    """Inject a fault; if a step fails, undo the others. Raises FaultError."""
    fault = _find(name)
    if is_active(name):
        raise FaultError(f"the fault {name} is active already")
    if fault.ipv6 and not has_ipv6():
        raise FaultError(f"the fault {name} needs IPv6")
    undo: Undo = []
    try:
        for step in _for_host(fault.steps):
            undo[:0] = _run_step(step, settings)
    except (BuildError, OSError) as error:
        _undo([*undo, *map(_argv, _for_host(fault.undo))], settings)
        raise FaultError(str(error)) from error
    _STATE.mkdir(exist_ok=True)
    (_STATE / name).write_text(json.dumps([*undo, *map(_argv, _for_host(fault.undo))]))


def undo(name: str, settings: LabSettings) -> None:
    """Undo a fault. Raises FaultError if it isn't active, or a step fails."""
    _find(name)
    if not is_active(name):
        raise FaultError(f"the fault {name} isn't active")
    steps = json.loads((_STATE / name).read_text())
    (_STATE / name).unlink()
    if failed := _undo(steps, settings):
        raise FaultError(failed[0])


def is_active(name: str) -> bool:
    """Return whether a fault was injected into this lab and not undone."""
    return (_STATE / name).is_file()


def active_faults() -> list[str]:
    """Return the names of the injected faults, sorted."""
    return sorted(path.name for path in _STATE.iterdir()) if _STATE.is_dir() else []


def lab_settings() -> LabSettings | None:
    """Return the settings of the lab that this process is in, None outside of one.

    The lab's first process is pid 1 here, with the settings as its last argument, and has this process's
    network namespace.
    """
    try:
        words = Path("/proc/1/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        same = Path("/proc/1/ns/net").stat().st_ino == Path("/proc/self/ns/net").stat().st_ino
    except OSError:
        return None
    if _SUPERVISOR not in words or not same:
        return None
    values = json.loads(words[-1])
    return LabSettings(**{**values, "faults": tuple(values["faults"])})


def _find(name: str) -> Fault:
    try:
        return find_fault(name)
    except UnknownFault as error:
        raise FaultError(error.reason) from error


def _for_host(steps: Sequence[str]) -> list[str]:
    return [step for step in steps if has_ipv6() or "::" not in step]


def _undo(steps: Undo, settings: LabSettings) -> list[str]:
    """Run all steps of an undo; return the errors except those of what is undone."""
    errors = []
    for argv in steps:
        try:
            _run_argv(argv, settings)
        except (BuildError, OSError) as error:
            if not _UNDONE.search(str(error)):
                errors.append(str(error))
    return errors


def _argv(step: str) -> Argv:
    """Split a step into words; what follows `nft` stays one word, in nft's own syntax."""
    before, nft, script = step.partition("nft ")
    return [*before.split(), "nft", script] if nft else shlex.split(step)


def _run_step(step: str, settings: LabSettings) -> Undo:
    """Run a step of a fault; return what undoes it, as far as that is known."""
    argv = _argv(step)
    for word, function in _UNDOABLE.items():
        if word in argv:
            place = argv.index(word)
            return function(argv[:place], argv[place:])
    _run_argv(argv, settings)
    return []


def _run_argv(argv: Argv, settings: LabSettings) -> None:
    if argv[0] == "lab":
        _run_lab(argv[1:], settings)
    elif _DELETE in argv:
        place = argv.index(_DELETE)
        _delete_added(argv[:place], *argv[place + 1 :])
    elif "ping" in argv or argv[:2] == ["conntrack", "-D"]:  # exit code 1: no answer, no such entry
        run(["sh", "-c", '"$@" || [ $? -eq 1 ]', "sh", *argv])
    else:
        run(argv)


def _run_lab(words: Argv, settings: LabSettings) -> None:
    verb, name, *servers = words
    container: LabContainer = next(one for one in CONTAINERS if one.name == name)
    if verb == "stop":
        stop(container)
    else:
        stop(container)  # as it may have been started again meanwhile
        start(container, settings, servers)


def _run_nft(inside: Argv, argv: Argv) -> Undo:
    """Run an nft command; a table or rule that it adds is deleted by the undo."""
    printed = run([*inside, "nft", "-e", "-a", argv[1]])
    verb, kind, *names = argv[1].split()
    if verb in ("add", "insert") and kind == "table":
        return [[*inside, "nft", f"delete table {' '.join(names)}"]]
    if verb in ("add", "insert") and kind == "rule" and (found := _HANDLE.search(printed)):
        chain, text = names[:3], printed[: found.start()].rpartition("\n")[2].strip()
        return [[*inside, _DELETE, *chain, found[1], text.split(maxsplit=5)[5]]]
    return []


def _delete_added(inside: Argv, family: str, table: str, chain: str, handle: str, text: str) -> None:
    """Delete the nft rule with a handle, else one that was added again with its text."""
    listed = run([*inside, "nft", "-a", "list", "chain", family, table, chain]).splitlines()
    rules = {found[1]: line.strip() for line in listed if (found := _HANDLE.search(line))}
    wanted = _COUNTED.sub("counter", text)
    equal = (one for one, line in rules.items() if _COUNTED.sub("counter", _HANDLE.sub("", line)) == wanted)
    if (found_handle := handle if handle in rules else next(equal, None)) is None:
        return
    run([*inside, "nft", f"delete rule {family} {table} {chain} handle {found_handle}"])


def _set_sysctl(inside: Argv, argv: Argv) -> Undo:
    """Set a sysctl (`sysctl -qw KEY=VALUE`); the undo sets its previous value."""
    key = argv[-1].partition("=")[0]
    before = run([*inside, "sysctl", "-n", key]).strip().replace("\t", " ")
    run([*inside, *argv])
    return [[*inside, "sysctl", "-qw", f"{key}={before}"]]


def _delete_rule(_inside: Argv, argv: Argv) -> Undo:
    """Delete a rule by its comment; the undo puts it at its place again."""
    _verb, family, table, chain, comment = argv
    listed = run(["nft", "-a", "list", "chain", family, table, chain]).splitlines()
    rules = [line.strip() for line in listed if _HANDLE.search(line) and " { # handle" not in line]
    place = next((at for at, line in enumerate(rules) if f'comment "{comment}"' in line), None)
    if place is None:
        raise BuildError(f"no rule of {family} {table} {chain} has the comment {comment!r}")
    text, handle = _COUNTED.sub("counter", _HANDLE.sub("", rules[place])), _HANDLE.search(rules[place])
    assert handle is not None
    run(["nft", f"delete rule {family} {table} {chain} handle {handle[1]}"])
    is_last = place == len(rules) - 1
    where = (
        f"add rule {family} {table} {chain}"
        if is_last
        else f"insert rule {family} {table} {chain} index {place}"
    )
    return [["nft", f"{where} {text}"]]


_UNDOABLE: dict[str, Callable[[Argv, Argv], Undo]] = {
    "nft": _run_nft, "sysctl": _set_sysctl, "delete-rule": _delete_rule,
}  # fmt: skip


def main() -> int:
    """Inject or undo the named faults; print what can't be done and why."""
    settings = lab_settings()
    if settings is None:
        print("this is not a demo lab")
        return 1
    verb, *names = sys.argv[1:]
    try:
        for name in names:
            (inject if verb == "inject" else undo)(name, settings)
    except FaultError as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
