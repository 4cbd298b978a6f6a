"""Compare `why` with real probes on random hosts with random faults.

`make fuzz-reach` compares 300 hosts of a new seed (`SEED=` repeats one, `CASE=` one host of it with all its
commands, `COUNT=` says how many); every other run compares the same few.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.kernel.reach_fuzz.cases import make
from tests.support.machine import ROOT
from tests.support.sandbox import UNSHARE

COUNT = int(os.environ.get("VNET_FUZZ_REACH") or 0)
CASE = int(os.environ.get("VNET_FUZZ_CASE") or 0)
SEED = int(os.environ.get("VNET_FUZZ_SEED") or 0) or (random.randrange(1, 1 << 31) if COUNT else 7)
_FEW = 24
_WORKERS = 4
_AGREE, _UNKNOWN = 0.99, 0.05  # shares of all probes; the target, and what may stay unknown
# Disagreements that a snapshot can't settle, by the answer's sentence.
KNOWN = {
    r"have the MAC address": "the bridge sends frames to the port that sent last",
    r"have the address": "the first ARP answer wins, whichever that is",
    r"doesn't answer ARP|drops neighbour discovery": (
        "the first answers use the entry that the client's own request made; they stop when it expires"
    ),
    r"wrong neighbour entry": "br_netfilter delivers frames that it translates whatever their MAC address",
}

pytestmark = [pytest.mark.root, pytest.mark.timeout(20 * (COUNT or _FEW))]


def compare(first: int) -> list[dict[str, Any]]:
    """Run every fourth case from `first` on, in namespaces of their own."""
    last = CASE + 1 if CASE else (COUNT or _FEW) + 1
    words = [str(word) for word in (SEED, first, last, 1 if CASE else _WORKERS)]
    done = subprocess.run(
        [*UNSHARE, sys.executable, "-P", "-m", "tests.kernel.reach_fuzz", *words],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def reason(one: dict[str, Any]) -> str:
    """Return why a disagreement can't be avoided, "" for others."""
    return next((text for pattern, text in KNOWN.items() if re.search(pattern, one["sentence"])), "")


def report(number: int, one: dict[str, Any]) -> str:
    """Describe a disagreement: the commands that made the host, and the hops."""
    case = make(SEED, number)
    lines = [f"SEED={SEED} CASE={number}: {one['probe']}"]
    lines += [f"static: {one['verdict']}, {one['sentence']}; real: answered {one['answered']}", *one["hops"]]
    lines += ["faults:", *case.faults, *(["commands:", *case.commands] if CASE else [])]
    return "\n  ".join(lines)


def test_why_agrees_with_real_probes() -> None:
    print(f"seed {SEED}")
    starts = [CASE] if CASE else range(1, _WORKERS + 1)
    with ThreadPoolExecutor(_WORKERS) as pool:
        results = [one for part in pool.map(compare, starts) for one in part]
    assert not [one for one in results if "error" in one]
    found = [(result["number"], one) for result in results for one in result["compared"]]
    wrong = [(number, one) for number, one in found if not one["agrees"] and not reason(one)]
    known = sum(not one["agrees"] for _, one in found) - len(wrong)
    unknown = sum(one["verdict"] == "unknown" for _, one in found)
    stopped = sum(one["verdict"] == "stop" for _, one in found)
    texts = "\n\n".join(report(number, one) for number, one in wrong)
    print(
        f"seed {SEED}: {len(results)} hosts, {len(found)} probes, {stopped} stopped; {len(wrong)} disagree, "
        f"{known} more for a known reason, {unknown} unknown\n{texts}"
    )
    if COUNT or CASE:
        assert len(wrong) <= (1 - _AGREE) * len(found), texts
        assert unknown <= _UNKNOWN * len(found) or CASE
        return
    assert not wrong, texts
    assert 0.2 < stopped / len(found) < 0.8
