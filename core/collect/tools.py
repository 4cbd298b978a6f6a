"""Running the tools that print what the kernel holds, in the thread's own network namespace."""

from __future__ import annotations

import os
import shutil
import subprocess

TIMEOUT = 10.0
_QUOTED = 300


class ToolFailed(Exception):
    """A tool gave no answer; `what`, `why` and `try_` say so for a person, as core.model.Problem has them."""

    def __init__(self, what: str, why: str, try_: str) -> None:
        super().__init__(f"{what}: {why}")
        self.what, self.why, self.try_ = what, why, try_


class ToolMissing(ToolFailed):
    """The tool is not installed."""


def find_tool(*names: str) -> str:
    """The first of these names that is on PATH, "" where none is."""
    return next((name for name in names if shutil.which(name)), "")


def run_tool(*words: str, package: str) -> str:
    """What a tool printed, bytes that are no UTF-8 kept as surrogates. The tool runs in the network namespace
    of the calling thread. Raises ToolMissing, or ToolFailed where it failed or did not end within TIMEOUT."""
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT, check=False,
            env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except FileNotFoundError:
        raise missing(words[0], package) from None
    except subprocess.TimeoutExpired:
        why = f"`{' '.join(words)}` did not end within {TIMEOUT:g} seconds"
        raise ToolFailed(
            f"{words[0]} gave no answer", why, "see whether it hangs in a shell as well"
        ) from None
    except OSError as error:
        raise ToolFailed(f"{words[0]} cannot be run", str(error), f"reinstall {package}") from error
    if done.returncode:
        why = _first_words(done.stderr) or f"it ended with exit code {done.returncode}"
        raise ToolFailed(f"{words[0]} failed", why, f"run `{' '.join(words)}` in a shell to see more")
    return done.stdout.decode("utf-8", "surrogateescape")


def missing(name: str, package: str) -> ToolMissing:
    """The failure to raise where a tool is not on PATH."""
    return ToolMissing(
        f"{name} is not there", f"no program `{name}` on PATH", f"install {package}, or add /usr/sbin to PATH"
    )


def _first_words(output: bytes) -> str:
    return output.decode("utf-8", "replace").strip()[:_QUOTED]
