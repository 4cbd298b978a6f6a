"""Run `python -m tui.cli` by forking a server that has imported everything.

Each command is a real process with its own standard streams, environment and exit code, in the namespaces
that the caller names; only the 0.3 s of CPU time for imports are saved. Tests of signals, of terminals or of
start-up itself start the real program instead.
"""

from __future__ import annotations

import array
import functools
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NoReturn

from tests.support.waiting import scaled

ROOT = Path(__file__).parents[2]
_REQUEST = 1 << 20  # bytes of a request, with its environment
# What the commands import when they run.
_PRELOADED = (
    "core.agent", "core.collect.snapshot", "core.export", "core.lab", "tui.cli.agent", "tui.cli.change",
    "tui.cli", "tui.cli.fastpath", "tui.cli.flows", "tui.cli.lab_faults", "tui.cli.record", "tui.cli.show",
    "tui.cli.why", "tui.cli.doctor", "bpf.client", "difflib", "core.operations.rtnetlink", "docker.api",
    "psutil", "tui.cli.capture", "tui.cli.drops", "tui.cli.diff", "tui.cli.shell", "tui.cli.trace",
    "tui.cli.repair", "tui.cli.diagnosis",
)  # fmt: skip


def run(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    namespaces: Sequence[str] = (),
    text: str = "",
    timeout: float = scaled(120),
) -> subprocess.CompletedProcess[str]:
    """Run `vnet-tui ARGUMENTS` with `text` as input in these namespaces, in order.

    Raises subprocess.TimeoutExpired; a process ended by a signal has that number negated as its returncode.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    request = json.dumps([list(arguments), dict(environment), list(namespaces)]).encode()
    with ours, TemporaryFile() as given, TemporaryFile() as output, TemporaryFile() as errors:
        given.write(text.encode())
        given.seek(0)
        descriptors = array.array("i", [each.fileno() for each in (theirs, given, output, errors)])
        with theirs:
            _server().sendmsg([request], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
        ours.settimeout(timeout)
        try:
            answer = ours.recv(100)
        except TimeoutError:
            raise subprocess.TimeoutExpired(list(arguments), timeout) from None
        printed, complaint = (each.seek(0) or each.read().decode() for each in (output, errors))
    assert answer, f"can't run vnet-tui {arguments}: {complaint}"
    return subprocess.CompletedProcess(list(arguments), int(answer), printed, complaint)


@functools.cache
def _server() -> socket.socket:
    """Start the server once per test process; it ends when the socket closes."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.forkserver", str(theirs.fileno())],
            pass_fds=[theirs.fileno()], cwd=ROOT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    return ours


def _serve(requests: socket.socket) -> None:
    """Fork for each request until the other end closes."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    while True:
        data, ancillary, _, _ = requests.recvmsg(_REQUEST, socket.CMSG_SPACE(4 * 4))
        if not data:
            return
        descriptors = array.array("i", ancillary[0][2])
        if not os.fork():
            requests.close()
            _wait_for_child(json.loads(data), *descriptors)
        for each in descriptors:
            os.close(each)


def _wait_for_child(request: Any, reply: int, *streams: int) -> NoReturn:
    """Enter the namespaces, fork the command and report its end.

    Only children live in a new PID namespace.
    """
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        arguments, environment, namespaces = request
        for number, each in enumerate(streams):
            os.dup2(each, number, inheritable=True)
        for each in [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in namespaces]:
            os.setns(each)
        os.chdir(ROOT)
        child = os.fork()
        if not child:
            os.close(reply)
            _command(arguments, environment)
        status = os.waitpid(child, 0)[1]
        os.write(reply, str(os.waitstatus_to_exitcode(status)).encode())
    finally:
        os._exit(0)


def _command(arguments: list[str], environment: dict[str, str]) -> NoReturn:
    """Become `python -m tui.cli ARGUMENTS`."""
    from tests.support import killing
    from tui import cli

    os.environ.clear()
    os.environ.update(environment)
    killing.arm(environment)
    sys.argv = [str(ROOT / "tui" / "cli.py"), *arguments]
    encoding = environment.get("PYTHONIOENCODING")  # read at an interpreter's start only
    sys.stdin, sys.stdout = os.fdopen(0, encoding=encoding), os.fdopen(1, "w", encoding=encoding)
    sys.stderr = os.fdopen(2, "w", encoding=encoding, errors="backslashreplace")
    code: object = 1
    try:
        code = cli.main()
    except SystemExit as error:
        code = error.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    if isinstance(code, str):
        print(code, file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    for module in _PRELOADED:
        __import__(module)
    _serve(socket.socket(fileno=int(sys.argv[1])))
