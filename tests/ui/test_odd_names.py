"""Containers with names that aren't UTF-8 or that control a terminal."""

from __future__ import annotations

import os
import subprocess

import pytest

from core.text import safe
from tests.support.machine import Machine, ok, read_json

pytestmark = pytest.mark.root

NAMES = [b"caf\xe9", b"a\x1b[2Jb", b"it's\n$(id)\xff"]


def links_and_rules(machine: Machine, name: str) -> object:
    links = [(one["ifname"], one.get("ifalias")) for one in machine.json("ip -j link")]
    return links, machine.run("nft -s list ruleset"), machine.run("ip -br link", inside=name)


@pytest.mark.parametrize("raw", NAMES, ids=repr)
def test_a_container_with_an_odd_name_is_attached_and_detached(machine: Machine, raw: bytes) -> None:
    name = os.fsdecode(raw)
    machine.run(["ip", "netns", "add", name])
    ok(machine, "network create shop --subnet 10.91.0.0/24")
    before = links_and_rules(machine, name)
    done = machine.vnet("attach", name, "shop", "--dry-run")
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    for line in done.stdout.splitlines():
        assert line == safe(line)
    subprocess.run(["bash", "-n", "-c", os.fsencode(done.stdout)], check=True)
    done = machine.vnet("attach", name, "shop")
    assert done.returncode == 0, done.stderr
    assert "10.91.0.2" in machine.run("ip -o addr", inside=name)
    (shop,) = read_json(machine, "network ls")["networks"]
    assert machine.vnet("show", "links", "--ns", name).returncode == 0
    done = machine.vnet("detach", name, "shop")
    assert done.returncode == 0, done.stderr
    assert links_and_rules(machine, name) == before
    ok(machine, "undo")
    ok(machine, "undo")
    assert links_and_rules(machine, name) == before, shop


def test_the_printed_commands_work_with_an_odd_name(machine: Machine) -> None:
    name = os.fsdecode(b"n\x1b\xe9'")
    machine.run(["ip", "netns", "add", name])
    ok(machine, "network create shop --subnet 10.91.0.0/24")
    commands = machine.vnet("attach", name, "shop", "--dry-run").stdout
    machine.run(["bash", "-e"], text=commands)
    assert "10.91.0.2" in machine.run("ip -o addr", inside=name)
    done = machine.vnet("detach", name, "shop")
    assert done.returncode == 0, done.stderr
