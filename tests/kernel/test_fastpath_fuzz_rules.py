"""Random rules and changes: the same packets arrive with and without it.

`make fuzz-rules` compares 500 cases of a new seed (`SEED=` repeats one, `CASE=` one of its cases); every
other run the same few.
"""

from __future__ import annotations

import os
import random
import re
from dataclasses import replace

import pytest

from tests.kernel.rule_fuzz import compare
from tests.kernel.rule_fuzz.cases import ROWS, Rule, Step, all_rules, cases
from tests.kernel.rule_fuzz.compare import LACKS, Outcome
from tests.kernel.rule_fuzz.hosts import FuzzHost, HostPair
from tests.kernel.rule_fuzz.report import fuzz
from tests.kernel.rule_fuzz.traffic import TCP, Arrival, Facts, Flow, compared

COUNT = int(os.environ.get("VNET_FUZZ_RULES") or 0)
CASE = int(os.environ.get("VNET_FUZZ_CASE") or 0)
SEED = int(os.environ.get("VNET_FUZZ_SEED") or 0) or (random.randrange(1, 1 << 31) if COUNT else 101)
_FEW = 30
# Number of all packets that must be fast before the change: with none the comparison is meaningless.
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


def test_rules_have_the_same_effect_before_and_after_a_change() -> None:
    print(f"seed {SEED}")
    report = fuzz(SEED, COUNT or _FEW, CASE, progress=_show, repeat=not COUNT)
    print(report)
    assert not report.different, "\n\n".join(map(str, report.different))
    assert CASE or report.fast_share > _LEAST_FAST, report


ALONE = (
    "ip saddr 172.17.0.2 udp dport 5080 drop",
    "ip saddr 172.17.0.2 ip ttl set 33",
    "ip saddr 172.17.0.2 udp dport 5080 dup to 172.18.0.2",
)


def test_a_difference_between_the_hosts_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "GRACE", 1.0)
    case = replace(next(cases(SEED)), rules=(), late=(), steps=())
    pair = HostPair(is_control=True)
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


@pytest.mark.parametrize(
    ("repeat", "runs", "kind"),
    [
        (True, ["different", "same"], "once"),
        (True, ["different", "different", "same", "same", "same"], "different"),
        (True, ["different", "different", "same", "different"], "unsteady"),
        (False, ["different", "same", "same", "same"], "different"),
    ],
)
def test_a_difference_counts_only_if_it_is_repeated(
    monkeypatch: pytest.MonkeyPatch, repeat: bool, runs: list[str], kind: str
) -> None:
    class NoHosts:
        def __init__(self, is_control: bool = False) -> None:
            pass

        def close(self) -> None:
            pass

    left = iter(runs)
    monkeypatch.setattr("tests.kernel.rule_fuzz.report.HostPair", NoHosts)
    monkeypatch.setattr("tests.kernel.rule_fuzz.report.run", lambda _, case: Outcome(case, next(left)))
    found = fuzz(SEED, 1, only=1, repeat=repeat)
    assert [each.kind for each in found.outcomes] == [kind] and not list(left)


def test_a_randomly_chosen_port_is_not_compared() -> None:
    def arrival(sport: int, dport: int = 5080, ttl: int = 63) -> Arrival:
        packet = bytes([0x45]) + bytes(7) + bytes([ttl]) + bytes(11)
        return Arrival("far", b"", packet + sport.to_bytes(2) + dport.to_bytes(2), True)

    def are_same(one: list[Arrival], two: list[Arrival]) -> bool:
        first, second = compared(one, two)
        return first == second

    assert are_same([arrival(0)], [arrival(5254)]) and are_same([arrival(5254)], [arrival(0)])
    assert not are_same([arrival(5254)], [arrival(5255)])
    assert not are_same([arrival(0)], [arrival(5254, dport=80)])
    assert not are_same([arrival(0)], [arrival(5254, ttl=62)])
    assert not are_same([arrival(0)], []) and not are_same([arrival(0)], [arrival(0), arrival(5254)])


_REPLY_PORT = re.compile(r"dport=(\d+) (?:\[ASSURED\] )?mark=")
_PUBLISHED_ENTRIES = "conntrack -L -p tcp --orig-port-dst 8080 2>/dev/null"


def test_hosts_without_the_fast_path_do_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "GRACE", 1.0)
    pair = HostPair(is_control=True)
    try:
        alone = f"test $PREFIX != {pair.fast.lab.host.prefix} || ip link set v-c down"
        steps = Step("nothing", "true"), Step("one host does it", alone, "ip link set v-c up")
        outcome = compare.run(pair, replace(next(cases(SEED)), rules=(), late=(), steps=steps))
    finally:
        pair.close()
    assert outcome.kind == "different" and outcome.phase == "after: one host does it", outcome


def test_an_end_keeps_a_connection_with_any_port_of_the_kernel() -> None:
    """The server's packet comes first and uses the client's translated addresses."""
    flows = [Flow(5001, "published", 4, TCP, 5001)]
    drop = "chain it { type filter hook prerouting priority -350; tcp dport 8080 drop; };"
    pair = HostPair(is_control=True)
    try:
        pair.begin(flows)
        pair.round(Facts(), 0.0)
        pair.run(f"nft 'table inet own {{ {drop} }}'; conntrack -F")
        pair.round(Facts(), 0.0)
        pair.run("nft delete table inet own")
        rounds = []
        for _ in range(5):
            pair.round(Facts(), 0.05)
            rounds.append([_REPLY_PORT.findall(said) for _, said in pair.run(_PUBLISHED_ENTRIES)])
    finally:
        pair.close()
    assert [len(ports) for ports in rounds[0]] == [len(flows)] * len(pair.places), rounds
    assert rounds == rounds[:1] * len(rounds)


def test_every_rule_of_the_vocabulary_is_accepted_or_unsupported() -> None:
    """No rule is left out of the comparison because of a syntax error."""
    rules = {"nft": list[Rule](), "iptables": list[Rule]()}
    for rule in all_rules(SEED):
        rules[rule.row.tool].append(rule)
    place = FuzzHost()
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
    """Return a script that tries each rule, and prints its number and "refused"."""
    return "\n".join(
        f"echo @{number}; (set -e\n{rule.put.replace('nft -f', 'nft -c -f')}\n"
        f"{rule.take if rule.row.tool != 'nft' else 'true'}\n) || echo refused"
        for number, rule in enumerate(rules)
    )
