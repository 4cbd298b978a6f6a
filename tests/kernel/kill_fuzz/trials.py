"""Kill a change or its undo at a random call; `recover` must leave no difference."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tests.kernel.kill_fuzz.host import Host, differences
from tests.support.killing import COUNTED, FAIL_AT, KILL_AT
from tests.support.waiting import wait_until

COMMANDS = (
    "network create new",
    "network create new --kind routed --subnet 10.93.0.0/24 --ipv6",
    "network create wire --kind nic-bridged --uplink up0",
    "network create over --kind overlay --ipv6 --remote 192.0.2.8 --remote 192.0.2.9",
    "network join wide --remote 192.0.2.9",
    "network leave wide --remote 192.0.2.8",
    "network leave wide",
    "network rm shop",
    "network rm lab",
    "network join shop lab",
    "network part shop dmz",
    "container create app --network shop",
    "container create twin --joined-with db",
    "container rm web",
    "attach web lab",
    "detach web shop",
    "move web shop lab",
    "publish web 9000-9002:90-92",
    "unpublish 8080",
    "tune shop --big-tcp --offloads off --rps all",
    "storm guard shop on",
    "link set v-web --mtu 1400",
    "link set v-web --name other",
    "link set up0 --alias card",
    "link set v-db --down",
    "link rm v-web",
    "bridge set br-shop stp_state 1",
    "port set v-db isolated on",
    "apply {file} --yes",
    "apply {file} --prune --yes",
    "cleanup --yes",
)
# Faults whose repairs delete what they add, by the tool.
_FORWARDING = "sysctl -qw net.ipv4.ip_forward=1"
IPTABLES_FAULTS = (
    _FORWARDING,
    "iptables-nft -A FORWARD -s 192.0.2.77 -j ACCEPT",
    "iptables-nft -A FORWARD -s 10.91.0.0/24 -j DROP",
    "iptables-nft -A FORWARD -s 192.0.2.78 -j ACCEPT",
)
NFT_FAULTS = (
    _FORWARDING,
    "nft add table inet guard",
    "nft 'add chain inet guard forward { type filter hook forward priority -5; }'",
    "nft 'add rule inet guard forward ip saddr 192.0.2.77 accept'",
    "nft 'add rule inet guard forward iifname br-shop counter drop'",
    "nft 'add rule inet guard forward ip saddr 192.0.2.78 accept'",
    "ip rule add to 10.91.0.0/24 priority 50 blackhole",
)
# Killed are: the change; its undo; the change and then its recovery; a change that fails half-way, mostly
# during its rollback.
MODES = ("change", "undo", "recovery", "failing")


@dataclass(frozen=True)
class Trial:
    """Describe one kill: the parts say after which share of all calls it comes."""

    number: int
    command: str
    mode: str
    part: float
    second: float

    @property
    def is_guarded(self) -> bool:
        """Return whether the change can cut a user off."""
        return "up0" in self.command

    def __str__(self) -> str:
        return f"{self.number} {self.mode} at {self.part:.3f} and {self.second:.3f}: {self.command}"


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: "killed" (as intended) or "done" (before), and differences."""

    trial: Trial
    kind: str
    differs: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n  ".join([f"{self.kind}: {self.trial}", *self.differs])


def trials(seed: int, commands: tuple[str, ...] = COMMANDS) -> Iterator[Trial]:
    """Yield the trials of a seed, without end; each depends only on its number."""
    number = 0
    while True:
        number += 1
        drawn = random.Random(f"{seed}/{number}")
        yield Trial(number, drawn.choice(commands), drawn.choice(MODES), drawn.random(), drawn.random())


def repairs(host: Host) -> tuple[str, ...]:
    """Return the commands that delete what the faults have added."""
    found = json.loads(host.vnet("doctor --json").stdout)["findings"]
    deleting = [one for one in found if one["fix"] and one["fix"]["sentence"].startswith("delete")]
    return tuple(f"doctor --fix {one['id']} --yes" for one in deleting)


class Killer:
    """Run trials on a host in turn; a host that isn't as before is replaced.

    `faults` are commands that are executed on each host first.
    """

    def __init__(self, faults: Sequence[str] = ()) -> None:
        self._faults = faults
        self._host: Host | None = None
        self._before: dict[str, Any] = {}
        self._calls: dict[tuple[str, str], int] = {}

    def close(self) -> None:
        """End the host."""
        if self._host:
            self._host.close()
            self._host = None

    def host(self) -> Host:
        """Return the host, a new one if there is none."""
        if self._host is None:
            self._host = Host()
            for fault in self._faults:
                self._host.machine.run(fault)
            self._before = self._host.state()
        return self._host

    def run(self, trial: Trial) -> Outcome:
        """Kill, recover and compare."""
        host = self.host()
        killed = self._kill(host, trial)
        differs = [*_settled(host, trial), *self._differences(host, trial)]
        if differs:
            self.close()
        return Outcome(trial, "killed" if killed else "done", tuple(differs))

    def _kill(self, host: Host, trial: Trial) -> bool:
        if trial.mode == "undo":
            total = self._count(host, trial, "undo")
            _do(host, trial.command, trial)
            return _killed(host, "undo", total, trial.part)
        total = self._count(host, trial, "change")
        more = {FAIL_AT: str(1 + int(trial.second * 12))} if trial.mode == "failing" else {}
        killed = _killed(host, trial.command, total, trial.part, **more)
        if trial.mode == "recovery":
            _let_guard_end(host, trial)
            killed |= _killed(host, "recover", total, trial.second)
        return killed

    def _count(self, host: Host, trial: Trial, which: str) -> int:
        """Return how many calls a change and its undo make, counted once."""
        if (trial.command, which) not in self._calls:
            file = host.machine.folder / "calls"
            for name, what in (("change", trial.command), ("undo", "undo")):
                _do(host, what, trial, **{COUNTED: str(file)})
                self._calls[trial.command, name] = int(file.read_text())
        return self._calls[trial.command, which]

    def _differences(self, host: Host, trial: Trial) -> list[str]:
        with_offloads = trial.command.startswith("tune")
        before = {key: value for key, value in self._before.items() if with_offloads or "offloads" not in key}
        return differences(before, host.state(with_offloads))


def _settled(host: Host, trial: Trial) -> Iterator[str]:
    """Undo what is left; return what could not be undone."""
    _let_guard_end(host, trial)
    try:
        _do(host, "recover", trial)
        while left := host.last_change():
            _do(host, f"undo {left}", trial)
    except AssertionError as error:
        yield str(error)


def _killed(host: Host, command: str, total: int, part: float, **environment: str) -> bool:
    at = str(1 + int(part * total))
    return bool(host.vnet(command, **{KILL_AT: at}, **environment).returncode == -9)


def _do(host: Host, command: str, trial: Trial, **environment: str) -> None:
    done = host.vnet(command, **environment)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    _let_guard_end(host, trial)


def _let_guard_end(host: Host, trial: Trial) -> None:
    """Wait for guards: a half-finished change is undone, a finished one is kept."""
    if trial.is_guarded and host.guards():
        host.vnet("confirm")
        wait_until(lambda: not host.guards(), "the guard to take it back")
