"""What the fast path needs of this machine, looked at one by one: what is missing is named, and what follows
from it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from bpf import compiler, loader, syscall, sysctls
from bpf.artifact import KFUNCS
from bpf.btf import VMLINUX, Btf, BtfError, read_btf
from core.model import Requirement

_LOCKDOWN = Path("/sys/kernel/security/lockdown")
_MODULE_BTF = Path("/sys/kernel/btf/nf_conntrack")
# Bit numbers of linux/capability.h.
# CAP_NET_RAW is for seeing changes of iptables-legacy.
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13, "CAP_SYS_ADMIN": 21}
# The first kernels that have bpf_ct_change_timeout, tcx, and tables with an owner.
_LEAST, _TCX, _OWNER = (6, 0), (6, 6), (5, 12)
_LOOPBACK = 1

OFF = "the fast path stays off: the kernel forwards everything, as without it"


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found. `functions` are those of KFUNCS that the kernel has, `members` what of its structures
    cannot be found ("" for nothing); `tcx` is None where it cannot be told; `lockdown` is "" where there is
    none."""

    release: str
    btf: str = ""
    functions: frozenset[str] = frozenset(KFUNCS)
    members: str = ""
    in_module: bool = False
    tcx: bool | None = True
    capabilities: int = -1
    lockdown: str = ""
    has_bcc: bool = True
    has_headers: bool = True
    has_conntrack: bool = True
    compiled: bool = False


def requirements(facts: Facts | None = None) -> tuple[Requirement, ...]:
    """Every requirement, on this machine unless other facts are given."""
    return tuple(_judged(facts or facts_of_this_machine()))


def unmet(found: tuple[Requirement, ...]) -> tuple[Requirement, ...]:
    """Those without which the fast path cannot be turned on."""
    return tuple(one for one in found if one.needed and not one.met)


def _judged(facts: Facts) -> Iterator[Requirement]:
    yield _kernel(facts)
    yield _capabilities(facts)
    yield _lockdown(facts)
    yield _types(facts)
    for name in KFUNCS:
        yield _function(facts, name)
    yield _tcx(facts)
    yield _owner(facts)
    yield Requirement(
        "conntrack", facts.has_conntrack,
        "it is there" if facts.has_conntrack else f"there is no sysctl {sysctls.LIBERAL}",
        OFF, "modprobe nf_conntrack",
    )  # fmt: skip
    yield _bcc(facts)
    yield _headers(facts)


def _kernel(facts: Facts) -> Requirement:
    return Requirement(
        "Linux 6.0 or newer", version_of(facts.release) >= _LEAST, f"Linux {facts.release}",
        OFF, "a newer kernel",
    )  # fmt: skip


def version_of(release: str) -> tuple[int, int]:
    """Major and minor number of a kernel's release, (0, 0) where it has none."""
    words = release.split(".")[:2]
    numbers = ["".join(_digits(word)) for word in words]
    return (int(numbers[0] or 0), int(numbers[1] or 0)) if len(numbers) == 2 else (0, 0)


def _digits(word: str) -> Iterator[str]:
    """The digits that a word begins with."""
    for letter in word:
        if not letter.isdecimal():
            return
        yield letter


def _capabilities(facts: Facts) -> Requirement:
    lacking = [name for name, bit in _CAPABILITIES.items() if not facts.capabilities >> bit & 1]
    return Requirement(
        "CAP_NET_ADMIN, CAP_NET_RAW and CAP_SYS_ADMIN", not lacking,
        f"this process lacks {' and '.join(lacking)}" if lacking else "this process has them", OFF,
        "run it as root (sudo)",
    )  # fmt: skip


def _lockdown(facts: Facts) -> Requirement:
    """Confidentiality forbids programs that look at the kernel's memory; integrity does not."""
    return Requirement(
        "no kernel lockdown for confidentiality", facts.lockdown != "confidentiality",
        f"lockdown: {facts.lockdown or 'none'}", OFF, "boot without lockdown=confidentiality",
    )  # fmt: skip


def _types(facts: Facts) -> Requirement:
    why = facts.btf or facts.members
    return Requirement(
        "the kernel's type information (BTF)", not why, why or f"{VMLINUX} has what is needed", OFF,
        "a kernel built with CONFIG_DEBUG_INFO_BTF",
    )  # fmt: skip


def _function(facts: Facts, name: str) -> Requirement:
    met = name in facts.functions
    where = "only the module nf_conntrack has it, not the kernel itself" if facts.in_module else "it has none"
    return Requirement(
        f"kernel function {name}", met, "it is there" if met else where,
        f"without it no connection can be learned from conntrack: {OFF}",
        "a kernel with CONFIG_NF_CONNTRACK=y and CONFIG_DEBUG_INFO_BTF",
    )  # fmt: skip


def _tcx(facts: Facts) -> Requirement:
    met = version_of(facts.release) >= _TCX if facts.tcx is None else facts.tcx
    found = "it is there" if met else "this kernel has none (it came with Linux 6.6)"
    return Requirement(
        "tcx links", met, found if facts.tcx is not None else f"{found}, by the kernel's version",
        "clsact filters are used instead: should the program be killed, they stay, idle once their lease is "
        "over, until the next start or `vnet-tui recover`",
        "Linux 6.6 or newer", needed=False,
    )  # fmt: skip


def _owner(facts: Facts) -> Requirement:
    met = version_of(facts.release) >= _OWNER
    return Requirement(
        "nftables tables with an owner", met,
        "the kernel's version has them" if met else "they came with Linux 5.12", OFF, "a newer kernel",
    )  # fmt: skip


def _bcc(facts: Facts) -> Requirement:
    met = facts.has_bcc or facts.compiled
    found = "its Python bindings are installed" if facts.has_bcc else "its Python bindings are not installed"
    return Requirement(
        "BCC", met, found if not facts.compiled else f"{found}; the program is compiled already", OFF,
        "apt install python3-bpfcc (Fedora: dnf install python3-bcc)",
    )  # fmt: skip


def _headers(facts: Facts) -> Requirement:
    """Of the C library alone: headers of the running kernel are not needed."""
    met = facts.has_headers or facts.compiled
    path = compiler.UAPI / "linux" / "bpf.h"
    found = f"{path} is there" if facts.has_headers else f"{path} is missing"
    return Requirement(
        "headers of the C library", met,
        found if not facts.compiled else f"{found}; the program is compiled already", OFF,
        "apt install linux-libc-dev (Fedora: dnf install kernel-headers)",
    )  # fmt: skip


def facts_of_this_machine(whole: bool = False) -> Facts:
    """Look; nothing is changed, and BCC is not imported. A program that is compiled already shows that the
    kernel's types are as they must be: they are read again only for the `whole` of it."""
    compiled = loader.is_compiled()
    btf, why = _btf() if whole or not compiled else (None, "")
    functions = frozenset(name for name in KFUNCS if btf and btf.function(name) is not None)
    return Facts(
        release=os.uname().release,
        btf=why,
        functions=functions if btf or why else frozenset(KFUNCS),
        members=_members(btf) if btf else "",
        in_module=_MODULE_BTF.exists(),
        tcx=_has_tcx(),
        capabilities=_effective(),
        lockdown=_lockdown_here(),
        has_bcc=find_spec("bcc") is not None,
        has_headers=(compiler.UAPI / "linux" / "bpf.h").is_file(),
        has_conntrack=sysctls.read(sysctls.LIBERAL) != "",
        compiled=compiled,
    )


def _btf() -> tuple[Btf | None, str]:
    try:
        return read_btf(), ""
    except BtfError as error:
        return None, str(error)


def _members(btf: Btf) -> str:
    """What the compiled program reads of the kernel's structures and cannot be found, in words."""
    try:
        compiler.offsets(btf)
    except BtfError as error:
        return str(error)
    return ""


def _has_tcx() -> bool | None:
    """Ask which programs sit at the loopback link: a kernel without tcx does not understand the question."""
    try:
        syscall.attached(_LOOPBACK)
    except OSError as error:
        return False if error.errno in (errno.EINVAL, errno.EOPNOTSUPP) else None
    return True


def _effective() -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("CapEff:")).split()[1], 16)


def _lockdown_here() -> str:
    """The level that is chosen, which the kernel prints in brackets."""
    try:
        chosen = _LOCKDOWN.read_text().partition("[")[2].partition("]")[0]
    except OSError:
        return ""
    return "" if chosen == "none" else chosen
