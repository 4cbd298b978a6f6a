"""Start a small machine: its own links, namespace names and processes."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.support import forkserver
from tests.support.sandbox import OWN_RUN, UNSHARE
from tests.support.waiting import scaled

ROOT = Path(__file__).parents[2]
PROGRAM = (sys.executable, "-m", "tui.cli")
_START = f"{OWN_RUN} && echo ready && sleep 10000; exit"


class Machine:
    """Run commands inside by `run`, and vnet-tui by `vnet`, with its own journal."""

    def __init__(self, **environment: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="vnet-machine-")
        self.folder = Path(self._folder.name)
        self.environment = os.environ | {"VNET_STATE": str(self.folder / "state")} | environment
        self._holder = subprocess.Popen(
            [*UNSHARE, "sh", "-c", _START], stdout=subprocess.PIPE, text=True
        )  # fmt: skip
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n"

    @property
    def pid(self) -> int:
        """Return the pid of the machine's first process."""
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children")
        return int(children.read_text().split()[0])

    def words(self, *words: str, inside: str = "") -> list[str]:
        """Return the command that runs a command on the machine or in a named namespace."""
        entered = ["nsenter", "-t", str(self.pid), "--net", "--mount", "--pid", f"--wd={ROOT}"]
        return [*entered, *(["ip", "netns", "exec", inside] if inside else []), *words]

    def run(self, command: str | list[str], inside: str = "", check: bool = True, text: str = "") -> str:
        """Run a command there and return its output."""
        words = shlex.split(command) if isinstance(command, str) else command
        done = subprocess.run(
            self.words(*words, inside=inside), capture_output=True, text=True, check=False, input=text,
            env=self.environment,
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(f"{shlex.join(words)}: {done.stderr or done.stdout}")
        return done.stdout

    def json(self, command: str, inside: str = "") -> Any:
        """Run a command that prints JSON and decode it."""
        return json.loads(self.run(command, inside) or "[]")

    def vnet(
        self, *arguments: str, text: str = "", before: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Run vnet-tui there with `text` as input, started by the command `before` if any."""
        if not before:
            return forkserver.run(arguments, self.environment, self.namespaces, text)
        return subprocess.run(
            self.words(*before, *PROGRAM, *arguments), capture_output=True, text=True, check=False,
            input=text, env=self.environment, timeout=scaled(120),
        )  # fmt: skip

    @property
    def namespaces(self) -> list[str]:
        """Return the files of its namespaces, in the order in which they can be entered."""
        return [f"/proc/{self.pid}/ns/{kind}" for kind in ("net", "pid", "mnt")]

    def close(self) -> None:
        """End it; the kernel removes everything in it."""
        self._holder.kill()
        self._holder.communicate()
        self._folder.cleanup()


def ok(machine: Machine, command: str, text: str = "") -> str:
    """Run a vnet-tui command, which must succeed; return its output."""
    done = machine.vnet(*shlex.split(command), text=text)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def read_json(machine: Machine, command: str) -> Any:
    """Run a vnet-tui command with --json and return its output, decoded."""
    return json.loads(ok(machine, f"{command} --json"))


def refused(machine: Machine, *words: str) -> str:
    """Return the error of a command that must fail, which has no traceback."""
    done = machine.vnet(*words)
    assert done.returncode == 1 and "Traceback" not in done.stderr, f"{words}: {done.stdout}{done.stderr}"
    assert done.stderr.startswith("vnet-tui: ")
    return done.stderr


def link(machine: Machine, name: str, inside: str = "") -> dict[str, Any]:
    return next(one for one in machine.json("ip -j -d addr show", inside) if one["ifname"] == name)


def addresses(machine: Machine, name: str, inside: str = "") -> list[str]:
    found = link(machine, name, inside)["addr_info"]
    return [f"{one['local']}/{one['prefixlen']}" for one in found if one["scope"] == "global"]


def machine_state(machine: Machine) -> dict[str, Any]:
    """Return everything that vnet-tui's commands may change."""
    names = sorted(one["name"] for one in machine.json("ip -j netns list"))
    found: dict[str, Any] = {
        "namespaces": names, "forward": machine.run("sysctl -n net.ipv4.ip_forward"),
        "rules": machine.run("nft -s list ruleset"),
    }  # fmt: skip
    for name in ("", *names):
        links = machine.json("ip -j addr show", name)
        found[f"links of {name}"] = sorted(
            (one["ifname"], "UP" in one["flags"], one["mtu"], one.get("master", ""), one.get("ifalias", ""),
             [each["local"] for each in one["addr_info"] if each["scope"] == "global"])
            for one in links
        )  # fmt: skip
    return found


def uplink(machine: Machine) -> None:
    """Connect the machine by its link up0 with the namespace `world`, its gateway."""
    machine.run("ip netns add world")
    machine.run("ip link add up0 type veth peer name far netns world")
    machine.run("ip addr add 192.0.2.2/24 dev up0")
    machine.run("ip addr add 192.0.2.1/24 dev far", inside="world")
    machine.run("ip link set up0 up")
    machine.run("ip link set far up", inside="world")
    machine.run("ip route add default via 192.0.2.1")
