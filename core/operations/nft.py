"""Load and list nftables rules, by libnftables(3) or, without that library, by nft(8)."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from core.collect.nft import STATELESS, Context, NftError, library
from core.collect.nft_netlink import read_tables
from core.netlink.netns import THREAD_PATH
from core.text import TABLE


class Nft:
    """Loads rules in the network namespace of the thread that makes it.

    Close it soon: other processes wait for a socket that waits to be closed (Context).
    """

    def __init__(self) -> None:
        found = library()
        self._context = Context(found) if found else None

    def load(self, text: str) -> None:
        """Load rules in one transaction. Raises OSError with the message of nft."""
        try:
            if self._context:
                self._context.run(text)
            else:
                _run_tool(text)
        except NftError as error:
            raise OSError(errno.EIO, f"nft: {error}") from error

    def close(self, aside: bool = False) -> None:
        """Close the socket; with `aside` don't wait for that."""
        if self._context:
            closing = threading.Thread(target=self._context.close, daemon=True)
            closing.start()
            if not aside:
                closing.join()


def _run_tool(text: str) -> None:
    done = run_holding_lock(["nft", "-f", "-"], text)
    if done.returncode:
        raise NftError((done.stderr or f"it ended with {done.returncode}").strip())


_TOOL_SECONDS = 20.0


def run_holding_lock(words: Sequence[str], text: str = "") -> subprocess.CompletedProcess[str]:
    """Run a tool with `text` as its input. Raises OSError if it can't be run or does not end in time.

    The tool inherits the writers' lock, the only inheritable descriptor: if this process is killed, the lock
    is held until the tool has ended, and no undo can overtake it.
    """
    try:
        return subprocess.run(
            words,
            input=text,
            capture_output=True,
            text=True,
            timeout=_TOOL_SECONDS,
            check=False,
            close_fds=False,
        )
    except FileNotFoundError as error:
        raise OSError(errno.ENOPKG, f"{words[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise OSError(errno.ETIMEDOUT, f"{words[0]} did not end within {_TOOL_SECONDS:.0f} s") from error


_NFT_SECONDS = 20.0

# Each line with the blocks around it, and how often it occurs; without counters.
Lines = Counter[str]


def present() -> Lines:
    """Return the rules of vnet's tables in the thread's namespace. Raises OSError if nft can't be run."""
    names = [("table", table.family, table.name) for table in read_tables() if table.name == TABLE]
    return Counter(line for name in names for line in _placed(_listed(" ".join(("list", *name)))))


def expected(text: str) -> Lines:
    """Return the rules that vnet's tables have after `text` is loaded. Raises OSError.

    They are read back from a new network namespace: others may have changed the tables of the host.
    """
    with _empty_namespace():
        nft = Nft()
        try:
            nft.load(text)
        finally:
            nft.close()
        return present()


def _listed(command: str) -> str:
    """Return what nft prints, "" if the table no longer exists."""
    if found := library():
        context = Context(found)
        try:
            return context.run(command, STATELESS)
        except NftError:
            return ""
        finally:
            context.close()
    words = ["nft", "-s", *command.split()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=_NFT_SECONDS, check=False)
    return done.stdout if done.returncode == 0 else ""


def _placed(printed: str) -> Iterator[str]:
    return _with_blocks(line.strip() for line in printed.splitlines())


def _with_blocks(lines: Iterable[str]) -> Iterator[str]:
    blocks: list[str] = []
    for line in lines:
        if line == "}":
            blocks = blocks[:-1]
        else:
            yield "\n".join((*blocks, line))
            blocks += [line] if line.endswith("{") else []


@contextmanager
def _empty_namespace() -> Iterator[None]:
    """Run the body with this thread in a new network namespace; other threads stay."""
    home = os.open(THREAD_PATH, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.unshare(os.CLONE_NEWNET)
        try:
            yield
        finally:
            os.setns(home, os.CLONE_NEWNET)
    finally:
        os.close(home)
