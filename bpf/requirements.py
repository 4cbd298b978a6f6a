"""Check what the fast path needs of this machine, and describe what is missing."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from bpf import build, syscall
from bpf.btf import (
    BUILT_IN,
    CONNTRACK_MODULE,
    VMLINUX,
    Btf,
    BtfError,
    ModuleState,
    module_state,
    read_btf,
    types_of_module,
)
from bpf.build import KFUNCS
from core.collect.host import effective_capabilities
from core.model import Requirement

_LOCKDOWN = Path("/sys/kernel/security/lockdown")
# Bit numbers of linux/capability.h.
# CAP_NET_RAW: to detect changes of iptables-legacy.
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13, "CAP_SYS_ADMIN": 21}
_LOOPBACK = 1

OFF = "the fast path stays off: the kernel forwards everything"


@dataclass(frozen=True, slots=True)
class HostFeatures:
    """Hold what was found on this machine.

    `btf`: why the type information can't be read, or "". `functions`: those of KFUNCS in the kernel or its
    module nf_conntrack. `members`: what is missing in its structures, or "". `tcx`: None if unknown.
    `lockdown`: "" if there is none.
    """

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


def requirements(features: HostFeatures | None = None) -> tuple[Requirement, ...]:
    """Return every requirement, for this machine unless other features are given."""
    return tuple(_checked(features or read_host_features()))


def unmet(found: tuple[Requirement, ...]) -> tuple[Requirement, ...]:
    """Return those without which the fast path can't be turned on."""
    return tuple(one for one in found if one.needed and not one.met)


def _checked(features: HostFeatures) -> Iterator[Requirement]:
    yield _capabilities(features)
    yield _lockdown(features)
    yield _conntrack(features)
    yield _types(features)
    for name in KFUNCS:
        yield _function(features, name)
    yield _tcx(features)
    yield _bcc(features)
    yield _headers(features)


def _capabilities(features: HostFeatures) -> Requirement:
    lacking = [name for name, bit in _CAPABILITIES.items() if not features.capabilities >> bit & 1]
    return Requirement(
        "CAP_NET_ADMIN, CAP_NET_RAW and CAP_SYS_ADMIN", not lacking,
        f"this process lacks {' and '.join(lacking)}" if lacking else "present", OFF,
        "run it as root (sudo)",
    )  # fmt: skip


def _lockdown(features: HostFeatures) -> Requirement:
    """Check the lockdown: confidentiality forbids programs that read kernel memory."""
    return Requirement(
        "no kernel lockdown for confidentiality", features.lockdown != "confidentiality",
        f"lockdown: {features.lockdown or 'none'}", OFF, "boot without lockdown=confidentiality",
    )  # fmt: skip


def _types(features: HostFeatures) -> Requirement:
    why = features.btf or features.members
    return Requirement(
        "the kernel's type information (BTF)", not why, why or f"{VMLINUX} has all needed types", OFF,
        "a kernel built with CONFIG_DEBUG_INFO_BTF",
    )  # fmt: skip


def _conntrack(features: HostFeatures) -> Requirement:
    state = features.conntrack
    found = "built into the kernel"
    if state.loadable:
        found = f"not loaded; starting the fast path loads the module {CONNTRACK_MODULE}"
    elif not state.present:
        found = f"not in the kernel, and there is no module {CONNTRACK_MODULE} to load"
    elif state.loaded:
        found = f"the module {CONNTRACK_MODULE} is loaded"
    return Requirement(
        "conntrack", state.present or state.loadable, found, OFF, f"modprobe {CONNTRACK_MODULE}"
    )


def _function(features: HostFeatures, name: str) -> Requirement:
    """Check a kernel function.

    A module's functions are known only while it is loaded; starting the fast path loads it and checks
    again.
    """
    met = name in features.functions or features.conntrack.loadable
    found = "present"
    if not met and features.conntrack.loaded and not features.conntrack.has_types:
        found = f"the module {CONNTRACK_MODULE} is loaded without type information: it is from another build"
    elif not met:
        found = f"neither Linux {features.release} nor its module {CONNTRACK_MODULE} has it (/sys/kernel/btf)"
    elif features.conntrack.loadable:
        found = f"checked once the module {CONNTRACK_MODULE} is loaded"
    elif features.conntrack.has_types:
        found = f"the module {CONNTRACK_MODULE} has it"
    return Requirement(
        f"kernel function {name}", met, found,
        f"the program can't use conntrack without it: {OFF}",
        "a kernel with CONFIG_DEBUG_INFO_BTF_MODULES that has the function (Linux 6.0 and newer have it)",
    )  # fmt: skip


def _tcx(features: HostFeatures) -> Requirement:
    found = {
        True: "present",
        False: "not in this kernel (new in Linux 6.6)",
        None: "unknown without CAP_NET_ADMIN",
    }
    follows = (
        "clsact filters are used instead: if both processes are killed, they stay without effect until the "
        "next start or `vnet-tui recover`"
    )
    return Requirement(
        "tcx links", bool(features.tcx), found[features.tcx],
        f"if there are none, {follows}" if features.tcx is None else follows,
        "run it as root (sudo)" if features.tcx is None else "Linux 6.6 or newer", needed=False,
    )  # fmt: skip


def _bcc(features: HostFeatures) -> Requirement:
    met = features.has_bcc or features.compiled
    found = "Python bindings installed" if features.has_bcc else "Python bindings not installed"
    return Requirement(
        "BCC", met, found if not features.compiled else f"{found}; the program is already compiled", OFF,
        build.INSTALL_BCC,
    )  # fmt: skip


def _headers(features: HostFeatures) -> Requirement:
    """Check the C library's headers; those of the running kernel aren't needed."""
    met = features.has_headers or features.compiled
    path = build.UAPI / "linux" / "bpf.h"
    found = f"{path} exists" if features.has_headers else f"{path} is missing"
    return Requirement(
        "headers of the C library", met,
        found if not features.compiled else f"{found}; the program is already compiled", OFF,
        "apt install linux-libc-dev (Fedora: dnf install kernel-headers)",
    )  # fmt: skip


def read_host_features(whole: bool = False) -> HostFeatures:
    """Read the features of this machine; changes nothing and doesn't import BCC.

    A program that is already compiled shows that the kernel's types are suitable: they are read again only
    with `whole`.
    """
    compiled, module = build.is_compiled(), module_state()
    btf, why = _btf() if whole or not compiled else (None, "")
    functions = frozenset(name for name in KFUNCS if btf and btf.function(name) is not None)
    return HostFeatures(
        release=os.uname().release,
        btf=why,
        functions=functions if btf or why else frozenset(KFUNCS),
        members=_members(btf) if btf and not module.loadable else "",
        conntrack=module,
        tcx=_has_tcx(),
        capabilities=effective_capabilities(),
        lockdown=lockdown_level(),
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
    """Return which members of kernel structures the compiled program lacks."""
    try:
        build.offsets(btf)
    except BtfError as error:
        return str(error)
    return ""


def _has_tcx() -> bool | None:
    """Query the programs at the loopback link: a kernel without tcx refuses that."""
    try:
        syscall.attached(_LOOPBACK)
    except OSError as error:
        return False if error.errno in (errno.EINVAL, errno.EOPNOTSUPP) else None
    return True


def lockdown_level() -> str:
    """Return the selected level, which the kernel prints in brackets."""
    try:
        chosen = _LOCKDOWN.read_text().partition("[")[2].partition("]")[0]
    except OSError:
        return ""
    return "" if chosen == "none" else chosen
