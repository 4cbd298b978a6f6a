"""Run the tests of the fast path on Debian's kernels in virtual machines.

`python -m tests.kernels [--only STAGE] [--if-changed] [KERNEL...]`; `make test-kernels` calls it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from xml.etree import ElementTree

from tests.kernels import proved, vm
from tests.kernels.packages import SUITES, CannotFetch, Kernel, kernel, one_at_a_time

_FASTPATH = [
    f"tests/kernel/test_fastpath_{each}.py"
    for each in ("firewall", "nat", "processes", "hooks", "kernel_features")
]
# In this order; lines before the first run without br_netfilter, as on a host without engines.
STAGES = {
    "proof": ["tests/kernels/test_proof.py"],
    "datapath": ["tests/datapath"],
    "fastpath": _FASTPATH,
    "commands": ["tests/kernels/test_commands.py"],
    "functions": ["tests/kernels/test_functions.py"],
    "overlay": [
        "tests/kernel/test_overlay_reflected.py",
        *(
            f"tests/kernel/test_fastpath_tunnels.py::test_{each}"
            for each in (
                "packets_pass_without_the_tunnels_link",
                "the_headers_are_those_of_the_kernel",
                "a_damaged_packet_is_noticed",
                "a_rule_about_the_tunnels_packets_stops_them",
            )
        ),
    ],
    "ovs": [
        "tests/kernel/test_ovs_network.py",
        "--deselect=tests/kernel/test_ovs_network.py::test_a_missing_kernel_datapath_is_explained",
    ],
    "storms": ["tests/kernel/test_storm_guard.py", "tests/kernel/test_storm_guard_xdp.py"],
}
# What a stage needs before its tests.
_BEFORE = {"ovs": "modprobe openvswitch; export VNET_OVS_DATAPATH=system"}
_IN_PARALLEL = ("datapath", "fastpath")
_BOOT_SECONDS, _STAGE_SECONDS = 60, 400  # times the factor of a slow machine


@dataclass(frozen=True)
class Result:
    """Hold the result of one stage on one kernel."""

    kernel: str
    release: str
    stage: str
    passed: int
    failed: int
    skipped: int
    seconds: float
    date: str

    @property
    def is_good(self) -> bool:
        return self.passed > 0 and not self.failed and not self.skipped


def main() -> int:
    """Return 1 if a test failed, or a machine isn't available."""
    options = _options()
    if missing := vm.lacking():
        return _refuse(f"virtual machines need more programs here. Try: sudo {missing}")
    try:
        with one_at_a_time():
            good = [_is_good(name, options) for name in options.kernels or SUITES]
    except CannotFetch as error:
        return _refuse(f"{error}. Try: again, with a network connection")
    return 0 if all(good) else 1


def _is_good(name: str, options: argparse.Namespace) -> bool:
    """Run the requested stages on one kernel. Raises CannotFetch."""
    found = kernel(name)
    stages = options.only or list(STAGES)
    if options.if_changed and proved.is_proved(found, stages):
        print(f"{name}: nothing changed since these passed on Linux {found.release}: {', '.join(stages)}")
        return True
    results = run(found, stages)
    good = len(results) == len(stages) and all(each.is_good for each in results)
    if good:
        proved.remember(found, stages)
    return good


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.kernels", description=__doc__)
    parser.add_argument("--only", action="append", choices=STAGES, help="this stage alone; may be repeated")
    parser.add_argument("--if-changed", action="store_true", help="not where the same sources passed before")
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", help=f"of {', '.join(SUITES)} (all)")
    options = parser.parse_args()
    for name in options.kernels:
        if name not in SUITES:
            parser.error(f"no kernel {name}; there are {', '.join(SUITES)}")
    return options


def _refuse(why: str) -> int:
    print(f"can't test on Debian's kernels: {why}", file=sys.stderr)
    return 1


def run(found: Kernel, stages: list[str]) -> list[Result]:
    """Boot the kernel once, run the stages, print a line for each, keep the results."""
    for old in found.folder.glob("*.xml"):
        old.unlink()
    how = "KVM" if vm.has_kvm() else "emulated"
    print(f"{found.name}: Linux {found.release}, {how}, time-outs x {vm.slowness():g}", flush=True)
    began = time.monotonic()
    seconds = vm.slowness() * (_BOOT_SECONDS + _STAGE_SECONDS * len(stages))
    ended = vm.run(found, script(stages), seconds)
    if ended is None:
        print(f"{found.name}: the virtual machine did not get to its end", file=sys.stderr)
    results = [result for stage in stages if (result := _result(found, stage))]
    for each in results:
        words = f"{each.passed} passed, {each.failed} failed, {each.skipped} skipped"
        print(f"{found.name} {found.release}: {each.stage}: {words} in {each.seconds:.0f} s")
    print(f"{found.name}: {time.monotonic() - began:.0f} s in all", flush=True)
    (found.folder / "results.json").write_text(json.dumps([asdict(each) for each in results], indent=1))
    return results


def script(stages: list[str]) -> str:
    """Return the script for the machine: each stage runs even if one failed before."""
    lines = ["failed=0"]
    for stage in stages:
        if stage != "proof":
            lines.append("modprobe br_netfilter")
        if stage in _BEFORE:
            lines.append(_BEFORE[stage])
        words = f"python -m pytest -q --durations=5 --junit-xml={vm.SHARED}/{stage}.xml"
        words += " -n 2" if stage in _IN_PARALLEL else ""
        lines.append(f"{words} {' '.join(STAGES[stage])} || failed=1")
    return "\n".join([*lines, "exit $failed", ""])


def _result(found: Kernel, stage: str) -> Result | None:
    """Read the stage's report; None if the machine ended before."""
    path = found.folder / f"{stage}.xml"
    if not path.exists():
        return None
    suite = ElementTree.parse(path).getroot()[0]
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    failed = counts["failures"] + counts["errors"]
    return Result(
        found.name, found.release, stage, counts["tests"] - failed - counts["skipped"], failed,
        counts["skipped"], float(suite.get("time", 0)), time.strftime("%Y-%m-%d"),
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
