"""The kernel module nf_conntrack: whether it is there, its types, and loading it.

Distributions build connection tracking as a module, so the kernel functions that the fast path calls are the
module's (/sys/kernel/btf/nf_conntrack), and are there only once it is loaded.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from bpf import syscall

NAME = "nf_conntrack"
BTF = Path("/sys/kernel/btf") / NAME
_LOADED = Path("/sys/module") / NAME / "coresize"  # of loaded modules alone, not of those built in
_MODULES = Path("/lib/modules")
_SYSCTL = Path("/proc/sys/net/netfilter/nf_conntrack_max")
_LOAD_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class ModuleState:
    """`present`: connection tracking is in the running kernel; `loaded`: as a module; `has_types`: that has
    type information; `loadable`: it is not present, but a file of the module for this kernel is."""

    present: bool
    loaded: bool = False
    has_types: bool = False
    loadable: bool = False


BUILT_IN = ModuleState(present=True)


def module_state() -> ModuleState:
    """Look; loads nothing."""
    present = _SYSCTL.exists()
    return ModuleState(present, _LOADED.exists(), BTF.exists(), not present and _has_file())


def load_module() -> bool:
    """Load it where it is not present and can be; whether it was loaded. Never raises: what is missing
    afterwards is named by bpf/requirements.py."""
    if not module_state().loadable:
        return False
    try:
        subprocess.run(
            ["modprobe", NAME],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_LOAD_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def _has_file() -> bool:
    """Whether modprobe(8) would find the module (modules.dep of depmod(8))."""
    if shutil.which("modprobe") is None:
        return False
    try:
        listed = (_MODULES / os.uname().release / "modules.dep").read_text()
    except (OSError, UnicodeDecodeError):
        return False
    return f"/{NAME}.ko" in listed


def types_of_module() -> bytes:
    """The module's split BTF; empty where it is not loaded as a module."""
    try:
        return BTF.read_bytes()
    except OSError:
        return b""


def open_module_btf() -> int:
    """A descriptor of the loaded module's BTF, which BPF_PROG_LOAD takes to call its functions; the program
    holds the module afterwards, so it may be closed. Raises OSError (ENOENT: no such module is loaded)."""
    at = 0
    while True:
        at = syscall.next_btf_id(at)
        descriptor = syscall.btf_by_id(at)
        if syscall.kernel_btf_name(descriptor) == NAME:
            return descriptor
        os.close(descriptor)
