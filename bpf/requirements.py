"""What the fast path needs of this machine, looked at one by one: what is missing is named, and what follows
from it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from bpf import build, loader, syscall
from bpf.btf import (
    BUILT_IN,
    NAME,
    VMLINUX,
    Btf,
    BtfError,
    ModuleState,
    module_state,
    read_btf,
    types_of_module,
)
from bpf.build import KFUNCS
from core.model import Requirement

_LOCKDOWN = Path("/sys/kernel/security/lockdown")
# Bit numbers of linux/capability.h.
# CAP_NET_RAW is for seeing changes of iptables-legacy.
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13, "CAP_SYS_ADMIN": 21}
_LOOPBACK = 1

OFF = "the fast path stays off: the kernel forwards everything, as without it"


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found. `functions` are those of KFUNCS that the kernel or its module nf_conntrack has,
    `members` what of its structures cannot be found ("" for nothing); `tcx` is None where it cannot be told;
    `lockdown` is "" where there is none."""

    release: str
    btf: str = ""
    functions: frozenset[str] = frozenset(KFUNCS)
    members: str = ""
    conntrack: ModuleState = BUILT_IN
    tcx: bool | None = True
    capabilities: int = -1
    lockdown: str = ""
    has_bcc: bool = True
    has_headers: bool = True
    compiled: bool = False


def requirements(facts: Facts | None = None) -> tuple[Requirement, ...]:
    """Every requirement, on this machine unless other facts are given."""
    return tuple(_judged(facts or facts_of_this_machine()))


def unmet(found: tuple[Requirement, ...]) -> tuple[Requirement, ...]:
    """Those without which the fast path cannot be turned on."""
    return tuple(one for one in found if one.needed and not one.met)


def _judged(facts: Facts) -> Iterator[Requirement]:
    yield _capabilities(facts)
    yield _lockdown(facts)
    yield _conntrack(facts)
    yield _types(facts)
    for name in KFUNCS:
        yield _function(facts, name)
    yield _tcx(facts)
    yield _bcc(facts)
    yield _headers(facts)


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


def _conntrack(facts: Facts) -> Requirement:
    state = facts.conntrack
    found = "it is in the kernel"
    if state.loadable:
        found = f"it is not loaded; starting the fast path loads the module {NAME}"
    elif not state.present:
        found = f"it is not in the kernel, and there is no module {NAME} to load"
    elif state.loaded:
        found = f"the module {NAME} is loaded"
    return Requirement("conntrack", state.present or state.loadable, found, OFF, f"modprobe {NAME}")


def _function(facts: Facts, name: str) -> Requirement:
    """That of a module which is not loaded cannot be looked at; starting loads it and looks again."""
    met = name in facts.functions or facts.conntrack.loadable
    found = "it is there"
    if not met and facts.conntrack.loaded and not facts.conntrack.has_types:
        found = f"the module {NAME} was loaded without type information: it is of another build"
    elif not met:
        found = f"Linux {facts.release} has none, nor has its module {NAME} (/sys/kernel/btf)"
    elif facts.conntrack.loadable:
        found = f"it is looked for once the module {NAME} is loaded"
    elif facts.conntrack.has_types:
        found = f"the module {NAME} has it"
    return Requirement(
        f"kernel function {name}", met, found,
        f"without it no connection can be learned from conntrack: {OFF}",
        "a kernel with CONFIG_DEBUG_INFO_BTF_MODULES that has the function (Linux 6.0 and newer have it)",
    )  # fmt: skip


def _tcx(facts: Facts) -> Requirement:
    found = {
        True: "they are there",
        False: "this kernel has none (they came with Linux 6.6)",
        None: "whether they are there cannot be told without CAP_NET_ADMIN",
    }
    follows = (
        "clsact filters are used instead: should the program be killed, they stay, idle once their lease is "
        "over, until the next start or `vnet-tui recover`"
    )
    return Requirement(
        "tcx links", bool(facts.tcx), found[facts.tcx],
        f"where there are none, {follows}" if facts.tcx is None else follows,
        "run it as root (sudo)" if facts.tcx is None else "Linux 6.6 or newer", needed=False,
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
    path = build.UAPI / "linux" / "bpf.h"
    found = f"{path} is there" if facts.has_headers else f"{path} is missing"
    return Requirement(
        "headers of the C library", met,
        found if not facts.compiled else f"{found}; the program is compiled already", OFF,
        "apt install linux-libc-dev (Fedora: dnf install kernel-headers)",
    )  # fmt: skip


def facts_of_this_machine(whole: bool = False) -> Facts:
    """Look; nothing is changed, and BCC is not imported. A program that is compiled already shows that the
    kernel's types are as they must be: they are read again only for the `whole` of it."""
    compiled, module = loader.is_compiled(), module_state()
    btf, why = _btf() if whole or not compiled else (None, "")
    functions = frozenset(name for name in KFUNCS if btf and btf.function(name) is not None)
    return Facts(
        release=os.uname().release,
        btf=why,
        functions=functions if btf or why else frozenset(KFUNCS),
        members=_members(btf) if btf and not module.loadable else "",
        conntrack=module,
        tcx=_has_tcx(),
        capabilities=_effective(),
        lockdown=_lockdown_here(),
        has_bcc=find_spec("bcc") is not None,
        has_headers=(build.UAPI / "linux" / "bpf.h").is_file(),
        compiled=compiled,
    )


def _btf() -> tuple[Btf | None, str]:
    try:
        return read_btf(module=types_of_module()), ""
    except BtfError as error:
        return None, str(error)


def _members(btf: Btf) -> str:
    """What the compiled program reads of the kernel's structures and cannot be found, in words."""
    try:
        build.offsets(btf)
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
