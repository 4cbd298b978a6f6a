"""Helper processes that hold network namespaces in every way there is."""

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

# A thread that leaves the namespace of its process and says its id.
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
def holder(*words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that runs until the body ends, and the first line that it printed."""
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def shell(script: str) -> tuple[str, ...]:
    """The words of a shell that runs `script`, says "ready" and waits; the process is the waiting one."""
    return "sh", "-c", f"{script}\necho ready\nexec sleep 60"


def thread_outside() -> tuple[str, ...]:
    """The words of a process with a thread in a namespace of its own."""
    return sys.executable, "-c", THREAD


def as_nobody(work: Callable[[], Any]) -> Any:
    """What `work` returns (JSON) in a child process that has no rights."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1)  # else /proc/self stays root's
            os.write(writing, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return json.loads(text)
