"""Run the supervisor: start the daemon, wait for its end, and clean up after it.

    python -m bpf.supervisor [--tied] [--strict] -- TARGET...

The first line of its output is the daemon's answer. With --tied the fast path ends when standard input
closes, that is with the process that started it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from contextlib import suppress

from bpf import runfile
from bpf.btf import load_module
from bpf.connections import field_mask
from bpf.rpc import refusal
from bpf.runfile import SUPERVISOR_VARIABLE, clean_up
from core.tools import python_command, python_environment


def main(arguments: list[str]) -> int:
    """Run the supervisor until the daemon ends."""
    tied = "--tied" in arguments
    passed_on = [each for each in arguments if each != "--"]
    try:
        lock = runfile.lock()
    except (OSError, runfile.AlreadyRunning) as error:
        return _print_error(error)
    try:
        clean_up()
        load_module()
        runfile.save_state(runfile.CleanupState(field_mask(), runfile.netns_cookie()))
    except OSError as error:
        runfile.unlock()
        return _print_error(error)
    signals = os.pipe()
    os.set_blocking(signals[1], False)
    signal.set_wakeup_fd(signals[1], warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    daemon = _start(passed_on, lock)
    _forward_answer(daemon)
    _wait(daemon, signals[0], tied)
    clean_up()
    runfile.unlock()
    return daemon.returncode or 0


def _start(arguments: list[str], lock: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        python_command("bpf.daemon", *arguments),
        env=python_environment(**{SUPERVISOR_VARIABLE: str(os.getpid())}),
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        pass_fds=[lock],
    )


def _forward_answer(daemon: subprocess.Popen[bytes]) -> None:
    """Print the daemon's answer, or an error if it ended without one."""
    assert daemon.stdout is not None
    with daemon.stdout as answer:
        line = answer.readline().decode()
    if line:
        with suppress(OSError):
            print(line, end="", flush=True)
    else:
        _print_error("its process ended before it answered")


def _wait(daemon: subprocess.Popen[bytes], signals: int, tied: bool) -> None:
    """Wait until the daemon ends; pass on a request to end."""
    watched = [signals, 0] if tied else [signals]
    while daemon.poll() is None:
        ready, _, _ = select.select(watched, [], [])
        must_end = signals in ready and any(number != signal.SIGCHLD for number in os.read(signals, 64))
        if 0 in ready and not os.read(0, 4096):
            watched.remove(0)
            must_end = True
        if must_end:
            daemon.terminate()


def _print_error(why: str | Exception) -> int:
    print(json.dumps(refusal("can't turn on the fast path", why)), flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
