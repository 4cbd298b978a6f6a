"""The launcher's side of the lab: start it, run commands inside it, end it."""

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
from core.tools import ENGINES, with_packages

_STATE = "/run/vnet-tui"  # in the lab's own /run: it ends with the lab
_NAMESPACES = os.CLONE_NEWNS | os.CLONE_NEWUTS | os.CLONE_NEWIPC | os.CLONE_NEWNET
# These would lead a program inside to an engine or to a tmux server outside.
_LEADING_OUT = ("DOCKER_HOST", "DOCKER_CONTEXT", "CONTAINER_HOST", "TMUX", "TMUX_PANE")

# What the lab can't be built without.
_NEEDED = ("CAP_NET_ADMIN", "CAP_SYS_ADMIN")


class LabError(Exception):
    """The lab can't be built here: `reason` says why, `try_` what may help ("" where nothing is known to)."""

    def __init__(self, reason: str, try_: str = "") -> None:
        self.reason, self.try_ = reason, try_
        super().__init__(f"can't build the demo lab: {reason}" + (f". Try: {try_}" if try_ else ""))


class Lab:
    """One lab; several may run at the same time. Use as a context manager.

    The lab lives in pid, mount, net, uts and ipc namespaces of its own and dies with this process, however
    that ends: nothing of it is left on the machine, so there is nothing to clean up.
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
        """The lab's first process, as this process's pid namespace numbers it."""
        if self._supervisor is None:
            raise RuntimeError("the lab is not running")
        return self._supervisor.pid

    def start(self) -> None:
        """Build the lab; returns when it is complete. Raises LabError without the rights or where a step
        fails."""
        check_rights()
        try:
            with _children_in_new_pid_namespace():
                self._supervisor = self._supervise()
        except OSError as error:
            raise LabError(f"no new pid namespace ({error.strerror})") from error
        self._await_ready(self._supervisor)

    def close(self) -> None:
        """End the lab; when this returns, none of its processes is left."""
        if self._supervisor is not None:
            self._supervisor.kill()
            self._supervisor.communicate()
            self._supervisor = None

    def popen_inside(
        self, argv: Sequence[str], env: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[Any]:
        """Start a command inside the lab, as on the lab's host; `options` are those of subprocess.Popen.

        It is a child of this process (wait for it, signal it) and dies with the lab.
        """
        variables = {**(os.environ if env is None else env)}
        for name in _LEADING_OUT:
            variables.pop(name, None)
        variables[ENGINES] = "none"  # those of the machine are no part of the lab
        variables["TMUX_TMPDIR"] = "/run"  # /tmp is the machine's, with its tmux servers
        variables["VNET_STATE"] = _STATE  # nor is its journal, and a change in here is none of the machine's
        supervisor = os.pidfd_open(self.pid)
        try:
            with _children_in_pid_namespace(supervisor):
                enter = _entering(supervisor, os.getcwd())  # makes system calls only: safe beside threads
                return subprocess.Popen(argv, env=variables, preexec_fn=enter, **options)  # noqa: PLW1509
        finally:
            os.close(supervisor)

    def run_inside(self, argv: Sequence[str], env: Mapping[str, str] | None = None) -> int:
        """Run a command inside the lab on this terminal and return its exit code (negative: the signal).

        For the main thread only: meanwhile it leaves Ctrl-C to the command and passes SIGTERM on to it.
        """
        process = self.popen_inside(argv, env)
        with _signals_left_to(process):
            return _wait(process)

    def _supervise(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-P", "-S", "-m", "core.lab.supervisor", json.dumps(asdict(self.settings))],
            env=with_packages(),
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # Ctrl-C is for what runs inside
        )

    def _await_ready(self, supervisor: subprocess.Popen[str]) -> None:
        said = []
        for line in supervisor.stdout or ():
            if line.strip() == READY:
                return
            said.append(line.rstrip())
            self._progress(said[-1])
        self.close()
        raise LabError(said[-1] if said else "no reason given")


def check_rights() -> None:
    """Raise LabError where this process may not make network namespaces."""
    if os.geteuid() != 0:
        raise LabError("needs root", "sudo vnet-tui demo")
    from core.collect.host import missing_capabilities  # not for the supervisor, which has no site-packages

    missing = [name for name in missing_capabilities() if name in _NEEDED]
    if missing:  # root without them: nearly always in a container
        raise LabError(f"needs {' and '.join(missing)}", "docker run --privileged")


def _entering(supervisor: int, folder: str) -> Callable[[], None]:
    def enter() -> None:
        os.setns(supervisor, _NAMESPACES)
        with suppress(OSError):  # setns(2) of a mount namespace moves to its root; stay there where need be
            os.chdir(folder)

    return enter


@contextmanager
def _children_in_new_pid_namespace() -> Iterator[None]:
    """The next child that this thread starts is pid 1 of a new pid namespace; this process stays outside."""
    with _pid_namespace_of_children_restored():
        os.unshare(os.CLONE_NEWPID)
        yield


@contextmanager
def _children_in_pid_namespace(process: int) -> Iterator[None]:
    """Children that this thread starts belong to the pid namespace of `process`, a pidfd."""
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
def _signals_left_to(process: subprocess.Popen[Any]) -> Iterator[None]:
    """Meanwhile Ctrl-C is the child's affair (the terminal sends it to both), and SIGTERM is passed on."""
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
    """Wait for the end; when the child is stopped (Ctrl-Z), stop as well, so that the shell takes over."""
    while True:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            process.returncode = os.waitstatus_to_exitcode(status)
            return process.returncode
        os.kill(os.getpid(), signal.SIGSTOP)
        process.send_signal(signal.SIGCONT)


def main(argv: list[str], settings: LabSettings | None = None, env: Mapping[str, str] | None = None) -> int:
    """Build the lab, run `argv` inside it on this terminal and return its exit code. Raises LabError."""
    with Lab(settings, progress=_say) as lab:
        code = lab.run_inside(argv, env)
        return code if code >= 0 else 128 - code  # ended by a signal: as a shell says it


def _say(text: str) -> None:
    print(f"demo lab: {text} ...", file=sys.stderr, flush=True)
