"""What `nft -f` does, in this process by libnftables(3), else by nft(8): one transaction, all or nothing."""

from __future__ import annotations

import ctypes
import errno
import threading
from functools import cache
from typing import Any

from core.apply.tools import run_holding_lock
from core.collect.netlink import NETFILTER, Netlink


class Nft:
    """The way to nftables of the network namespace in which it is made. `load` it there; close it at the end.

    The kernel frees rules that went some milliseconds after they ceased to count. A socket of nftables that
    closes meanwhile waits for that, and whoever makes a link waits for the socket: so it closes last.
    """

    def __init__(self) -> None:
        self._library = _library()
        self._context: Any = None
        if self._library:
            with Netlink(NETFILTER):
                pass  # where the kernel has no such sockets, libnftables would end the process
            self._context = self._library.nft_ctx_new(0)
            self._library.nft_ctx_buffer_output(self._context)
            self._library.nft_ctx_buffer_error(self._context)

    def load(self, text: str) -> None:
        """Do what `text` says. Raises OSError, in nft's own words."""
        told = self._run(self._library, text) if self._library else _run_tool(text)
        if told:
            raise OSError(errno.EIO, f"nft: {told.strip()}")

    def close(self, aside: bool = False) -> None:
        """Close the socket; with `aside` nobody waits for it."""
        if self._library:
            closing = threading.Thread(target=self._library.nft_ctx_free, args=(self._context,), daemon=True)
            closing.start()
            if not aside:
                closing.join()

    def _run(self, library: ctypes.CDLL, text: str) -> str:
        """What is wrong with it, "" where it is done."""
        if not library.nft_run_cmd_from_buffer(self._context, text.encode("utf-8", "surrogateescape")):
            return ""
        told: bytes = library.nft_ctx_get_error_buffer(self._context) or b""
        return told.decode(errors="replace") or "it was refused"


def _run_tool(text: str) -> str:
    done = run_holding_lock(["nft", "-f", "-"], text)
    return (done.stderr or f"it ended with {done.returncode}") if done.returncode else ""


@cache
def _library() -> ctypes.CDLL | None:
    """libnftables, None where it is not installed."""
    try:
        library = ctypes.CDLL("libnftables.so.1")
    except OSError:
        return None
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
    for name in ("buffer_output", "buffer_error", "get_error_buffer", "free"):
        getattr(library, f"nft_ctx_{name}").argtypes = [ctypes.c_void_p]
    library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    return library
