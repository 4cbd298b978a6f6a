"""Random rule sets, and what they look at changes: what arrives is the same with and without the fast path.

`make fuzz-rules` compares 500 cases of a seed of its own (`SEED=` repeats one, `CASE=` one case of it); every
other run takes the same few.
"""

from __future__ import annotations

import os
import random
import re
from dataclasses import replace

import pytest

from tests.kernel.rule_fuzz import compare
from tests.kernel.rule_fuzz.cases import ROWS, Rule, all_rules, cases
from tests.kernel.rule_fuzz.compare import LACKS, Outcome
from tests.kernel.rule_fuzz.places import Pair, Place
from tests.kernel.rule_fuzz.report import fuzz

COUNT = int(os.environ.get("VNET_FUZZ_RULES") or 0)
CASE = int(os.environ.get("VNET_FUZZ_CASE") or 0)
SEED = int(os.environ.get("VNET_FUZZ_SEED") or 0) or (random.randrange(1, 1 << 31) if COUNT else 101)
_FEW = 30
# Of all packets, how many must have been fast before the change: with none the comparison says nothing.
_LEAST_FAST = 0.2

pytestmark = [pytest.mark.root, pytest.mark.timeout(120 * (COUNT or _FEW))]


def _show(outcome: Outcome) -> None:
    if COUNT:
        print(
            f"{outcome.case.number:5} {outcome.kind:10} {outcome.share:4.0%} fast  {outcome.case.name}",
            flush=True,
        )
        if outcome.kind == "different":
            print(outcome, flush=True)


def test_what_rules_do_is_the_same_before_and_after_a_change() -> None:
    print(f"seed {SEED}")
    report = fuzz(SEED, COUNT or _FEW, CASE, progress=_show)
    print(report)
    assert not report.different, "\n\n".join(map(str, report.different))
    assert CASE or report.fast_share > _LEAST_FAST, report


ALONE = (
    "ip saddr 172.17.0.2 udp dport 5080 drop",
    "ip saddr 172.17.0.2 ip ttl set 33",
    "ip saddr 172.17.0.2 udp dport 5080 dup to 172.18.0.2",
)


def test_what_one_host_alone_does_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "GRACE", 1.0)
    case = replace(next(cases(SEED)), rules=(), late=(), steps=())
    pair = Pair(is_control=True)
    try:
        assert compare.run(pair, case).kind == "same"
        for rule in ALONE:
            chain = f"chain it {{ type filter hook prerouting priority -150; {rule}; }}"
            assert pair.fast.run(f"nft 'table ip own {{ {chain}; }}'") == (0, "")
            outcome = compare.run(pair, case)
            assert outcome.kind == "different" and outcome.phase == "before", rule
            assert all("v4" in line for line in outcome.details[:-2]), outcome
            pair.fast.run("nft delete table ip own")
        assert compare.run(pair, case).kind == "same"
    finally:
        pair.close()


def test_every_rule_of_the_vocabulary_is_taken_or_not_in_this_kernel() -> None:
    """Nothing is left out of the comparison because it is written wrongly."""
    rules = {"nft": list[Rule](), "iptables": list[Rule]()}
    for rule in all_rules(SEED):
        rules[rule.row.tool].append(rule)
    place = Place()
    try:
        started = [(each, place.start(_tried(each))) for each in rules.values()]
        said = [(each, process.communicate()[0]) for each, process in started]
    finally:
        place.close()
    wrong = [
        f"{tried[int(number)].row.name}: {text}"
        for tried, output in said
        for number, text in re.findall(r"^@(\d+)\n([^@]*)^refused", output, re.MULTILINE)
        if not LACKS.search(text)
    ]
    assert not wrong, "\n".join(wrong)
    assert all(f"@{len(tried) - 1}\n" in output for tried, output in said)
    assert len({row.name for row in ROWS}) == len(ROWS)


def _tried(rules: list[Rule]) -> str:
    """A script that tries each, says its number before and "refused" behind."""
    return "\n".join(
        f"echo @{number}; (set -e\n{rule.put.replace('nft -f', 'nft -c -f')}\n"
        f"{rule.take if rule.row.tool != 'nft' else 'true'}\n) || echo refused"
        for number, rule in enumerate(rules)
    )
