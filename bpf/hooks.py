"""Who else looks at forwarded packets: the functions at netfilter's hooks, as nfnetlink_hook lists them.

What is on the list below is judged by its rules, or heeds only what the program asks conntrack for. Whatever
is not, a BPF program or a module from outside the kernel's tree among them, could drop any packet. A kernel
without nfnetlink_hook is asked for what can be told otherwise: BPF programs, IPVS, ebtables-legacy.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from bpf import syscall
from bpf.nfnetlink import header
from core.collect.netlink import NETFILTER, Netlink, attribute, attributes, text

_GET = 12 << 8  # NFNL_SUBSYS_HOOK, NFNL_MSG_HOOK_GET
_HOOKNUM, _FUNCTION, _MODULE = 1, 4, 5
_IPV4, _BRIDGE, _IPV6 = 2, 7, 10  # NFPROTO_*
# What forwarded packets pass: prerouting, forward and postrouting; of a bridge also input, where frames leave
# it to be routed, output, where they come back into it, and brouting.
_PASSED = {_IPV4: (0, 2, 4), _IPV6: (0, 2, 4), _BRIDGE: (0, 1, 2, 3, 4, 5)}
_KNOWN = re.compile(
    r"ipv[46]_(conntrack_(in|local|defrag)|confirm|helper|defrag|synproxy_hook)|nf_confirm"
    r"|nf_nat_\w+|iptable_\w+|ip6table_\w+|ipt_do_table|ip6t_do_table"
    r"|nft_do_chain_(ipv4|ipv6|inet|bridge)|nft_nat_do_chain"
    r"|br_nf_\w+|ip_sabotage_in|nf_ct_bridge_\w+|apparmor_\w+"
)
_SELINUX = re.compile(r"selinux_\w+")
_SELINUX_ALWAYS = Path("/sys/fs/selinux/policy_capabilities/always_check_network")
_IPVS, _IPVS_HEAD = Path("/proc/net/ip_vs"), 3  # lines before the first service
_MODULES = Path("/proc/modules")
_WORDS = (
    (re.compile(r"ip_vs_\w+"), "IPVS"),
    (re.compile(r"ebt\w*"), "ebtables-legacy, which tells nobody when its rules change,"),
    (re.compile(r"nf_hook_run_bpf"), "a BPF program"),
)


def strangers() -> tuple[str, ...]:
    """Who else may decide about forwarded packets, in words, without repetition."""
    try:
        with Netlink(NETFILTER) as kernel:
            found = dict.fromkeys(_listed(kernel))
    except OSError:
        found = dict.fromkeys(_guessed())
    return tuple(found)


def _listed(kernel: Netlink) -> Iterator[str]:
    for family, hooks in _PASSED.items():
        for hook in hooks:
            body = header(family) + attribute(_HOOKNUM, struct.pack(">I", hook))
            for message in kernel.dump(_GET, body):
                given = attributes(message.payload, 4)
                function = text(given.get(_FUNCTION, b""))
                if not _is_known(function):
                    yield _in_words(function, text(given.get(_MODULE, b"")))


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
    """SELinux looks at forwarded packets where they are labelled (SECMARK, which is a rule) or always."""
    try:
        return _SELINUX_ALWAYS.read_text().strip() != "0"
    except OSError:
        return False


def _in_words(function: str, module: str) -> str:
    known = next((words for pattern, words in _WORDS if pattern.fullmatch(function)), "")
    named = f"{function or 'a function without a name'}{f' of module {module}' if module else ''}"
    return f"{known or 'a function'} at a netfilter hook ({named}) may decide about each packet"
