"""Run the engine tests with other engine versions than the installed ones.

`python -m tests.engines [ENGINE...] [-- PYTEST OPTIONS]`; `make test-engines` calls it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from tests.engines.packages import ENGINES, Engine, engine, one_at_a_time
from tests.support.debian import CannotFetch

ROOT = Path(__file__).parents[2]
_CGROUPS = Path("/sys/fs/cgroup")
# A mount namespace in which cgroups have version 2.
_WITH_CGROUP2 = ("unshare", "--mount", "sh", "-c", f'mount -t cgroup2 none {_CGROUPS} && exec "$0" "$@"')


@dataclass(frozen=True)
class Result:
    """Hold the test counts of one engine."""

    name: str
    version: str
    passed: int
    failed: int
    skipped: int
    seconds: float

    @property
    def is_good(self) -> bool:
        return self.passed > 0 and not self.failed and not self.skipped


def main() -> int:
    """Return 1 if a test failed, or an engine isn't available."""
    options = _options()
    try:
        with one_at_a_time():
            found = [engine(name) for name in options.engines or ENGINES]
    except CannotFetch as error:
        print(
            f"can't test with other engines: {error}. Try: again, with a network connection", file=sys.stderr
        )
        return 1
    results = [run(each, options) for each in found]
    print(table(results), flush=True)
    return 0 if all(each.is_good for each in results) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.engines", description=__doc__)
    parser.add_argument("--tests", default="", help="these in place of all that an engine matters to")
    parser.add_argument("-n", dest="jobs", default="2", help="how many at the same time (2)")
    parser.add_argument("engines", nargs="*", metavar="ENGINE", help=f"of {', '.join(ENGINES)} (all)")
    parser.add_argument("--pytest", default="", help="further options for pytest")
    options = parser.parse_args()
    for name in options.engines:
        if name not in ENGINES:
            parser.error(f"no engine {name}; there are {', '.join(ENGINES)}")
    return options


def run(found: Engine, options: argparse.Namespace) -> Result:
    """Run the tests with one engine."""
    tests = _expanded(options.tests) or ENGINES[found.name].tests
    print(f"{found.name}: {found.version}: {' '.join(tests)}", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        words = [sys.executable, "-m", "pytest", "-q", "-n", options.jobs, f"--junit-xml={report}"]
        subprocess.run(
            [*_around(found), *words, *_selection(found), *options.pytest.split(), *tests],
            cwd=ROOT, env=os.environ | found.environment() | {"VNET_REQUIRE_ROOT": "1"}, check=False,
        )  # fmt: skip
        return _result(found, report, time.monotonic() - began)


def _around(found: Engine) -> tuple[str, ...]:
    """Return the wrapper of a run on a machine with cgroups of version 1."""
    is_old = not (_CGROUPS / "cgroup.controllers").exists()
    return _WITH_CGROUP2 if ENGINES[found.name].needs_cgroup2 and is_old else ()


def _expanded(tests: str) -> list[str]:
    """Expand wildcards in the paths of tests."""
    every = [sorted(ROOT.glob(one)) or [ROOT / one] for one in tests.split()]
    return [str(one.relative_to(ROOT)) for some in every for one in some]


def _selection(found: Engine) -> list[str]:
    """Select tests: those of podman don't depend on the Docker version."""
    return ["-k", "not podman"] if found.name.startswith("docker") else []


def _result(found: Engine, report: Path, seconds: float) -> Result:
    """Read pytest's report; a run without one has failed."""
    if not report.exists():
        return Result(found.name, found.version, 0, 1, 0, seconds)
    suite = ElementTree.parse(report).getroot()[0]
    count = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    failed = count["failures"] + count["errors"]
    passed = count["tests"] - failed - count["skipped"]
    return Result(found.name, found.version, passed, failed, count["skipped"], seconds)


def table(results: list[Result]) -> str:
    """Return a table with a line for each engine."""
    lines = [f"{'engine':15} {'version':28} {'passed':>6} {'failed':>6} {'skipped':>7} {'time':>7}"]
    for each in results:
        counts = f"{each.passed:6} {each.failed:6} {each.skipped:7} {each.seconds:5.0f} s"
        lines.append(f"{each.name:15} {each.version:28} {counts}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
