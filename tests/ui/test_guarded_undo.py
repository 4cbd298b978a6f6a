"""Taking back a change that could cut a person off is guarded as the change was."""

from __future__ import annotations

import pytest

from tests.support.machine import Machine, addresses, ok, read_json, uplink
from tests.support.waiting import wait_until

pytestmark = pytest.mark.root


@pytest.fixture
def bridged(machine: Machine) -> Machine:
    """A machine whose card was made a bridge's port, and confirmed."""
    uplink(machine)
    ok(machine, "network create lan --kind nic-bridged --uplink up0")
    ok(machine, "confirm")
    return machine


def ends(machine: Machine) -> dict[str, str]:
    return {one["title"]: one["end"] for one in read_json(machine, "history")["changes"]}


def test_confirmed_it_is_as_if_the_change_had_never_been(bridged: Machine) -> None:
    held = addresses(bridged, "br-lan")
    done = bridged.vnet("undo")
    assert done.returncode == 0 and "vnet-tui confirm" in done.stderr
    assert addresses(bridged, "up0") == held
    assert ends(bridged)["create the nic-bridged network lan"] == "done"
    ok(bridged, "confirm")
    assert ends(bridged) == {"create the nic-bridged network lan": "undone"}
    assert addresses(bridged, "up0") == held


def test_unconfirmed_the_change_is_made_again(bridged: Machine) -> None:
    held = addresses(bridged, "br-lan")
    ok(bridged, "undo")
    bridged.run("pkill -TERM -x vnet-guard")  # asked to end, a guard waits no longer
    wait_until(lambda: ends(bridged)["undo: create the nic-bridged network lan"] == "undone", "the guard")
    assert addresses(bridged, "br-lan") == held
    ok(bridged, "undo")
    assert addresses(bridged, "up0") == held


def test_what_waits_is_taken_back_without_a_guard_of_its_own(machine: Machine) -> None:
    uplink(machine)
    held = addresses(machine, "up0")
    ok(machine, "network create lan --kind nic-bridged --uplink up0")
    assert "vnet-tui confirm" not in machine.vnet("undo").stderr
    assert addresses(machine, "up0") == held
    assert ends(machine) == {"create the nic-bridged network lan": "undone"}


def test_other_changes_are_taken_back_at_once(bridged: Machine) -> None:
    ok(bridged, "container create web --network lan --model bridged")
    assert "vnet-tui confirm" not in bridged.vnet("undo").stderr
    assert set(ends(bridged).values()) == {"done", "undone"}
