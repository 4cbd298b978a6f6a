"""Running the tools that print what the kernel holds, in the thread's own network namespace."""

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
_MOST_MEMORY = 1 << 30  # that a tool may take: nft holds whole sets in it
_PIECE = 1 << 18
_QUOTED = 300


class ToolFailed(Exception):
    """A tool gave no answer; `what`, `why` and `try_` say so for a person, as core.model.Problem has them."""

    def __init__(self, what: str, why: str, try_: str) -> None:
        super().__init__(f"{what}: {why}")
        self.what, self.why, self.try_ = what, why, try_


class OutOfTime(ToolFailed):
    """It took too long."""


class ToolMissing(ToolFailed):
    """The tool is not installed."""


def find_tool(*names: str) -> str:
    """The first of these names that is on PATH, "" where none is."""
    return next((name for name in names if shutil.which(name)), "")


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long a tool may take, in seconds of `time.monotonic`, and how many bytes it may print."""

    end: float = math.inf
    most: int = 64 << 20


_USUAL = Bounds()
_bounds: ContextVar[Bounds] = ContextVar("bounds", default=_USUAL)


@contextmanager
def bounded(seconds: float, most: int) -> Iterator[None]:
    """Within this all tools together have so many seconds, and each prints so many bytes at most."""
    before = _bounds.set(Bounds(time.monotonic() + seconds, most))
    try:
        yield
    finally:
        _bounds.reset(before)


def check_time(what: str) -> None:
    """Raise OutOfTime where the time that `bounded` gives is over."""
    if time.monotonic() > _bounds.get().end:
        raise OutOfTime(f"{what} took too long", "the others are read first", "see how many rules there are")


def run_tool(*words: str, package: str) -> str:
    """What a tool printed, bytes that are no UTF-8 kept as surrogates. The tool runs in the network namespace
    of the calling thread. Raises ToolMissing, or ToolFailed where it failed, printed too much or did not end
    within TIMEOUT or the bounds."""
    check_time(words[0])
    seconds = min(TIMEOUT, _bounds.get().end - time.monotonic())
    try:
        output, errors, code = _output_of(words, max(0.0, seconds), _bounds.get().most)
    except FileNotFoundError:
        raise missing(words[0], package) from None
    except TimeoutError:
        why = f"`{' '.join(words)}` did not end within {seconds:.2g} seconds"
        raise OutOfTime(
            f"{words[0]} gave no answer", why, "see whether it hangs in a shell as well"
        ) from None
    except OSError as error:
        raise ToolFailed(f"{words[0]} cannot be run", str(error), f"reinstall {package}") from error
    if code:
        why = _first_words(errors) or f"it ended with exit code {code}"
        raise ToolFailed(f"{words[0]} failed", why, f"run `{' '.join(words)}` in a shell to see more")
    return output.decode("utf-8", "surrogateescape")


def _output_of(words: tuple[str, ...], seconds: float, most: int) -> tuple[bytes, bytes, int]:
    """What a tool prints, its errors and its exit code; it is killed where it takes too long or too much."""
    with tempfile.TemporaryFile() as errors:
        with subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
            env={**os.environ, "LC_ALL": "C"},
        ) as tool:  # fmt: skip
            try:
                with suppress(OSError):  # it has ended already
                    resource.prlimit(tool.pid, resource.RLIMIT_AS, (_MOST_MEMORY, _MOST_MEMORY))
                output = _read(tool, time.monotonic() + seconds, most)
            except BaseException:
                tool.kill()
                raise
        errors.seek(0)
        return output, errors.read(_QUOTED * 4), tool.returncode


def _read(tool: subprocess.Popen[bytes], end: float, most: int) -> bytes:
    assert tool.stdout is not None
    output, descriptor = bytearray(), tool.stdout.fileno()
    ready = select.poll()
    ready.register(descriptor, select.POLLIN)
    while ready.poll(max(0.0, end - time.monotonic()) * 1000):
        piece = os.read(descriptor, _PIECE)
        if not piece:
            tool.wait(max(0.0, end - time.monotonic()))
            return bytes(output)
        output += piece
        if len(output) > most:
            name, why = str(tool.args[0]), f"more than {most >> 10} KiB"  # type: ignore[index]
            raise ToolFailed(f"{name} printed too much", why, "see how many rules and sets there are")
    raise TimeoutError


def missing(name: str, package: str) -> ToolMissing:
    """The failure to raise where a tool is not on PATH."""
    return ToolMissing(
        f"{name} is not there", f"no program `{name}` on PATH", f"install {package}, or add /usr/sbin to PATH"
    )


def _first_words(output: bytes) -> str:
    return output.decode("utf-8", "replace").strip()[:_QUOTED]


# The environment in which root's programs run: cleaned at the start, and what our own Python processes get.
#
# sudo(8) cleans most of it; `sudo -E`, make and a root shell do not. Only what is listed here is kept, so
# that no variable makes us, a tool or a library load code from a folder that another user may write, or
# write there.

PACKAGES = Path(__file__).parents[1]  # the folder that holds `core`
_ROOT = 0
_USUAL_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_KEPT = (
    "VNET_*", "DOCKER_HOST", "CONTAINER_HOST",
    "USER", "LOGNAME", "SHELL", "PWD", "LANG", "LANGUAGE", "LC_*", "TZ", "SSH_*",
    "TERM", "COLORTERM", "TERM_PROGRAM*", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TMUX", "STY",
    "NOTIFY_SOCKET", "INVOCATION_ID", "JOURNAL_STREAM", "OPENBLAS_NUM_THREADS",
)  # fmt: skip


def clean() -> None:
    """Leave in the environment what root can rely on; other users keep theirs. Of PATH, HOME and TMPDIR the
    folders are kept where only root may write, TMPDIR also where it is one like /tmp."""
    if os.geteuid() != _ROOT:
        return
    given = dict(os.environ)
    kept = {name: text for name, text in given.items() if any(fnmatch(name, each) for each in _KEPT)}
    folders = [whole for each in given.get("PATH", "").split(":") if (whole := roots_folder(each))]
    # Tools such as nft lie in sbin, which a root shell by plain `su` lacks.
    kept["PATH"] = ":".join(dict.fromkeys([*folders, *_USUAL_PATH.split(":")]))
    kept["HOME"] = roots_folder(given.get("HOME", "")) or pwd.getpwuid(_ROOT).pw_dir
    if scratch := roots_folder(given.get("TMPDIR", ""), shared=True):
        kept["TMPDIR"] = scratch
    os.environ.clear()
    os.environ.update(kept)


def roots_folder(folder: str, shared: bool = False) -> str:
    """The folder without symlinks, where only root can change what lies in it or put another in its place; ""
    else. With `shared` others may add to it, as to /tmp, but not touch what is not theirs."""
    if not folder.startswith("/"):
        return ""
    try:
        whole = Path(folder).resolve(strict=True)
        # As root of a user namespace the machine's root is someone else, who has / all the same.
        owners = {_ROOT, Path("/").stat().st_uid}
        for each in (whole, *whole.parents):
            status = each.stat()
            sticky = status.st_mode & stat.S_ISVTX and (shared or each != whole)
            if status.st_uid not in owners or (_others_may_write(status) and not sticky):
                return ""
    except (OSError, RuntimeError):
        return ""
    return str(whole)


def _others_may_write(status: os.stat_result) -> bool:
    group = status.st_mode & stat.S_IWGRP and status.st_gid != _ROOT
    return bool(group or status.st_mode & stat.S_IWOTH)


def own_python(module: str, *arguments: str) -> list[str]:
    """The words that run a module of ours: with -P, or it would import from the current directory first."""
    return [sys.executable, "-P", "-m", module, *arguments]


def with_packages(**more: str) -> dict[str, str]:
    """Our environment with what `own_python` needs to find the module, and more variables."""
    return os.environ | {"PYTHONPATH": str(PACKAGES)} | more


# A list such as "docker,podman"; "none" for none of them. Engines: "docker", "podman", "ovs".
ENGINES = "VNET_ENGINES"


def is_engine_enabled(engine: str) -> bool:
    """Whether that engine is to be looked at; without the variable, each is."""
    told = os.environ.get(ENGINES, "").strip()
    return not told or engine in (word.strip().lower() for word in told.split(","))
