"""Our own nftables tables, kernel settings, and the attachments that the agent keeps."""

from __future__ import annotations

import errno
from contextlib import suppress
from pathlib import Path

from core.apply import wanted
from core.apply.execute.connections import forget_all
from core.apply.execute.dispatch import execute
from core.apply.kernel import Kernel, inside
from core.apply.state import StateError
from core.apply.tools import run_holding_lock
from core.collect.iptables import read_iptables
from core.collect.nft_netlink import read_filters
from core.netlink.client import NETFILTER, Netlink
from core.operations import HOST, ForgetAttachment, PersistAttachment, SetDockerDns, SetRules, SetSysctl
from core.tools import find_tool


@execute.register
def _(operation: SetRules, kernel: Kernel) -> None:
    at_host = operation.place == HOST
    earlier = wanted.rules() if at_host else ""
    if at_host:
        wanted.note_rules(operation.text)
    try:
        kernel.load_rules(operation.place, operation.text)
    except BaseException:
        if at_host:
            with suppress(StateError):
                wanted.note_rules(earlier)
        raise


@execute.register
def _(operation: SetDockerDns, kernel: Kernel) -> None:
    with inside(operation.place):
        chains = ((chain.family, chain.table, chain.name) for chain in read_filters()[0])
        if (("ip", "nat", "DOCKER_OUTPUT") in chains) == operation.there:
            return  # Docker itself may have written them again, with other ports
        if operation.there:
            _restore(operation.rules)
        else:
            _delete(operation, kernel)
        forget_all()  # of what began without these rules, they would translate nothing


def _delete(operation: SetDockerDns, kernel: Kernel) -> None:
    found = {rule.text for rule in read_iptables("ip", "iptables-nft").rules if rule.table == "nat"}
    if found != {line for line in operation.rules.splitlines() if line.startswith("-A ")}:
        raise OSError(errno.EBUSY, "the rules of iptables there have changed")
    kernel.load_rules(operation.place, "delete table ip nat\n")
    with Netlink(NETFILTER):
        pass  # closing it waits until the rules are freed, and the hooks of conntrack with them


def _restore(rules: str) -> None:
    tool = find_tool("iptables-nft-restore", "iptables-restore")
    done = run_holding_lock([tool or "iptables-restore", "--noflush"], rules)
    if done.returncode:
        raise OSError(errno.EIO, (done.stderr or f"{tool} ended with {done.returncode}").strip())


@execute.register
def _(operation: SetSysctl, kernel: Kernel) -> None:
    # sysctl(8): dots part the key, and a slash stands for a dot within a part.
    parts = (part.replace("/", ".") for part in operation.key.split("."))
    with inside(operation.place):
        Path("/proc/sys", *parts).write_text(operation.value)


@execute.register
def _(operation: PersistAttachment, kernel: Kernel) -> None:
    wanted.add(operation)


@execute.register
def _(operation: ForgetAttachment, kernel: Kernel) -> None:
    wanted.remove(operation.want)
