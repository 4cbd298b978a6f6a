"""`vnet-tui demo`: a command on the demo lab, as if the lab were the host."""

from __future__ import annotations

import sys

from core.lab.lab import Lab, LabError


def main(argv: list[str]) -> int:
    """Build the lab, run `argv` inside it on this terminal and return its exit code; 1 without a lab."""
    try:
        with Lab(progress=_say) as lab:
            return lab.run_inside(argv)
    except LabError as error:
        print(f"vnet-tui: {error}", file=sys.stderr)
        return 1


def _say(text: str) -> None:
    print(f"demo lab: {text} ...", file=sys.stderr, flush=True)
