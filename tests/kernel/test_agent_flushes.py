"""The agent restores vnet's rules after any sequence of flushes.

Also after reloads of known firewalls. firewalld and ufw are not installed where the tests run; their reloads
are played by the commands that they give. firewalld deletes its own table `inet firewalld` and loads it again
in one transaction of nft; ufw, and firewalld with iptables as its backend, flush and delete chains of
iptables and restore them. `systemctl restart nftables` loads /etc/nftables.conf, which begins with `flush
ruleset`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

import pytest

from tests.support.machine import PROGRAM, ROOT, Machine, ok
from tests.support.waiting import scaled, wait_until

pytestmark = pytest.mark.root

_COUNT = int(os.environ.get("VNET_FUZZ_FLUSH") or 1000)
_SEED = int(os.environ.get("VNET_FUZZ_SEED") or 1)
_AT_ONCE = 12
_OF_THE_PROGRAM = 50
_NFTABLES_CONF = """\
#!/usr/sbin/nft -f
flush ruleset
table inet filter {
\tchain input { type filter hook input priority filter; policy accept; }
\tchain forward { type filter hook forward priority filter; policy accept; }
}
"""
_FIREWALLD = """\
table inet firewalld
delete table inet firewalld
table inet firewalld {
\tchain filter_FORWARD {
\t\ttype filter hook forward priority filter + 10; policy accept;
\t\tct state { established, related } accept
\t\treject with icmpx admin-prohibited
\t}
}
"""
_UFW = """\
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:ufw-before-forward - [0:0]
-A FORWARD -j ufw-before-forward
-A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
"""
# What each writes to these commands, the last of which reads the text, and a line that is there afterwards.
_RELOADS = {
    "nftables": (["nft -f -"], _NFTABLES_CONF, "table inet filter {"),
    "firewalld": (["nft -f -"], _FIREWALLD, "table inet firewalld {"),
    "ufw": (["iptables -F", "iptables -X", "iptables -t nat -F", "iptables-restore -n"], _UFW, "ufw-before"),
    "iptables-restore": (["nft flush ruleset", "iptables-restore"], _UFW, "ufw-before"),
}  # fmt: skip


@pytest.mark.timeout(scaled(1800))
def test_random_sequences_of_flushes() -> None:
    """Most run with an agent that only events wake, some with the program."""
    shares = [_COUNT // (_AT_ONCE - 1)] * (_AT_ONCE - 1)
    shares[0] += _COUNT % (_AT_ONCE - 1)
    players = [_run_sequences(_SEED * 1000 + number, share) for number, share in enumerate(shares)]
    players.append(_run_sequences(_SEED * 1000 + _AT_ONCE, _OF_THE_PROGRAM, "--program"))
    seconds = []
    for player in players:
        printed, complaint = player.communicate(timeout=scaled(1500))
        assert player.returncode == 0, complaint.decode()
        seconds += json.loads(printed)
    seconds.sort()
    print(f"{len(seconds)} sequences; back after {seconds[len(seconds) // 2]:.3f} s (median), "
          f"{seconds[-1]:.3f} s (the longest)")  # fmt: skip


def _run_sequences(seed: int, count: int, *more: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "tests.support.flushing", str(seed), str(count), *more]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.fixture
def guarded() -> Iterator[Machine]:
    """Yield a machine with a vnet network and a running agent."""
    machine = Machine(VNET_ENGINES="none")
    try:
        ok(machine, "network create shop")
        subprocess.Popen(machine.words(*PROGRAM, "agent"), env=machine.environment, stdout=subprocess.DEVNULL)
        machine.run("nft delete table inet vnet")
        wait_until(lambda: "vnet nat shop" in machine.run("nft list ruleset"), "the agent at work")
        yield machine
    finally:
        machine.close()


@pytest.mark.parametrize("firewall", _RELOADS)
def test_rules_are_restored_after_a_firewall_reload(guarded: Machine, firewall: str) -> None:
    commands, text, theirs = _RELOADS[firewall]
    ours = guarded.run("nft -s list table inet vnet")
    for _ in range(2):  # the second time its own rules are there
        for command in commands:
            guarded.run(command, text=text if command == commands[-1] else "")
        rules = wait_until(partial(_both, guarded, ours, theirs), "our rules and theirs")
        assert rules.count("table inet vnet {") == 1


def _both(machine: Machine, ours: str, theirs: str) -> str:
    rules = machine.run("nft -s list ruleset")
    return rules if ours in rules and theirs in rules else ""
