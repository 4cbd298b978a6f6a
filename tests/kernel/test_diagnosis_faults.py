"""Check that `why` or `doctor` names the culprit of each lab fault first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from core.lab import Lab, LabSettings
from core.lab.faults import FAULTS
from tests.support.machine import ROOT
from tests.support.waiting import scaled

pytestmark = pytest.mark.root

# Faults whose culprit isn't named yet, with the reason.
EXCEPTIONS = {
    "dnat-missing": "nothing on the host says that the port was published: no engine",
}
# Faults that no repair ends, with the reason.
_PROGRAM = "the program in the container has to be changed or restarted"
UNREPAIRED = {
    "dead-namespace": _PROGRAM,
    "service-dead": _PROGRAM,
    "service-on-loopback": _PROGRAM,
    "service-on-other-port": _PROGRAM,
    "service-ipv6-only": _PROGRAM,
    "internal-service-dead": _PROGRAM,
    "dnat-stale": "which container the port is for isn't known",
    "dnat-loopback-only": "who published the port decides on which addresses",
    "nat-table-gone": "nothing on the host says what the table contained",
}
_LABS = 2
_PATIENCE = scaled(float(os.environ.get("VNET_PATIENCE") or 20))  # seconds; it takes less than one
_WHOLE = scaled(480.0)
QUIET = LabSettings(traffic=False, healthy=True)
_LACKING = ("not supported", "No such file or directory", "needs IPv6")

type Results = dict[str, dict[str, Any]]


def diagnose(lab: Lab, words: list[str]) -> Results:
    """Try some of the faults in a lab of their own."""
    argv = ["env", f"PYTHONPATH={ROOT}", "VNET_STATE=/run/vnet-state", sys.executable, "-P"]
    argv += ["-m", "tests.support.diagnosis", str(_PATIENCE), *words]
    with lab.popen_inside(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            output, errors = process.communicate(timeout=_WHOLE)
        finally:
            process.kill()  # one that isn't reaped keeps the lab's first process from ending
    assert process.returncode == 0, errors
    return json.loads(output)


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest) -> Iterator[list[Future[Results]]]:
    """Try the faults of all selected tests, in two labs."""
    chosen = {
        item.callspec.params.get("fault")
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.path == request.path and hasattr(item, "callspec")
    }
    words = [f"{name}=0" if name in EXCEPTIONS else name for name in FAULTS if name in chosen]
    labs = [Lab(QUIET) for _ in range(min(_LABS, len(words) or 1))]
    with ThreadPoolExecutor(_LABS) as pool:
        try:
            for lab in labs:
                lab.start()
            yield [pool.submit(diagnose, lab, words[number :: len(labs)]) for number, lab in enumerate(labs)]
        finally:
            pool.shutdown(cancel_futures=True)
            for lab in labs:
                lab.close()


@pytest.mark.parametrize("fault", FAULTS)
def test_the_culprit_is_named_first(fault: str, results: list[Future[Results]]) -> None:
    result = next(found[fault] for one in results if fault in (found := one.result()))
    if "lacking" in result:
        assert any(text in result["lacking"] for text in _LACKING), result["lacking"]
        pytest.skip(f"this kernel can't: {result['lacking']}")
    if fault in EXCEPTIONS:
        assert not result["by"], f"{fault} is named now: remove it from EXCEPTIONS"
        pytest.xfail(EXCEPTIONS[fault])
    said = "\n".join([f"why: {result['why']}", *result["doctor"]])
    assert result["by"], f"{FAULTS[fault].culprit} isn't named:\n{said}"
    assert result["advice"] or any(result["doctor"])
    if fault in UNREPAIRED:
        assert not result.get("repair", {}).get("works"), (
            f"{fault} is repaired now: remove it from UNREPAIRED"
        )
        return
    assert result.get("repair") == {"works": True, "errors": []}, (result, said)


def test_the_healthy_lab_has_no_findings(results: list[Future[Results]]) -> None:
    healthy = [line for one in results for line in one.result().get("", ())]
    assert [line for line in healthy if not line.startswith("info")] == []
