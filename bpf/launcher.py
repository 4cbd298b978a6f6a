"""Starts the fast path: a keeper of its own process, which starts the holder."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from typing import Any

from bpf import control, loader
from core.environment import own_python, with_packages


@dataclass(frozen=True, slots=True)
class Started:
    """The keeper, and what it said: `ok`, or `what`, `why` and `try`. With a tied one the fast path ends when
    `keeper.stdin` is closed, or this process ends."""

    keeper: subprocess.Popen[bytes]
    told: dict[str, Any]


def start(targets: list[str], tied: bool, strict: bool = False) -> Started:
    """Accelerate these in this process's network namespace; returns when it is on, or refused (compiling for
    a new kernel takes about a second); `strict` as in bpf/gate.py. Raises OSError where no process can be
    started."""
    options = [name for name, on in (("--tied", tied), ("--strict", strict)) if on]
    keeper = subprocess.Popen(
        own_python("bpf.keeper", *options, "--", *targets),
        stdin=subprocess.PIPE if tied else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=with_packages(),
        cwd="/",
        start_new_session=True,
    )
    assert keeper.stdout is not None
    with keeper.stdout as output:
        line = output.readline()
    try:
        told = dict(json.loads(line))
    except ValueError:
        told = {
            "ok": False,
            "what": "the fast path cannot be turned on",
            "why": "its process ended",
            "try": "",
        }
    return Started(keeper, told)


def reload() -> control.Answer:
    """Have the holder put the program of the present source in the place of its own; raises
    loader.CannotCompile, control.NotRunning. Compiling is done here, for the holder must not stand still."""
    loader.compiled()
    return control.ask({"do": "reload"})
