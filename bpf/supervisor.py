"""The parent of the holder: waits for its end, in whatever way it comes, and then puts everything right.

`python -m bpf.supervisor [--tied] [--strict] -- TARGET...`: its first line of output says how it went. With
--tied the fast path ends when standard input closes, so that it does not outlive whoever asked for it."""

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
from bpf.ct_marks import field_mask
from bpf.runfile import KEEPER, clean_up
from core.tools import own_python, with_packages


def main(arguments: list[str]) -> int:
    """Keep the fast path until its end."""
    tied = "--tied" in arguments
    passed_on = [each for each in arguments if each != "--"]
    try:
        lock = runfile.lock()
    except (OSError, runfile.Taken) as error:
        return _refuse(str(error))
    try:
        clean_up()
        load_module()
        runfile.remember(runfile.State(field_mask(), runfile.cookie()))
    except OSError as error:
        runfile.unlock()
        return _refuse(str(error))
    ended = os.pipe()
    os.set_blocking(ended[1], False)
    signal.set_wakeup_fd(ended[1], warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    holder = _start(passed_on, lock)
    _pass_on(holder)
    _wait(holder, ended[0], tied)
    clean_up()
    runfile.unlock()
    return holder.returncode or 0


def _start(arguments: list[str], lock: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        own_python("bpf.daemon", *arguments),
        env=with_packages(**{KEEPER: str(os.getpid())}),
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        pass_fds=[lock],
    )


def _pass_on(holder: subprocess.Popen[bytes]) -> None:
    """Say what the holder says of how it went; one that ended without a word has failed."""
    assert holder.stdout is not None
    with holder.stdout as told:
        line = told.readline().decode()
    if line:
        with suppress(OSError):
            print(line, end="", flush=True)
    else:
        _refuse("its process ended at once")


def _wait(holder: subprocess.Popen[bytes], ended: int, tied: bool) -> None:
    """Until the holder has ended; told to end, it is told so as well."""
    watched = [ended, 0] if tied else [ended]
    while holder.poll() is None:
        ready, _, _ = select.select(watched, [], [])
        told = ended in ready and any(number != signal.SIGCHLD for number in os.read(ended, 64))
        if 0 in ready and not os.read(0, 4096):
            watched.remove(0)
            told = True
        if told:
            holder.terminate()


def _refuse(why: str) -> int:
    print(
        json.dumps({"ok": False, "what": "the fast path cannot be turned on", "why": why, "try": ""}),
        flush=True,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
