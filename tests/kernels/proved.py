"""Remember for which sources a kernel's tests passed.

They run again only after a change.
"""

from __future__ import annotations

import subprocess

from tests.kernels.packages import Kernel
from tests.kernels.vm import ROOT

# Files on which the result depends.
_SOURCES = ("bpf", "tests/datapath", "tests/kernel", "tests/kernels", "tests/support")


def is_proved(kernel: Kernel, stages: list[str]) -> bool:
    """Return whether these stages passed on this kernel with exactly these sources."""
    now = _stamp(kernel)
    path = kernel.folder / "proved"
    if not now or not path.exists():
        return False
    lines = path.read_text().splitlines()
    return all(f"{stage} {now}" in lines for stage in stages)


def remember(kernel: Kernel, stages: list[str]) -> None:
    """Remember that they passed."""
    if now := _stamp(kernel):
        path = kernel.folder / "proved"
        before = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in before if line.endswith(f" {now}")]
        path.write_text("\n".join(dict.fromkeys([*kept, *(f"{stage} {now}" for stage in stages)])) + "\n")


def _stamp(kernel: Kernel) -> str:
    """Return the kernel and the hashes of the sources; "" unless they are committed."""
    changed = _git("status", "--porcelain", "--", *_SOURCES)
    hashes = _git("rev-parse", *(f"HEAD:{each}" for each in _SOURCES))
    if changed is None or changed or hashes is None:
        return ""
    return f"{kernel.release} {' '.join(hashes.split())}"


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return None if done.returncode else done.stdout.strip()
