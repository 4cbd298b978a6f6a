"""The undo of a guarded change is guarded too."""

from __future__ import annotations

import pytest

from tests.support.machine import Machine, addresses, ok, read_json, uplink
from tests.support.waiting import wait_until

pytestmark = pytest.mark.root


@pytest.fixture
def bridged(machine: Machine) -> Machine:
    """Return a machine whose uplink became a bridge port by a confirmed change."""
    uplink(machine)
    ok(machine, "network create lan --kind nic-bridged --uplink up0")
    ok(machine, "confirm")
    return machine


def ends(machine: Machine) -> dict[str, str]:
    return {one["title"]: one["end"] for one in read_json(machine, "history")["changes"]}


def test_a_confirmed_undo_restores_the_previous_state(bridged: Machine) -> None:
    held = addresses(bridged, "br-lan")
    done = bridged.vnet("undo")
    assert done.returncode == 0 and "vnet-tui confirm" in done.stderr
    assert addresses(bridged, "up0") == held
    assert ends(bridged)["create the nic-bridged network lan"] == "done"
    ok(bridged, "confirm")
    assert ends(bridged) == {"create the nic-bridged network lan": "undone"}
    assert addresses(bridged, "up0") == held


def test_an_unconfirmed_undo_applies_the_change_again(bridged: Machine) -> None:
    held = addresses(bridged, "br-lan")
    ok(bridged, "undo")
    bridged.run("pkill -TERM -x vnet-guard")  # a guard that gets SIGTERM undoes at once
    wait_until(lambda: ends(bridged)["undo: create the nic-bridged network lan"] == "undone", "the guard")
    assert addresses(bridged, "br-lan") == held
    ok(bridged, "undo")
    assert addresses(bridged, "up0") == held


def test_an_unconfirmed_change_is_undone_without_another_guard(machine: Machine) -> None:
    uplink(machine)
    held = addresses(machine, "up0")
    ok(machine, "network create lan --kind nic-bridged --uplink up0")
    assert "vnet-tui confirm" not in machine.vnet("undo").stderr
    assert addresses(machine, "up0") == held
    assert ends(machine) == {"create the nic-bridged network lan": "undone"}


def test_other_changes_are_undone_without_a_guard(bridged: Machine) -> None:
    ok(bridged, "container create web --network lan --model bridged")
    assert "vnet-tui confirm" not in bridged.vnet("undo").stderr
    assert set(ends(bridged).values()) == {"done", "undone"}
