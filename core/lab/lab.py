"""Start the lab, run commands in it, and end it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

from core.lab.blueprint import READY, LabSettings
from core.text import failure_sentence
from core.tools import ENGINES, environment, python_environment

_STATE = "/run/vnet-tui"  # in the lab's own /run, so removed with the lab
_NAMESPACES = os.CLONE_NEWNS | os.CLONE_NEWUTS | os.CLONE_NEWIPC | os.CLONE_NEWNET
# Variables that lead to an engine or a tmux server outside the lab.
_OUTSIDE_VARIABLES = ("DOCKER_HOST", "DOCKER_CONTEXT", "CONTAINER_HOST", "TMUX", "TMUX_PANE")

_CAPABILITIES = ("CAP_NET_ADMIN", "CAP_SYS_ADMIN")


class LabError(Exception):
    """The lab can't be built: `reason` says why, `try_` what may help ("" if unknown)."""

    def __init__(self, reason: str, try_: str = "", what: str = "can't build the demo lab") -> None:
        self.reason, self.try_ = reason, try_
        super().__init__(failure_sentence(what, reason, try_))


class Lab:
    """A running lab, as a context manager; several may run at the same time.

    It has pid, mount, net, uts and ipc namespaces of its own. However this process ends, the kernel removes
    the lab with it, so there is nothing to clean up.
    """

    def __init__(
        self, settings: LabSettings | None = None, progress: Callable[[str], None] | None = None
    ) -> None:
        self.settings = settings or LabSettings()
        self._progress = progress or (lambda _text: None)
        self._supervisor: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Return the id of the lab's first process in this process's pid namespace."""
        if self._supervisor is None:
            raise RuntimeError("the lab is not running")
        return self._supervisor.pid

    def start(self) -> None:
        """Build the lab and wait until it is complete.

        Raises LabError without the privileges, and if a step fails.
        """
        self.begin()
        self.wait_until_built()

    def begin(self) -> None:
        """Begin to build the lab. Raises LabError without the privileges."""
        check_rights()
        try:
            with _children_in_new_pid_namespace():
                self._supervisor = self._supervise()
        except OSError as error:
            raise LabError(f"the kernel made no new pid namespace ({error.strerror})") from error

    def wait_until_built(self) -> None:
        """Wait until a lab that was begun is complete. Raises LabError if a step fails."""
        last_line = ""
        for line in (self._supervisor and self._supervisor.stdout) or ():
            if line.strip() == READY:
                return
            last_line = line.rstrip()
            self._progress(last_line)
        self.close()
        raise LabError(last_line or "its first process ended without a message")

    def close(self) -> None:
        """End the lab and wait until all its processes have ended."""
        if self._supervisor is not None:
            self._supervisor.kill()
            self._supervisor.communicate()
            self._supervisor = None

    def popen_inside(
        self, argv: Sequence[str], env: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[Any]:
        """Start a command on the lab's host; `options` are those of subprocess.Popen.

        It is a child of this process, and the kernel kills it with the lab.
        """
        variables = environment() if env is None else dict(env)
        for name in _OUTSIDE_VARIABLES:
            variables.pop(name, None)
        # The machine's engines aren't part of the lab.
        variables[ENGINES] = "frr" if self.settings.frr else "none"
        variables["TMUX_TMPDIR"] = "/run"  # /tmp is shared with the machine and its tmux servers
        variables["VNET_STATE"] = _STATE  # the lab has a journal of its own
        supervisor = os.pidfd_open(self.pid)
        try:
            with _children_in_pid_namespace(supervisor):
                enter = _enter_lab(supervisor, os.getcwd())  # only system calls: safe with threads
                return subprocess.Popen(argv, env=variables, preexec_fn=enter, **options)  # noqa: PLW1509
        finally:
            os.close(supervisor)

    def run_inside(
        self, argv: Sequence[str], env: Mapping[str, str] | None = None, pass_fds: Sequence[int] = ()
    ) -> int:
        """Run a command in the lab on this terminal; return its exit code (or -signal).

        Call it on the main thread only: it ignores Ctrl-C, which the command gets, and forwards SIGTERM.
        """
        process = self.popen_inside(argv, env, pass_fds=pass_fds)
        with _signals_forwarded(process):
            return _wait(process)

    def inject(self, *faults: str) -> None:
        """Inject faults of `core.lab.faults` into the running lab. Raises LabError."""
        change_faults("inject", faults, self.popen_inside)

    def undo_fault(self, *faults: str) -> None:
        """Undo injected faults. Raises LabError."""
        change_faults("undo", faults, self.popen_inside)

    def _supervise(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-P", "-S", "-m", "core.lab.supervisor", json.dumps(asdict(self.settings))],
            env=python_environment(),
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # Ctrl-C is for the command in the lab
            pass_fds=[self.settings.underlay] if self.settings.underlay >= 0 else (),
        )


def check_rights() -> None:
    """Raise LabError if this process can't create network namespaces."""
    if os.geteuid() != 0:
        raise LabError("needs root", "sudo vnet-tui demo")
    from core.collect.host import missing_capabilities  # the supervisor has no site-packages

    missing = [name for name in missing_capabilities() if name in _CAPABILITIES]
    if missing:  # root without capabilities is nearly always in a container
        raise LabError(f"needs {' and '.join(missing)}", "docker run --privileged")


def change_faults(verb: str, faults: Sequence[str], popen: Callable[..., subprocess.Popen[Any]]) -> None:
    """Inject or undo faults with a process that `popen` starts in the lab.

    Raises LabError.
    """
    process = popen(
        [sys.executable, "-P", "-S", "-m", "core.lab.inject", verb, *faults],
        env=python_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    output, _ = process.communicate()
    if process.returncode:
        raise LabError(output.strip(), what=f"can't {verb} {', '.join(faults)} in the demo lab")


def _enter_lab(supervisor: int, folder: str) -> Callable[[], None]:
    def enter() -> None:
        os.setns(supervisor, _NAMESPACES)
        with suppress(OSError):  # setns(2) to a mount namespace changes to its root; the folder may not exist
            os.chdir(folder)

    return enter


@contextmanager
def _children_in_new_pid_namespace() -> Iterator[None]:
    """Make the next child of this thread pid 1 of a new pid namespace."""
    with _pid_namespace_of_children_restored():
        os.unshare(os.CLONE_NEWPID)
        yield


@contextmanager
def _children_in_pid_namespace(process: int) -> Iterator[None]:
    """Start children of this thread in the pid namespace of `process`, a pidfd."""
    with _pid_namespace_of_children_restored():
        os.setns(process, os.CLONE_NEWPID)
        yield


@contextmanager
def _pid_namespace_of_children_restored() -> Iterator[None]:
    home = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        os.setns(home, os.CLONE_NEWPID)
        os.close(home)


@contextmanager
def _signals_forwarded(process: subprocess.Popen[Any]) -> Iterator[None]:
    """Ignore Ctrl-C, which the terminal sends to the child too, and forward SIGTERM."""
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: process.terminate()),
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(process: subprocess.Popen[Any]) -> int:
    """Wait for the child; if it stops (Ctrl-Z), stop too, so the shell takes over."""
    while True:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            process.returncode = os.waitstatus_to_exitcode(status)
            return process.returncode
        os.kill(os.getpid(), signal.SIGSTOP)
        process.send_signal(signal.SIGCONT)


def main(argv: list[str], settings: LabSettings | None = None, env: Mapping[str, str] | None = None) -> int:
    """Build the lab, run `argv` in it on this terminal and return its exit code.

    Raises LabError.
    """
    with Lab(settings, progress=print_progress) as lab:
        return shell_code(lab.run_inside(argv, env))


def shell_code(code: int) -> int:
    """Return the exit code that a shell gives: 128 + signal for -signal."""
    return code if code >= 0 else 128 - code


def print_progress(text: str) -> None:
    """Print a step of the build to standard error."""
    print(f"demo lab: {text} ...", file=sys.stderr, flush=True)
