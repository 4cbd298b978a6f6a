"""Kill changes, undos and recoveries; `recover` must leave no difference.

`make fuzz-kill` makes 500 trials of a new seed (`SEED=` repeats one, `CASE=` one trial of it, `COUNT=` says
how many); every other run makes the same few.
"""

from __future__ import annotations

import os
import random
from itertools import islice

import pytest

from tests.kernel.kill_fuzz.trials import IPTABLES_FAULTS, NFT_FAULTS, Killer, Outcome, repairs, trials

COUNT = int(os.environ.get("VNET_FUZZ_KILL") or 0)
CASE = int(os.environ.get("VNET_FUZZ_CASE") or 0)
SEED = int(os.environ.get("VNET_FUZZ_SEED") or 0) or (random.randrange(1, 1 << 31) if COUNT else 7)
_FEW, _FEW_REPAIRS = 40, 5

pytestmark = [pytest.mark.root, pytest.mark.timeout(30 * (COUNT or _FEW))]


def test_recover_undoes_killed_changes_completely() -> None:
    print(f"seed {SEED}")
    killer, outcomes = Killer(), []
    try:
        for trial in islice(trials(SEED), COUNT or _FEW):
            if CASE in (0, trial.number):
                outcomes.append(killer.run(trial))
                if COUNT:
                    print(outcomes[-1], flush=True)
    finally:
        killer.close()
    _check(outcomes)


@pytest.mark.parametrize("faults", [IPTABLES_FAULTS, NFT_FAULTS], ids=["iptables", "nft"])
def test_recover_undoes_killed_repairs_completely(faults: tuple[str, ...]) -> None:
    print(f"seed {SEED}")
    killer = Killer(faults)
    try:
        commands = repairs(killer.host())
        assert commands
        wanted = islice(trials(SEED, commands), COUNT // 10 or _FEW_REPAIRS)
        outcomes = [killer.run(trial) for trial in wanted]
    finally:
        killer.close()
    _check(outcomes)


def _check(outcomes: list[Outcome]) -> None:
    killed = sum(outcome.kind == "killed" for outcome in outcomes)
    print(f"seed {SEED}: {len(outcomes)} trials, {killed} of them killed as was meant")
    wrong = [str(outcome) for outcome in outcomes if outcome.differs]
    assert not wrong, "\n\n".join(wrong)
    assert CASE or killed > len(outcomes) / 2
