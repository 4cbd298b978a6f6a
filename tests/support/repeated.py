"""Repeat changes so many times a second: lines for a program that reads them."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Sequence
from typing import Self

from tests.support.host import ThrowawayHost

IP = ("ip", "-batch", "-")
NFT = ("nft", "-i")


class Repeated:
    """Send these lines in turn to a program in a host's namespace, within a block.

    `done` counts them.
    """

    def __init__(
        self, host: ThrowawayHost, inside: str, lines: Sequence[str], rate: float, program: Sequence[str] = IP
    ) -> None:
        self._lines, self._every = lines, 1 / rate
        self._program = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{host.full(inside)}", *program],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.done = 0

    def _run(self) -> None:
        due = time.monotonic()
        assert self._program.stdin is not None
        while not self._ending.wait(max(0.0, due - time.monotonic())) and self._program.poll() is None:
            due = max(due, time.monotonic() - 1) + self._every
            self._program.stdin.write(f"{self._lines[self.done % len(self._lines)]}\n")
            self._program.stdin.flush()
            self.done += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        _, errors = self._program.communicate()
        assert not errors, errors
