"""Run a program in a pseudo-terminal, as a user types and sees it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from contextlib import suppress

import psutil

from tests.support.waiting import PATIENCE

_ESCAPES = re.compile(rb"\x1b\[[0-9;?<>=]*[ -/]*[@-~]|\x1b[()][A-Z0-9]|\x1b\][^\x07]*\x07|\x1b[=>]")


def _set_size(descriptor: int, columns: int, rows: int) -> None:
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def command_line(process: psutil.Process) -> list[str]:
    """Return a process's command line, empty if it has ended."""
    with suppress(psutil.NoSuchProcess):
        return process.cmdline()
    return []


class Terminal:
    """Start `argv` on a new pseudo-terminal; collect its output with arrival times."""

    def __init__(self, argv: list[str], columns: int = 130, rows: int = 40, **environment: str) -> None:
        self.started = time.monotonic()
        self.pid, self._descriptor = pty.fork()
        if self.pid == 0:
            _set_size(0, columns, rows)  # before the program asks for it
            env = os.environ | {"TERM": "xterm-256color", "COLORTERM": "truecolor"} | environment
            os.execvpe(argv[0], argv, env)
        self.output = b""
        self.exit_status: int | None = None

    def resize(self, columns: int, rows: int) -> None:
        """Change the terminal's size."""
        _set_size(self._descriptor, columns, rows)

    def press(self, keys: str | bytes) -> float:
        """Type keys, or send bytes; return the time (monotonic seconds)."""
        os.write(self._descriptor, keys.encode() if isinstance(keys, str) else keys)
        return time.monotonic()

    def read(self, timeout: float) -> bytes:
        """Return what the program prints within `timeout` seconds, b"" for nothing."""
        ready, _, _ = select.select([self._descriptor], [], [], timeout)
        if not ready:
            return b""
        try:
            chunk = os.read(self._descriptor, 1 << 16)
        except OSError:
            return b""
        self.output += chunk
        return chunk

    def wait_for(self, text: str, timeout: float = PATIENCE, since: int = 0) -> float:
        """Read until `text` was printed after position `since`; return when (monotonic)."""
        wanted = text.encode()
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if wanted in _ESCAPES.sub(b"", self.output[since:]):
                return time.monotonic()
            self.read(0.5)
        raise AssertionError(f"{text!r} did not appear; the end of the output: {self.output[-2000:]!r}")

    def settle(self, quiet: float = 0.3, timeout: float = 5.0) -> float:
        """Read until nothing came for `quiet` seconds; return when the last output came."""
        last = time.monotonic()
        end = last + timeout
        while time.monotonic() < end:
            if self.read(quiet):
                last = time.monotonic()
            else:
                break
        return last

    def read_to_the_end(self, timeout: float = PATIENCE) -> int:
        """Read until the program has ended by itself; return its exit status."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            chunk = self.read(0.05)
            done, status = (0, 0) if chunk else os.waitpid(self.pid, os.WNOHANG)
            if done:
                while self.read(0.05):
                    pass
                os.close(self._descriptor)
                self.exit_status = os.waitstatus_to_exitcode(status)
                return self.exit_status
        raise AssertionError(f"it did not end; the end of the output: {self.output[-2000:]!r}")

    def processes(self) -> list[psutil.Process]:
        """Return the program and all its descendants."""
        root = psutil.Process(self.pid)
        return [root, *root.children(recursive=True)]

    def program(self) -> psutil.Process:
        """Return our program's process, without wrappers and children before their exec."""
        return next(
            one
            for one in self.processes()
            if "tui.cli" in (words := command_line(one)) and not words[0].endswith("nsenter")
        )

    def close(self) -> int:
        """End the program, if it has not ended; return its exit status."""
        if self.exit_status is None:
            os.kill(self.pid, signal.SIGTERM)
            end = time.monotonic() + 3
            while time.monotonic() < end:
                done, status = os.waitpid(self.pid, os.WNOHANG)
                if done:
                    break
                self.read(0.05)
            else:
                os.kill(self.pid, signal.SIGKILL)
                _, status = os.waitpid(self.pid, 0)
            self.exit_status = os.waitstatus_to_exitcode(status)
            os.close(self._descriptor)
        return self.exit_status

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
