"""libnftables(3): what nft(8) does and tells, in this process and so without starting one."""

from __future__ import annotations

import ctypes
import threading
from functools import cache
from typing import Any

from core.netlink.client import NETFILTER, Netlink

# NFT_CTX_OUTPUT_* of nftables/libnftables.h: what `nft -s`, `-a` and `-j` ask for.
STATELESS, HANDLES, JSON = 1 << 2, 1 << 3, 1 << 4
# Parts of the library, such as its names of links, are the whole process's.
_one_at_a_time = threading.Lock()


class Refused(Exception):
    """What the library says is wrong, in nft's own words."""


class Context:
    """A socket of nftables in the network namespace in which it is made. `run` it there; close it at the end.

    The kernel frees rules that went some milliseconds after they ceased to count. A socket of nftables that
    closes meanwhile waits for that, and whoever makes a link waits for the socket.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        with Netlink(NETFILTER):
            pass  # where the kernel has no such sockets, libnftables would end the process
        with _one_at_a_time:
            self._context: Any = library.nft_ctx_new(0)
        library.nft_ctx_buffer_output(self._context)
        library.nft_ctx_buffer_error(self._context)

    def run(self, text: str, output: int = 0) -> str:
        """Do what `text` says; what was printed for it, as `output` asks, bytes that are no UTF-8 kept as
        surrogates. Raises Refused."""
        library, context = self._library, self._context
        library.nft_ctx_output_set_flags(context, output)
        with _one_at_a_time:
            failed = library.nft_run_cmd_from_buffer(context, text.encode("utf-8", "surrogateescape"))
        printed = _text(library.nft_ctx_get_output_buffer(context))
        if failed:
            raise Refused(_text(library.nft_ctx_get_error_buffer(context)).strip() or "it was refused")
        return printed

    def close(self) -> None:
        """Close the socket."""
        self._library.nft_ctx_free(self._context)


def _text(told: bytes | None) -> str:
    return (told or b"").decode("utf-8", "surrogateescape")


@cache
def library() -> ctypes.CDLL | None:
    """libnftables, None where it is not installed."""
    try:
        found = ctypes.CDLL("libnftables.so.1")
    except OSError:
        return None
    found.nft_ctx_new.restype = ctypes.c_void_p
    for name in ("buffer_output", "buffer_error", "get_output_buffer", "get_error_buffer", "free"):
        getattr(found, f"nft_ctx_{name}").argtypes = [ctypes.c_void_p]
    for name in ("get_output_buffer", "get_error_buffer"):
        getattr(found, f"nft_ctx_{name}").restype = ctypes.c_char_p
    found.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
    found.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    return found
