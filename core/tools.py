"""Run system tools with bounded time and output, in root's cleaned environment."""

from __future__ import annotations

import math
import os
import pwd
import resource
import select
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

TIMEOUT = 10.0
_MAX_MEMORY = 1 << 30  # of a tool: nft holds whole sets
_CHUNK = 1 << 18
_MAX_QUOTED = 300  # characters of a tool's error message


class ToolFailed(Exception):
    """A tool failed; `what`, `why` and `try_` are those of core.model.Problem."""

    def __init__(self, what: str, why: str, try_: str) -> None:
        super().__init__(f"{what}: {why}")
        self.what, self.why, self.try_ = what, why, try_


class OutOfTime(ToolFailed):
    """A tool took too long."""


class ToolMissing(ToolFailed):
    """A tool is not installed."""


def find_tool(*names: str) -> str:
    """Return the first of these names that is on PATH, "" if none is."""
    return next((name for name in names if shutil.which(name)), "")


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of a tool: deadline in seconds of `time.monotonic`, and bytes of output."""

    end: float = math.inf
    max_bytes: int = 64 << 20


_DEFAULT_BOUNDS = Bounds()
_bounds: ContextVar[Bounds] = ContextVar("bounds", default=_DEFAULT_BOUNDS)


@contextmanager
def bounded(seconds: float, max_bytes: int) -> Iterator[None]:
    """Limit the time of all tools run inside together, and the output of each."""
    before = _bounds.set(Bounds(time.monotonic() + seconds, max_bytes))
    try:
        yield
    finally:
        _bounds.reset(before)


def check_time(what: str) -> None:
    """Raise OutOfTime if the deadline of `bounded` has passed."""
    if time.monotonic() > _bounds.get().end:
        why = "this namespace took too long, so the others are read first"
        raise OutOfTime(f"can't read {what} in time", why, "see how many rules there are")


def run_tool(*command: str, package: str) -> str:
    """Run a tool and return its output, undecodable bytes as surrogates.

    It runs in the network namespace of the calling thread. Raises ToolMissing, or ToolFailed if it fails,
    prints too much or doesn't end within TIMEOUT or the bounds."""
    tool = command[0]
    check_time(f"the output of {tool}")
    seconds = min(TIMEOUT, _bounds.get().end - time.monotonic())
    try:
        output, errors, code = _output_of(command, max(0.0, seconds), _bounds.get().max_bytes)
    except FileNotFoundError:
        raise missing(tool, package) from None
    except TimeoutError:
        why = f"`{' '.join(command)}` didn't end within {seconds:.2g} seconds"
        try_ = "run it in a shell to see whether it hangs there too"
        raise OutOfTime(f"can't get an answer from {tool}", why, try_) from None
    except OSError as error:
        raise ToolFailed(f"can't run {tool}", error.strerror or str(error), f"reinstall {package}") from error
    if code:
        why = _excerpt(errors) or f"it ended with exit code {code}"
        try_ = f"run `{' '.join(command)}` in a shell to see more"
        raise ToolFailed(f"can't read with {tool}", why, try_)
    return output.decode("utf-8", "surrogateescape")


def _output_of(command: tuple[str, ...], seconds: float, max_bytes: int) -> tuple[bytes, bytes, int]:
    """Return output, errors and exit code of a tool; kill it if it exceeds a limit."""
    with tempfile.TemporaryFile() as errors:
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
            env=environment(LC_ALL="C"),
        ) as tool:  # fmt: skip
            try:
                with suppress(OSError):  # it has ended already
                    resource.prlimit(tool.pid, resource.RLIMIT_AS, (_MAX_MEMORY, _MAX_MEMORY))
                output = _read(tool, time.monotonic() + seconds, max_bytes)
            except BaseException:
                tool.kill()
                raise
        errors.seek(0)
        return output, errors.read(_MAX_QUOTED * 4), tool.returncode


def _read(tool: subprocess.Popen[bytes], end: float, max_bytes: int) -> bytes:
    assert tool.stdout is not None
    output, descriptor = bytearray(), tool.stdout.fileno()
    ready = select.poll()
    ready.register(descriptor, select.POLLIN)
    while ready.poll(max(0.0, end - time.monotonic()) * 1000):
        chunk = os.read(descriptor, _CHUNK)
        if not chunk:
            tool.wait(max(0.0, end - time.monotonic()))
            return bytes(output)
        output += chunk
        if len(output) > max_bytes:
            what = f"can't read the whole output of {tool.args[0]}"  # type: ignore[index, str-bytes-safe]
            why = f"it has more than {max_bytes >> 10} KiB"
            raise ToolFailed(what, why, "see how many rules and sets there are")
    raise TimeoutError


def missing(name: str, package: str) -> ToolMissing:
    """Return the error for a tool that isn't on PATH."""
    return ToolMissing(
        f"can't find {name}",
        "there is no such program on PATH",
        f"install {package}, or add /usr/sbin to PATH",
    )


def _excerpt(output: bytes) -> str:
    return output.decode("utf-8", "replace").strip()[:_MAX_QUOTED]


# The environment of root's programs and of vnet's own Python processes.
#
# sudo(8) cleans most of it; `sudo -E`, make and a root shell don't. Only the variables listed here are kept,
# so that none makes this process, a tool or a library load code from, or write to, a folder that another user
# may write.

PACKAGES = Path(__file__).parents[1]  # the folder that holds `core`
_ROOT = 0
_DEFAULT_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_KEPT_VARIABLES = (
    "VNET_*", "DOCKER_HOST", "CONTAINER_HOST",
    "USER", "LOGNAME", "SHELL", "PWD", "LANG", "LANGUAGE", "LC_*", "TZ", "SSH_*",
    "TERM", "COLORTERM", "TERM_PROGRAM*", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TMUX", "STY",
    "NOTIFY_SOCKET", "INVOCATION_ID", "JOURNAL_STREAM", "OPENBLAS_NUM_THREADS",
)  # fmt: skip


def clean_environment() -> None:
    """Remove variables that root can't trust; other users keep their environment.

    PATH, HOME, OVS_RUNDIR and TMPDIR keep only folders that only root may write, TMPDIR also one like
    /tmp."""
    if os.geteuid() != _ROOT:
        return
    given = dict(os.environ)
    kept = {
        name: text
        for name, text in given.items()
        if any(fnmatch(name, pattern) for pattern in _KEPT_VARIABLES)
    }
    folders = [resolved for each in given.get("PATH", "").split(":") if (resolved := root_owned_folder(each))]
    # Tools such as nft are in sbin, which a root shell by plain `su` lacks.
    kept["PATH"] = ":".join(dict.fromkeys([*folders, *_DEFAULT_PATH.split(":")]))
    kept["HOME"] = root_owned_folder(given.get("HOME", "")) or pwd.getpwuid(_ROOT).pw_dir
    if rundir := root_owned_folder(given.get("OVS_RUNDIR", "")):
        kept["OVS_RUNDIR"] = rundir
    if scratch := root_owned_folder(given.get("TMPDIR", ""), shared=True):
        kept["TMPDIR"] = scratch
    os.environ.clear()
    os.environ.update(kept)


def root_owned_folder(folder: str, shared: bool = False) -> str:
    """Resolve a folder that only root can change or replace; return "" for any other.

    With `shared` others may add files to it, as to /tmp, but not change those of other users."""
    if not folder.startswith("/"):
        return ""
    try:
        resolved = Path(folder).resolve(strict=True)
        # In a user namespace the machine's root has another uid, but still owns /.
        owners = {_ROOT, Path("/").stat().st_uid}
        for each in (resolved, *resolved.parents):
            status = each.stat()
            sticky = status.st_mode & stat.S_ISVTX and (shared or each != resolved)
            if status.st_uid not in owners or (_others_may_write(status) and not sticky):
                return ""
    except (OSError, RuntimeError):
        return ""
    return str(resolved)


def _others_may_write(status: os.stat_result) -> bool:
    group = status.st_mode & stat.S_IWGRP and status.st_gid != _ROOT
    return bool(group or status.st_mode & stat.S_IWOTH)


def python_command(module: str, *arguments: str) -> list[str]:
    """Return the command for a vnet module; -P: don't import from the cwd."""
    return [sys.executable, "-P", "-m", module, *arguments]


def python_environment(**more: str) -> dict[str, str]:
    """Return this environment with PYTHONPATH for `python_command`, and variables."""
    return environment(PYTHONPATH=str(PACKAGES)) | more


def environment(**more: str) -> dict[str, str]:
    """Copy this process's environment, and add variables.

    Unlike `dict(os.environ)` it doesn't fail while another thread removes a variable."""
    present = {name: text for name in os.environ if (text := os.environ.get(name)) is not None}
    return present | more


# A list of "docker", "podman" and "ovs", such as "docker,podman"; "none" for none of them.
ENGINES = "VNET_ENGINES"


def is_engine_enabled(engine: str) -> bool:
    """Return whether to read an engine; without the variable, all are read."""
    enabled = os.environ.get(ENGINES, "").strip()
    return not enabled or engine in (name.strip().lower() for name in enabled.split(","))
