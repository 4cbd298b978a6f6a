"""What nft prints of our own tables: as they are, and as they must be after a text was loaded."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from core.apply.nft import Nft
from core.collect.nft import STATELESS, Context, NftError, library
from core.collect.nft_netlink import read_tables
from core.netlink.netns import THREAD_PATH
from core.tags import TABLE

_NFT_SECONDS = 20.0

# Each line with the blocks that it stands in, as often as it stands there; counters left out.
Lines = Counter[str]


def present() -> Lines:
    """Our own tables in the thread's network namespace. Raises OSError where nft cannot be run."""
    names = [("table", table.family, table.name) for table in read_tables() if table.name == TABLE]
    return Counter(line for name in names for line in _placed(_listed(" ".join(("list", *name)))))


def expected(text: str) -> Lines:
    """Our own tables once `text` was loaded, and nothing else ever was. Raises OSError.

    The kernel is asked, by an empty network namespace that goes with the call: what the host's tables say may
    have been changed since by others.
    """
    with _empty_namespace():
        nft = Nft()
        try:
            nft.load(text)
        finally:
            nft.close()
        return present()


def _listed(command: str) -> str:
    """What nft prints, "" where the table is gone by now."""
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
