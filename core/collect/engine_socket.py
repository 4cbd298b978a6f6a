"""Finding a container engine's API socket, and telling an absent engine from a stopped or a closed one."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from core.model import Engine, Problem
from core.netlink.netns import THREAD_PATH, inode_of

# Seconds that an engine has for one answer.
REQUEST_SECONDS = 2.0
_SYSTEMD = Path("/run/systemd/system")


@dataclass(frozen=True, slots=True)
class EngineKind:
    """What tells one engine from another: its `name` in the model, its `title` for people, the `program` it
    is installed with, the environment `variable` that points at its socket, the usual path of its
    `socket`, and the command that starts it (`start`).

    `service` and `pidfile` are those of an engine whose socket systemd may hold open while it is stopped:
    merely connecting would start it.
    """

    name: str
    title: str
    program: str
    variable: str
    socket: str
    start: str
    service: str = ""
    pidfile: str = ""


class Unreachable(Exception):
    """The engine cannot be asked; `answer` says so in the model's words."""

    def __init__(self, answer: Engine) -> None:
        super().__init__(answer.state)
        self.answer = answer


def failure(kind: EngineKind, state: str, what: str, why: str = "", try_: str = "") -> Engine:
    """The engine's answer where there is none."""
    return Engine(kind.name, state, problems=(Problem(kind.name, what, why, try_),))


@contextmanager
def connected(kind: EngineKind, path: str) -> Iterator[socket.socket]:
    """A connection to the engine's socket at `path`; Unreachable where the engine is stopped, denies us or
    does not take the connection."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(REQUEST_SECONDS)
        _connect(kind, connection, path)
        yield connection
    finally:
        connection.close()


def has_socket(kind: EngineKind) -> bool:
    """Whether there is a socket to ask at, whoever listens there."""
    return _exists(_from_environment(kind) or kind.socket)


def find_socket(kind: EngineKind, path: str | None) -> str:
    """The path of the engine's socket: `path`, or where its variable points, or the usual one.

    Unreachable where there is none, or where systemd would start the engine as soon as we connected: looking
    must not change anything.
    """
    told = path or _from_environment(kind)
    found = told or kind.socket
    if not _exists(found):
        if told or shutil.which(kind.program):
            raise Unreachable(_stopped(kind, f"there is no socket at {found}"))
        raise Unreachable(Engine(kind.name, "absent"))
    if Path(found).resolve() == Path(kind.socket) and _asleep(kind):
        raise Unreachable(_stopped(kind, f"{kind.service} is not active"))
    return found


def home_of(connection: socket.socket) -> int:
    """The inode of the network namespace that the engine at the other end lives in (unix(7), SO_PEERCRED);
    the host's where that cannot be seen."""
    size = struct.calcsize("3i")
    pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    try:
        return inode_of(f"/proc/{pid}/ns/net")
    except OSError:
        return inode_of(THREAD_PATH)


def _connect(kind: EngineKind, connection: socket.socket, path: str) -> None:
    try:
        connection.connect(path)
    except PermissionError as error:
        raise Unreachable(_denied(kind, path)) from error
    except (ConnectionRefusedError, FileNotFoundError) as error:
        raise Unreachable(_stopped(kind, f"nobody listens at {path}")) from error
    except OSError as error:
        what = f"{kind.title} does not take connections"
        raise Unreachable(failure(kind, "error", what, f"{path}: {error.strerror or error}")) from error


def _from_environment(kind: EngineKind) -> str:
    """Where the variable points, if that is a socket on this machine; "" else."""
    scheme, _, path = os.environ.get(kind.variable, "").partition("://")
    return path if scheme == "unix" else ""


def _exists(path: str) -> bool:
    """Whether something is there, or may be: a folder that we may not look into counts."""
    try:
        Path(path).stat()
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def _asleep(kind: EngineKind) -> bool:
    """Whether systemd listens in place of a stopped engine."""
    if not kind.service or not _SYSTEMD.is_dir() or _runs(kind.pidfile):
        return False
    units = [kind.service.replace(".service", ".socket"), kind.service]
    try:
        done = subprocess.run(
            ["systemctl", "is-active", *units],
            capture_output=True,
            text=True,
            check=False,
            timeout=REQUEST_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.stdout.split() in (["active", "inactive"], ["active", "failed"])


def _runs(pidfile: str) -> bool:
    try:
        return Path("/proc", Path(pidfile).read_text().strip()).is_dir()
    except OSError:
        return False


def _stopped(kind: EngineKind, why: str) -> Engine:
    return failure(kind, "stopped", f"{kind.title} is not running", why, kind.start)


def _denied(kind: EngineKind, path: str) -> Engine:
    return failure(
        kind,
        "denied",
        f"{kind.title} does not let this user ask",
        f"no right to open {path}",
        "run vnet-tui with sudo",
    )
