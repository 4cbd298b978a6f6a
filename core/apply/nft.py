"""What `nft -f` does, in this process by libnftables(3), else by nft(8): one transaction, all or nothing."""

from __future__ import annotations

import errno
import threading

from core.apply.tools import run_holding_lock
from core.collect.nft import Context, NftError, library


class Nft:
    """The way to nftables of the network namespace in which it is made. `load` it there; close it at the end,
    for others wait for a socket that waits to close (Context)."""

    def __init__(self) -> None:
        found = library()
        self._context = Context(found) if found else None

    def load(self, text: str) -> None:
        """Do what `text` says. Raises OSError, in nft's own words."""
        try:
            if self._context:
                self._context.run(text)
            else:
                _run_tool(text)
        except NftError as error:
            raise OSError(errno.EIO, f"nft: {error}") from error

    def close(self, aside: bool = False) -> None:
        """Close the socket; with `aside` nobody waits for it."""
        if self._context:
            closing = threading.Thread(target=self._context.close, daemon=True)
            closing.start()
            if not aside:
                closing.join()


def _run_tool(text: str) -> None:
    done = run_holding_lock(["nft", "-f", "-"], text)
    if done.returncode:
        raise NftError((done.stderr or f"it ended with {done.returncode}").strip())
