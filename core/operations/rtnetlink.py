"""Sockets and messages of pyroute2, for changes by rtnetlink(7).

Import this module only to change something: importing pyroute2 takes 0.1 to 0.2 s.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyroute2.iproute.linux import IPRoute
from pyroute2.netlink import NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, nla, nlmsg
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import RTM_DELROUTE, RTM_NEWLINK, RTM_NEWROUTE
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg_base

from core.netlink.client import ROUTE

# The kernel answers inside send(). This limits the wait for an answer that was lost.
_SECONDS = 10.0
_REQUEST = NLM_F_REQUEST | NLM_F_ACK

type Attributes = list[tuple[str, Any]]


def open_iproute(loop: asyncio.AbstractEventLoop) -> IPRoute:
    """Return pyroute2's IPRoute with a socket in the network namespace of this thread.

    A socket of its own would be opened when first used, in the namespace of that moment.
    """
    flags = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    return IPRoute(use_socket=socket.socket(socket.AF_NETLINK, flags, ROUTE), use_event_loop=loop)


def close_iproute(iproute: IPRoute, loop: asyncio.AbstractEventLoop) -> None:
    """Close an IPRoute and its socket.

    asyncio closes the socket in the next iteration of its loop.
    """
    iproute.close()
    loop.run_until_complete(asyncio.sleep(0))


def close_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Close the loop; cancel a request that was interrupted."""
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


class LostAnswer(TimeoutError):
    """The kernel did not answer a request; it may have executed it."""

    uncertain = True


@contextmanager
def os_errors(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Raise the errors of requests in the body as OSError.

    It has the kernel's errno and its text.
    """
    # In two turns: send() blocks for as long as others hold the kernel's lock, and the answer is there then.
    timers: list[asyncio.TimerHandle] = []
    timers.append(loop.call_later(_SECONDS, lambda: timers.append(loop.call_later(_SECONDS, loop.stop))))
    try:
        yield
    except NetlinkError as error:
        raise OSError(error.code, os.strerror(error.code)) from error
    except RuntimeError as error:
        if len(timers) > 1 and loop.time() >= timers[1].when():
            raise LostAnswer(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from error
        raise
    finally:
        for timer in timers:
            timer.cancel()


# pyroute2 0.9 silently drops attributes that it doesn't know. These classes have the missing ones.


class _LinkMessage(nlmsg):  # type: ignore[misc]
    """Extend ifinfomsg by the largest packet sizes and an alias of 255 bytes.

    The alias has no closing zero: the kernel counts the one that pyroute2 appends, so that an alias could not
    have 255 bytes.
    """

    prefix = "IFLA_"
    fields = ifinfmsg.fields
    nla_map = (
        (20, "IFLA_IFALIAS", "string"),
        (41, "IFLA_GSO_MAX_SIZE", "uint32"),
        (58, "IFLA_GRO_MAX_SIZE", "uint32"),
        (63, "IFLA_GSO_IPV4_MAX_SIZE", "uint32"),
        (64, "IFLA_GRO_IPV4_MAX_SIZE", "uint32"),
    )


class _RouteMessage(rtmsg_base, nlmsg):  # type: ignore[misc]
    """An rtmsg with all metrics of linux/rtnetlink.h."""

    class metrics(nla):  # type: ignore[misc]
        prefix = "RTAX_"
        nla_map = (*rtmsg_base.metrics.nla_map, ("RTAX_FASTOPEN_NO_COOKIE", "uint32"))


def set_link(iproute: IPRoute, index: int, attributes: Attributes) -> None:
    """Set attributes of a link that pyroute2 lacks."""
    message = _LinkMessage()
    message["index"] = index
    _send(iproute, message, RTM_NEWLINK, 0, attributes)


def add_route(iproute: IPRoute, header: dict[str, int], attributes: Attributes, beside: bool) -> None:
    """Add a route.

    `header` has the fields of rtmsg, `beside` allows another one of the same destination.
    """
    flags = NLM_F_CREATE | (NLM_F_APPEND if beside else NLM_F_EXCL)
    _send(iproute, _route(header), RTM_NEWROUTE, flags, attributes)


def delete_route(iproute: IPRoute, header: dict[str, int], attributes: Attributes) -> None:
    """Delete a route."""
    _send(iproute, _route(header), RTM_DELROUTE, 0, attributes)


def _route(header: dict[str, int]) -> Any:
    message = _RouteMessage()
    message.update(header)
    return message


def _send(iproute: IPRoute, message: Any, msg_type: int, flags: int, attributes: Attributes) -> None:
    message["header"]["type"], message["header"]["flags"] = msg_type, _REQUEST | flags
    message["attrs"] = attributes
    iproute.nlm_request_batch([message])
