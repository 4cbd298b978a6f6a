"""`vnet-tui demo`: a command on the demo lab, as if the lab were the host."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from core.lab.lab import Lab
from core.lab.settings import LabSettings


def main(argv: list[str], settings: LabSettings | None = None, env: Mapping[str, str] | None = None) -> int:
    """Build the lab, run `argv` inside it on this terminal and return its exit code. Raises LabError."""
    with Lab(settings, progress=_say) as lab:
        code = lab.run_inside(argv, env)
        return code if code >= 0 else 128 - code  # ended by a signal: as a shell says it


def _say(text: str) -> None:
    print(f"demo lab: {text} ...", file=sys.stderr, flush=True)
