"""Who else looks at forwarded packets: the functions at netfilter's hooks, as nfnetlink_hook lists them.

What is on the list below is judged by its rules, or heeds only what the program asks conntrack for. Whatever
is not, a BPF program or a module from outside the kernel's tree among them, could drop any packet. A kernel
without nfnetlink_hook is asked for what can be told otherwise: BPF programs, IPVS, ebtables-legacy.
"""

from __future__ import annotations

import errno
import os
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

from bpf import netlabel, syscall
from bpf.nfnetlink import header
from core.netlink.client import NETFILTER, Netlink, attribute, attributes, text

_GET = 12 << 8  # NFNL_SUBSYS_HOOK, NFNL_MSG_HOOK_GET
_HOOKNUM, _DEVICE, _FUNCTION, _MODULE = 1, 3, 4, 5
_IPV4, _NETDEV, _BRIDGE, _IPV6 = 2, 5, 7, 10  # NFPROTO_*
_INGRESS, _EGRESS = 0, 1  # hooks of NFPROTO_NETDEV
# What forwarded packets pass: prerouting, forward and postrouting; of a bridge also input, where frames leave
# it to be routed, and output, where they come back into it.
_PASSED = {_IPV4: (0, 2, 4), _IPV6: (0, 2, 4), _BRIDGE: (0, 1, 2, 3, 4)}
# What nfnetlink_hook answers about a family or hook that the kernel doesn't have, and a link that is gone.
_NO_SUCH_HOOK = (errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.ENODEV)
_KNOWN = re.compile(
    r"ipv[46]_(conntrack_(in|local|defrag)|confirm|helper|defrag|synproxy_hook)|nf_confirm"
    r"|nf_nat_\w+|iptable_\w+|ip6table_\w+|ipt_do_table|ip6t_do_table"
    r"|nft_do_chain_(ipv4|ipv6|inet|bridge)|nft_nat_do_chain"
    r"|br_nf_\w+|ip_sabotage_in|nf_ct_bridge_\w+|apparmor_\w+"
)
# Chains at a link are judged by their rules; connections that a flowtable took over are the kernel's.
_KNOWN_AT_LINKS = re.compile(r"nft_do_chain_(netdev|inet|inet_ingress)|nf_flow_offload_\w+")
_SELINUX = re.compile(r"selinux_\w+")
_SELINUX_ALWAYS = Path("/sys/fs/selinux/policy_capabilities/always_check_network")
_IPVS, _IPVS_HEAD = Path("/proc/net/ip_vs"), 3  # lines before the first service
_MODULES = Path("/proc/modules")
_WORDS = (
    (re.compile(r"ip_vs_\w+"), "IPVS"),
    (re.compile(r"ebt\w*"), "ebtables-legacy, which tells nobody when its rules change,"),
    (re.compile(r"nf_hook_run_bpf"), "a BPF program"),
    (_SELINUX, "SELinux, which checks labels of packets (netlabelctl, always_check_network),"),
)


def strangers() -> tuple[str, ...]:
    """Who else may decide about forwarded packets, in words, without repetition."""
    return tuple(dict.fromkeys(_listed() if can_list() else _guessed()))


@cache
def can_list() -> bool:
    """Whether the kernel has nfnetlink_hook, which never refuses this question. Asked once: each time, a
    kernel without looks for the module."""
    try:
        with Netlink(NETFILTER) as kernel:
            kernel.dump(_GET, _question(_IPV4, 0))
    except OSError:
        return False
    return True


def strangers_at_links(links: Mapping[int, str]) -> tuple[frozenset[int], frozenset[int]]:
    """The links, of these by index and name, at whose ingress, and at whose egress, somebody else than
    nftables has a function; none where the kernel has no nfnetlink_hook."""
    if not can_list():
        return frozenset(), frozenset()
    with Netlink(NETFILTER) as kernel:
        return (
            frozenset(each for each, name in links.items() if _is_taken(kernel, _INGRESS, name)),
            frozenset(each for each, name in links.items() if _is_taken(kernel, _EGRESS, name)),
        )


def _is_taken(kernel: Netlink, hook: int, link: str) -> bool:
    try:
        found = _functions(kernel, _NETDEV, hook, link)
    except OSError:
        return True  # it can't be excluded
    return not all(_KNOWN_AT_LINKS.fullmatch(function) for function, _ in found)


def _listed() -> Iterator[str]:
    try:
        with Netlink(NETFILTER) as kernel:
            found = [
                each
                for family, hooks in _PASSED.items()
                for hook in hooks
                for each in _functions(kernel, family, hook)
            ]
    except OSError as error:
        yield f"the functions at netfilter's hooks can't be listed: {error.strerror}"
        return
    for function, module in found:
        if not _is_known(function):
            yield _in_words(function, module)


def _functions(kernel: Netlink, family: int, hook: int, link: str = "") -> list[tuple[str, str]]:
    """The functions at a hook, each with its module; none where the kernel has no such hook."""
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


def _guessed() -> Iterator[str]:
    """Without nfnetlink_hook: a BPF program's network namespace is not told, so that one anywhere counts."""
    for number, family, hook in syscall.netfilter_links():
        if hook in _PASSED.get(family, ()):
            yield f"a BPF program at a netfilter hook (link {number}) may decide about each packet"
    with suppress(OSError):
        if len(_IPVS.read_text().splitlines()) > _IPVS_HEAD:
            yield "IPVS has services, and keeps connections of its own"
    with suppress(OSError):
        if any(line.startswith("ebtable_") for line in _MODULES.read_text().splitlines()):
            yield "ebtables-legacy is loaded, which tells nobody when its rules change"


def _selinux_checks() -> bool:
    """SELinux looks at forwarded packets where they are labelled (by SECMARK, which is a rule, by labelled
    IPsec, whose policies pause anyway, or by NetLabel) or always."""
    try:
        always = _SELINUX_ALWAYS.read_text().strip() != "0"
    except OSError:
        always = False
    return always or netlabel.may_label()


def _in_words(function: str, module: str) -> str:
    known = next((words for pattern, words in _WORDS if pattern.fullmatch(function)), "")
    named = f"{function or 'a function without a name'}{f' of module {module}' if module else ''}"
    return f"{known or 'a function'} at a netfilter hook ({named}) may decide about each packet"
