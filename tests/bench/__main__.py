"""Run the named benchmarks, or all, and print a Markdown table: `make bench`."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from pathlib import Path

from tests.bench.report import Figure, table
from tests.bench.size import IS_TINY


def main(names: list[str]) -> int:
    """Run the benchmarks bench_NAME.py of these names, or all.

    Returns 1 if one failed, after the others.
    """
    here = Path(__file__).parent
    known = sorted(path.stem.removeprefix("bench_") for path in here.glob("bench_*.py"))
    if os.geteuid() != 0:
        print("the benchmarks make network namespaces: run them as root (sudo make bench)", file=sys.stderr)
        return 1
    figures: list[Figure] = []
    failed = []
    for name in names or known:
        print(f"measuring {name} …", file=sys.stderr, flush=True)
        try:
            figures += importlib.import_module(f"tests.bench.bench_{name}").run()
        except Exception:
            traceback.print_exc()
            failed.append(name)
    if IS_TINY:
        print("SIZE=tiny: this shows that the benchmarks work; the figures mean nothing\n")
    print(f"Linux {os.uname().release}, {os.cpu_count()} CPUs, Python {sys.version.split()[0]}\n")
    print(table(figures))
    if failed:
        print(f"can't measure {', '.join(failed)}: see above", file=sys.stderr)
    return 1 if failed else 0


sys.exit(main(sys.argv[1:]))
