"""Random sequences of flushes against an agent, in a network namespace of its own.

`python -m tests.support.flushing SEED COUNT [--program]` prints, as JSON, the seconds after which the rules
were back, for each sequence. It ends with 1, naming the sequence, where they don't come back.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import core.agent
from core.agent import Agent
from core.apply import run
from core.collect.nft import HANDLES, STATELESS, Context, NftError, library
from core.operations import SetRules
from core.plan.rules import EMPTY, render
from core.plan.tags import VnetNetwork, VnetPort, VnetState
from tests.support.machine import PROGRAM
from tests.support.waiting import eventually

_TABLE = "inet vnet"
_LONGEST = 8  # wipes in a sequence
_GAPS = (0.0, 0.0, 0.001, 0.005, 0.02, 0.06)  # seconds between two of them
_NEVER = 3600.0


class Wiper:
    """Wipes vnet's table as firewalls, scripts and users do, one transaction each."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._wipes = (
            lambda: "flush ruleset", lambda: "flush ruleset", lambda: f"delete table {_TABLE}",
            lambda: f"flush table {_TABLE}", lambda: f"table {_TABLE}\ndelete table {_TABLE}\ntable {_TABLE}",
            self._chain_flushed, self._chain_deleted, self._rule_deleted, self._smaller,
        )  # fmt: skip

    def wipe(self) -> str:
        """Do a random wipe and return it; rules that are missing already can't be removed."""
        command = self._chance.choice(self._wipes)()
        try:
            nft(command)
        except NftError:
            return f"(refused) {command}"
        return command

    def _chain_flushed(self) -> str:
        return f"flush chain {_TABLE} {self._chain()}"

    def _chain_deleted(self) -> str:
        chain = self._chain()
        return f"flush chain {_TABLE} {chain}\ndelete chain {_TABLE} {chain}"

    def _rule_deleted(self) -> str:
        chain, handles = "", []
        for line in listing(HANDLES).splitlines():
            chain = line.split()[1] if line.startswith("\tchain ") else chain
            if found := re.search(r"^\t\t.* # handle (\d+)$", line):
                handles.append(f"delete rule {_TABLE} {chain} handle {found[1]}")
        return self._chance.choice(handles or ["flush ruleset"])

    def _smaller(self) -> str:
        """Return the table with some rules missing, as other tools may restore it."""
        lines = listing().splitlines()
        rules = [line for line in lines if line.startswith("\t\t") and not line.startswith("\t\ttype ")]
        left_out = set(self._chance.sample(rules, self._chance.randint(1, len(rules)))) if rules else set()
        kept = "\n".join(line for line in lines if line not in left_out)
        return f"{EMPTY}{kept}\n"

    def _chain(self) -> str:
        chains = re.findall(r"^\tchain (\S+) ", listing(), re.MULTILINE)
        return str(self._chance.choice(chains or ["forward"]))


def nft(command: str, output: int = 0) -> str:
    """Run a command as `nft` does. Raises Refused."""
    found = library()
    assert found
    context = Context(found)
    try:
        return context.run(command, output)
    finally:
        context.close()


def listing(output: int = STATELESS) -> str:
    """Return vnet's table as nft prints it, "" if it is gone."""
    try:
        return nft(f"list table {_TABLE}", output)
    except NftError:
        return ""


def texts() -> dict[str, str]:
    """Return contents of vnet's table and their listings, before an agent runs."""
    networks = {
        name: VnetNetwork(name, kind, f"br-{name}", (f"10.7{number}.0.0/24",), (f"10.7{number}.0.1",))
        for number, (name, kind) in enumerate({"shop": "nat", "lab": "internal", "db": "nat"}.items())
    }
    port = VnetPort("netns:web", "tcp", "", "8080-8081", "10.70.0.2", "80-81")
    few = {name: networks[name] for name in ("shop", "lab")}
    found = {}
    for vnet in (VnetState(few), VnetState(networks, ports=(port,), joined=frozenset({("db", "shop")}))):
        text = render(vnet)
        nft(text)
        found[text] = listing()
        assert found[text].count("\t\t") > 10
    nft("flush ruleset")
    return found


def sequences(chance: random.Random, wanted: dict[str, str], count: int) -> Iterator[float]:
    """Do wipes in order; return the seconds until the rules were back, or fail."""
    wiper, text = Wiper(chance), ""
    for number in range(count):
        if not text or chance.random() < 0.1:
            text, before = chance.choice(list(wanted)), text or EMPTY
            assert run.apply("rules", (SetRules(text, before),), wait=True).done
        done = []
        for _ in range(chance.randint(1, _LONGEST)):
            time.sleep(chance.choice(_GAPS))
            done.append(wiper.wipe())
        last = time.monotonic()
        back = eventually(partial(_says, wanted[text]), pause=0.01)
        assert back, f"sequence {number}: no rules after {done}, but: {listing() or 'nothing'}"
        yield time.monotonic() - last


def _says(text: str) -> bool:
    return listing() == text


@contextmanager
def agent(as_program: bool) -> Iterator[None]:
    """Run an agent in a process: the installed program, or one without polling."""
    if as_program:
        process = subprocess.Popen([*PROGRAM, "agent"], stdout=subprocess.DEVNULL)
        pid = process.pid
    elif not (pid := os.fork()):
        core.agent._RULES_INTERVAL = core.agent._CONTAINERS_INTERVAL = _NEVER
        Agent(lambda _: None, threading.Event()).run()
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def main() -> int:
    seed, count = map(int, sys.argv[1:3])
    os.unshare(os.CLONE_NEWNET)
    with tempfile.TemporaryDirectory(prefix="vnet-flush-") as state:
        os.environ |= {"VNET_STATE": state, "VNET_ENGINES": "none"}
        wanted = texts()
        with agent("--program" in sys.argv):
            # The agent starts during the first one.
            print(json.dumps(list(sequences(random.Random(seed), wanted, count + 1))[1:]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
