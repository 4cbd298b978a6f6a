"""Find other programs that may drop packets: netfilter hooks and tc filters.

The functions at netfilter hooks are listed by nfnetlink_hook. Those of the list below are analysed by their
rules, or depend only on what the program asks conntrack for. Any other function, such as a BPF program or
an out-of-tree module, could drop any packet. On a kernel without nfnetlink_hook only BPF programs, IPVS and
ebtables-legacy are detected.
"""

from __future__ import annotations

import errno
import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bpf import syscall
from core.netlink.client import GENERIC, NETFILTER, Netlink, attribute, attribute_list, attributes, text, u16
from core.netlink.clsact import is_foreign_filter
from core.netlink.nfnetlink import header

_GET = 12 << 8  # NFNL_SUBSYS_HOOK, NFNL_MSG_HOOK_GET
_HOOKNUM, _DEVICE, _FUNCTION, _MODULE = 1, 3, 4, 5
_IPV4, _NETDEV, _BRIDGE, _IPV6 = 2, 5, 7, 10  # NFPROTO_*
_INGRESS, _EGRESS = 0, 1  # hooks of NFPROTO_NETDEV
# Hooks that forwarded packets pass: prerouting, forward and postrouting; of a bridge also input, where
# frames leave it to be routed, and output, where they enter it again.
_OF_THE_HOST = {_IPV4: (1, 3)}  # input and output, which a tunnel's own packets pass
_PASSED = {_IPV4: (0, 2, 4), _IPV6: (0, 2, 4), _BRIDGE: (0, 1, 2, 3, 4)}
# Errors for a family or hook that the kernel doesn't have, and for a deleted link.
_NO_SUCH_HOOK = (errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.ENODEV)
_KNOWN = re.compile(
    r"ipv[46]_(conntrack_(in|local|defrag)|confirm|helper|defrag|synproxy_hook)|nf_confirm"
    r"|nf_nat_\w+|iptable_\w+|ip6table_\w+|ipt_do_table|ip6t_do_table"
    r"|nft_do_chain_(ipv4|ipv6|inet|bridge)|nft_nat_do_chain"
    r"|br_nf_\w+|ip_sabotage_in|nf_ct_bridge_\w+|apparmor_\w+"
)
# Chains at a link are analysed by their rules; the kernel forwards connections of a flowtable.
_KNOWN_AT_LINKS = re.compile(r"nft_do_chain_(netdev|inet|inet_ingress)|nf_flow_offload_\w+")
_SELINUX = re.compile(r"selinux_\w+")
_SELINUX_ALWAYS = Path("/sys/fs/selinux/policy_capabilities/always_check_network")
_IPVS, _IPVS_HEAD = Path("/proc/net/ip_vs"), 3  # lines before the first service
_MODULES = Path("/proc/modules")
_DESCRIPTIONS = (
    (re.compile(r"ip_vs_\w+"), "IPVS"),
    (re.compile(r"ebt\w*"), "ebtables-legacy, which sends no event when its rules change,"),
    (re.compile(r"nf_hook_run_bpf"), "a BPF program"),
    (_SELINUX, "SELinux, which checks labels of packets (netlabelctl, always_check_network),"),
)


def foreign_hooks() -> tuple[str, ...]:
    """Describe functions of other tools at hooks of forwarded packets."""
    return tuple(dict.fromkeys(_listed(_PASSED) if can_list() else _without_list(_PASSED)))


def foreign_hooks_of_tunnels() -> tuple[str, ...]:
    """Describe functions of other tools at hooks of the host's own packets."""
    return tuple(dict.fromkeys(_listed(_OF_THE_HOST) if can_list() else _without_list(_OF_THE_HOST)))


@cache
def can_list() -> bool:
    """Return whether the kernel has nfnetlink_hook.

    Asked once, as a kernel without it looks for the module each time.
    """
    try:
        with Netlink(NETFILTER) as kernel:
            kernel.dump(_GET, _question(_IPV4, 0))
    except OSError:
        return False
    return True


def links_with_foreign_hooks(links: Mapping[int, str]) -> tuple[frozenset[int], frozenset[int]]:
    """Return the links with hook functions of other tools, at ingress and at egress.

    `links`: names by ifindex. Empty if the kernel has no nfnetlink_hook.
    """
    if not can_list():
        return frozenset(), frozenset()
    with Netlink(NETFILTER) as kernel:
        return (
            frozenset(each for each, name in links.items() if _has_foreign_function(kernel, _INGRESS, name)),
            frozenset(each for each, name in links.items() if _has_foreign_function(kernel, _EGRESS, name)),
        )


def _has_foreign_function(kernel: Netlink, hook: int, link: str) -> bool:
    try:
        found = _functions(kernel, _NETDEV, hook, link)
    except OSError:
        return True  # can't be excluded
    return not all(_KNOWN_AT_LINKS.fullmatch(function) for function, _ in found)


def _listed(passed: Mapping[int, tuple[int, ...]]) -> Iterator[str]:
    try:
        with Netlink(NETFILTER) as kernel:
            found = [
                each
                for family, hooks in passed.items()
                for hook in hooks
                for each in _functions(kernel, family, hook)
            ]
    except OSError as error:
        yield f"can't list the functions at netfilter hooks: {error.strerror}"
        return
    for function, module in found:
        if not _is_known(function):
            yield _description(function, module)


def _functions(kernel: Netlink, family: int, hook: int, link: str = "") -> list[tuple[str, str]]:
    """Return the functions at a hook with their modules; none without such a hook."""
    try:
        messages = kernel.dump(_GET, _question(family, hook, link))
    except OSError as error:
        if error.errno in _NO_SUCH_HOOK and family != _IPV4:
            return []
        raise
    given = (attributes(message.payload, 4) for message in messages)
    return [(text(each.get(_FUNCTION, b"")), text(each.get(_MODULE, b""))) for each in given]


def _question(family: int, hook: int, link: str = "") -> bytes:
    device = attribute(_DEVICE, os.fsencode(link) + b"\0") if link else b""
    return header(family) + attribute(_HOOKNUM, struct.pack(">I", hook)) + device


def _is_known(function: str) -> bool:
    return bool(_KNOWN.fullmatch(function)) or (bool(_SELINUX.fullmatch(function)) and not _selinux_checks())


def _without_list(passed: Mapping[int, tuple[int, ...]]) -> Iterator[str]:
    """Describe what can be detected without nfnetlink_hook.

    The network namespace of a BPF program isn't reported, so one in any namespace counts.
    """
    for number, family, hook in syscall.netfilter_links():
        if hook in passed.get(family, ()):
            yield f"a BPF program at a netfilter hook (link {number}) may decide about each packet"
    with suppress(OSError):
        if len(_IPVS.read_text().splitlines()) > _IPVS_HEAD:
            yield "IPVS has services, and tracks connections itself"
    with suppress(OSError):
        if any(line.startswith("ebtable_") for line in _MODULES.read_text().splitlines()):
            yield "ebtables-legacy is loaded, which sends no event when its rules change"


def _selinux_checks() -> bool:
    """Return whether SELinux checks forwarded packets.

    It does if they are labelled (by SECMARK, which is a rule, by labelled IPsec, whose policies pause
    anyway, or by NetLabel) or if always_check_network is set.
    """
    try:
        always = _SELINUX_ALWAYS.read_text().strip() != "0"
    except OSError:
        always = False
    return always or may_label()


def _description(function: str, module: str) -> str:
    known = next((words for pattern, words in _DESCRIPTIONS if pattern.fullmatch(function)), "")
    named = f"{function or 'a function without a name'}{f' of module {module}' if module else ''}"
    return f"{known or 'a function'} at a netfilter hook ({named}) may decide about each packet"


_CTRL, _GETFAMILY, _FAMILY_ID, _FAMILY_NAME = 0x10, 3, 1, 2
# Families of generic netlink, with the commands that list labels (net/netlabel/netlabel_*.h).
_LISTS = {"NLBL_CIPSOv4": (4,), "NLBL_CALIPSO": (4,), "NLBL_UNLBL": (5, 8)}


def may_label() -> bool:
    """Return whether NetLabel labels anything, or that can't be excluded.

    If it labels peers, by CIPSO, CALIPSO or their addresses (netlabelctl(8)), SELinux checks forwarded
    packets one by one: see selinux_ip_forward of security/selinux/hooks.c. The kernel answers in its first
    network namespace only.
    """
    try:
        with Netlink(GENERIC) as kernel:
            return any(
                kernel.dump(_family(kernel, name), _header(command))
                for name, commands in _LISTS.items()
                for command in commands
            )
    except OSError:
        return True


def _family(kernel: Netlink, name: str) -> int:
    body = _header(_GETFAMILY) + attribute(_FAMILY_NAME, name.encode() + b"\0")
    return u16(attributes(kernel.request(_CTRL, body)[0].payload, 4)[_FAMILY_ID])


def _header(command: int) -> bytes:
    """Pack struct genlmsghdr."""
    return bytes((command, 1, 0, 0))


_GETQDISC, _GETCLASS, _GETFILTER = 38, 42, 46
_TC = struct.Struct("=BxxxiIII")
_TC_INGRESS, _TC_EGRESS = 0xFFFFFFF2, 0xFFFFFFF3
_MAJOR = 0xFFFF0000  # the part of a class's handle that is its discipline's
_MOST_CLASSES = 256  # each takes a request
_TCA_KIND, _TCA_OPTIONS, _ACTION_KIND = 1, 2, 1
# Queueing disciplines without filters, or whose filters only choose a queue.
_WITHOUT_FILTERS = frozenset(
    {"noqueue", "pfifo", "bfifo", "pfifo_fast", "mq", "tbf", "fq", "fq_codel", "netem"}
)
# Filters by kind that match only the frame and the packet's mark, with the number of their actions'
# attribute, and the options with which they match more: the input link (TCA_*_INDEV), the conntrack entry
# (TCA_FLOWER_KEY_CT_*).
_PLAIN: Mapping[str, tuple[int, frozenset[int]]] = {
    "u32": (7, frozenset({8})),
    "fw": (4, frozenset({3})),
    "flower": (3, frozenset({2, *range(91, 99)})),
    "matchall": (2, frozenset()),
}
_PLAIN_ACTIONS = frozenset(
    {"gact", "mirred", "police", "skbedit", "pedit", "csum", "vlan", "sample", "simple"}
)


@dataclass(frozen=True, slots=True)
class Filters:
    """Hold links with filters (tc(8)) or programs of other tools.

    At ingress, at egress; `unsafe`: at whose egress or queues one may match more than the frame, and so
    distinguish an accelerated packet from one that the kernel forwarded. Both are equal on the wire, but the
    kernel's metadata differs: the input link is the container's, not the bridge, and neither conntrack entry
    nor route are attached. A filter that is known to match none of that may stay. Any other (BPF programs,
    `flower ct_state`, `route`, ...) excludes the link as an egress of the fast path.
    """

    ingress: frozenset[int] = frozenset()
    egress: frozenset[int] = frozenset()
    unsafe: frozenset[int] = frozenset()


def read_filters(kernel: Netlink, ifindexes: Iterable[int]) -> Filters:
    """Read the tc filters of these links, without our own.

    A filter that can't be read counts as one.
    """
    wanted = set(ifindexes)
    ingress, egress, unsafe = set[int](), set[int](), set[int]()
    for ifindex, handle, kind in _disciplines(kernel):
        if ifindex not in wanted:
            continue
        if kind in ("clsact", "ingress"):
            if _filters(kernel, ifindex, _TC_INGRESS) != []:
                ingress.add(ifindex)
            found = _filters(kernel, ifindex, _TC_EGRESS)
            if found != []:
                egress.add(ifindex)
        else:
            found = _queueing_filters(kernel, ifindex, handle) if kind not in _WITHOUT_FILTERS else []
        if found is None or not all(map(_is_plain, found)):
            unsafe.add(ifindex)
    return Filters(frozenset(ingress), frozenset(egress), frozenset(unsafe))


def _disciplines(kernel: Netlink) -> Iterable[tuple[int, int, str]]:
    for message in kernel.dump(_GETQDISC, _TC.pack(0, 0, 0, 0, 0)):
        _, ifindex, handle, _, _ = _TC.unpack_from(message.payload)
        yield ifindex, handle, text(attributes(message.payload, _TC.size).get(_TCA_KIND, b""))


def _queueing_filters(kernel: Netlink, ifindex: int, handle: int) -> list[bytes] | None:
    """Return the filters of a queueing discipline and of its classes.

    None if they can't be read, or are too many.
    """
    try:
        classes = kernel.dump(_GETCLASS, _TC.pack(0, ifindex, 0, 0, 0))
    except OSError:
        return None
    handles = (_TC.unpack_from(each.payload)[2] for each in classes)
    parents = [handle, *(each for each in handles if each & _MAJOR == handle)]
    if len(parents) > _MOST_CLASSES:
        return None
    found: list[bytes] = []
    for parent in parents:
        filters = _filters(kernel, ifindex, parent)
        if filters is None:
            return None
        found += filters
    return found


def _filters(kernel: Netlink, ifindex: int, parent: int) -> list[bytes] | None:
    """Return the filters of other tools there; None if they can't be read."""
    try:
        listed = kernel.dump(_GETFILTER, _TC.pack(0, ifindex, 0, parent, 0))
    except OSError:
        return None
    return [message.payload for message in listed if is_foreign_filter(message.payload)]


def _is_plain(payload: bytes) -> bool:
    found = attributes(payload, _TC.size)
    options = attributes(found.get(_TCA_OPTIONS, b""))
    actions_at, more = _PLAIN.get(text(found.get(_TCA_KIND, b"")), (0, frozenset(options)))
    if not actions_at or options.keys() & more:
        return False
    kinds = (
        text(attributes(action).get(_ACTION_KIND, b""))
        for _, action in attribute_list(options.get(actions_at, b""))
    )
    return _PLAIN_ACTIONS.issuperset(kinds)
