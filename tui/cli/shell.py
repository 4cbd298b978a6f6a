"""Run `vnet-tui shell`: a shell or command in a container or its network.

Programs of a container's image run only through its engine (`docker exec`), which confines them. Everything
else runs programs of this host in the network namespace alone, as `nsenter --net` does.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

from core.collect.snapshot import read_snapshot
from core.model import Container, Namespace, Part
from core.netlink.netns import NamespaceGone, entered, entry_of
from core.text import failure_sentence, safe
from core.tools import root_owned_folder
from core.topology import Topology
from tui.command import CommandError

_ENGINES = ("docker", "podman")
# bash if the image has it; what is there as `sh` runs this line.
_ANY_SHELL = ("sh", "-c", "command -v bash >/dev/null && exec bash; exec sh")
_NO_PROGRAM = (126, 127)  # exit codes of `docker exec` for a program that can't be run
_SECONDS = 10.0
_USUAL_SHELL = "/bin/sh"


@dataclass(frozen=True, slots=True)
class _Target:
    """What the shell is to be in: a namespace, and the container that it belongs to."""

    name: str
    namespace: Namespace | None
    container: Container | None = None


def run(options: argparse.Namespace) -> int:
    """Become the shell or command; returns only if that fails. Raises CommandError."""
    words, in_network = list(options.run), options.net
    if words[:1] == ["--net"]:  # argparse takes it for the command after the name
        words, in_network = words[1:], True
    words = words[1:] if words[:1] == ["--"] else words
    target = _find(Topology(read_snapshot({Part.LINKS, Part.CONTAINERS})), options.container)
    container = target.container
    if container and container.runtime in _ENGINES and not in_network:
        _say(_run_by_engine(target, container, words), target)
    _run_in_network(target, words)


def _find(topology: Topology, name: str) -> _Target:
    """Find a container or namespace by name, id or inode; raises CommandError."""
    targets = list(_targets(topology))
    for known, target in targets:
        if known == name:
            return target
    near = get_close_matches(name, [known for known, _ in targets], n=1, cutoff=0.6)
    remedy = f"vnet-tui shell {safe(near[0])}" if near else "vnet-tui show containers"
    why = "no container or namespace has that name"
    raise CommandError(failure_sentence(f"can't open a shell in {safe(name)}", why, remedy))


def _targets(topology: Topology) -> Iterator[tuple[str, _Target]]:
    """Yield each name that can be given, with its target."""
    namespaces = topology.snapshot.namespaces
    for one in topology.containers.values():
        space = namespaces.get(one.netns) if one.netns is not None else None
        target = _Target(one.name, space, one)
        yield from ((known, target) for known in (one.name, one.uid, one.id, one.id[:12]) if known)
    for inode, space in namespaces.items():
        label = topology.label(inode)
        for known in (label, str(inode), space.unit, *space.names):
            if known:
                yield known, _Target(label, space)


def _run_by_engine(target: _Target, container: Container, words: Sequence[str]) -> str:
    """Become `docker exec`, or return why that can't be. Raises CommandError."""
    engine = container.runtime
    what = f"can't open a shell in {safe(target.name)}"
    if container.state != "running":
        remedy = f"{engine} {'unpause' if container.state == 'paused' else 'start'} {safe(container.name)}"
        raise CommandError(failure_sentence(what, f"it is {container.state}", remedy))
    if shutil.which(engine) is None:
        return f"there is no program {engine} on PATH, which enters the container"
    if not words and not _has_shell(engine, container.id, what):
        return "its image has no shell"
    prompt = () if words else _prompt(target.name).items()
    flags = [f"--env={name}={value}" for name, value in prompt]
    flags += ["--interactive", *(["--tty"] if sys.stdin.isatty() and sys.stdout.isatty() else [])]
    if not words:
        _announce(f"a shell in {safe(target.name)}")
    return _become([engine, "exec", *flags, container.id, *(words or _ANY_SHELL)])


def _has_shell(engine: str, container_id: str, what: str) -> bool:
    """Return whether the image has `sh`; raises CommandError if the engine fails."""
    command = [engine, "exec", container_id, "sh", "-c", ":"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        raise CommandError(failure_sentence(what, f"{engine} doesn't answer", f"{engine} ps")) from None
    if done.returncode and done.returncode not in _NO_PROGRAM:
        why = safe(done.stderr.decode("utf-8", "replace").strip()[:200]) or f"{engine} failed"
        raise CommandError(failure_sentence(what, why, f"{engine} ps"))
    return done.returncode == 0


def _say(why: str, target: _Target) -> None:
    """Say why the container's own shell isn't opened."""
    print(f"vnet-tui: can't run programs of {safe(target.name)}: {why}", file=sys.stderr)


def _announce(what: str) -> None:
    """Say on a terminal where the shell is, and that vnet-tui undoes no change there."""
    if sys.stdin.isatty() and sys.stderr.isatty():
        print(f"vnet-tui: {what}; exit or Ctrl-d returns", file=sys.stderr)
        print("vnet-tui doesn't record or undo changes made in it", file=sys.stderr)


def _prompt(name: str) -> dict[str, str]:
    """Return the environment in which a shell's prompt shows that name.

    Shells expand $(...) in PS1, so only plain characters of the name are kept. Debian's bash.bashrc sets PS1
    itself, with debian_chroot in it.
    """
    plain = re.sub(r"[^\w.-]", "_", name, flags=re.ASCII)
    return {"PS1": f"({plain}) $PWD # ", "debian_chroot": plain}


def _run_in_network(target: _Target, words: Sequence[str]) -> NoReturn:
    """Become a program of this host in the network namespace. Raises CommandError."""
    what = f"can't open a shell in {safe(target.name)}"
    if target.namespace is None:
        raise CommandError(failure_sentence(what, "it has no network namespace now", "start it"))
    try:
        with entered(entry_of(target.namespace), target.namespace.inode):
            if not words:
                _announce(f"the host's shell, in the network namespace of {safe(target.name)}")
                os.environ.update(_prompt(target.name))
            _become(list(words) or [_host_shell()])
    except NamespaceGone:
        why = "its namespace no longer exists"
        raise CommandError(failure_sentence(what, why, "vnet-tui show namespaces")) from None
    except PermissionError:
        why = "entering a namespace needs CAP_SYS_ADMIN"
        raise CommandError(failure_sentence(what, why, "run it with sudo")) from None


def _host_shell() -> str:
    """Return the user's shell; root's only from a folder that root alone can write."""
    shell = Path(os.environ.get("SHELL", ""))
    is_safe = os.geteuid() != 0 or root_owned_folder(str(shell.parent))
    return str(shell) if shell.is_absolute() and is_safe and os.access(shell, os.X_OK) else _USUAL_SHELL


def _become(words: Sequence[str]) -> NoReturn:
    """Replace this process by a program; raises CommandError if it can't be run."""
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execvp(words[0], list(words))
    except OSError as error:
        why = error.strerror or "it isn't a program"
        raise CommandError(f"can't run {safe(words[0])}: {why}. Try: the path of a program") from None
