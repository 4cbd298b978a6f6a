"""Helper processes that hold network namespaces by each kind of reference."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

NOBODY = 65534
_PR_SET_DUMPABLE = 4

# A thread that leaves the namespace of its process and prints its id.
THREAD = """
import os, threading, time
def leave():
    os.unshare(os.CLONE_NEWNET)
    print(threading.get_native_id(), flush=True)
    time.sleep(60)
threading.Thread(target=leave, daemon=True).start()
time.sleep(60)
"""


@contextmanager
def holder(*command: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a process until the body ends; yield it and its first line of output."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def shell(script: str) -> tuple[str, ...]:
    """Return the command of a shell that runs `script` and waits with exec.

    It prints "ready" in between.
    """
    return "sh", "-c", f"{script}\necho ready\nexec sleep 60"


def thread_outside() -> tuple[str, ...]:
    """Return the command of a process with a thread in another namespace."""
    return sys.executable, "-c", THREAD


def as_nobody(work: Callable[[], Any]) -> Any:
    """Return the result of `work` (as JSON) in a child process without privileges."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1)  # otherwise /proc/self stays owned by root
            os.write(writing, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return json.loads(text)
