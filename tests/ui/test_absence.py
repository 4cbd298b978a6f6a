"""An empty list says what kept it from being read, and that nothing is there only where that was seen."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.model import Problem, Snapshot
from tests.support.snapshots import empty_host
from tui.present import views
from tui.present.absence import empty_text
from tui.present.rows import ListView

LACKING = ("CAP_NET_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_ADMIN")


def view(name: str) -> ListView:
    found = views.view_named(name)
    assert found is not None
    return found.list


def unprivileged(*lacking: str) -> Snapshot:
    host = empty_host()
    return replace(host, host=replace(host.host, missing_capabilities=lacking))


@pytest.mark.parametrize("name", ["nat", "conntrack"])
def test_tables_that_need_rights_say_so(name: str) -> None:
    words = empty_text(view(name), unprivileged(*LACKING))
    assert words.startswith("Cannot be read: needs CAP_NET_ADMIN and CAP_SYS_ADMIN.")


@pytest.mark.parametrize("name", ["veths", "containers", "bridges", "networks", "routes"])
def test_lists_of_other_namespaces_say_what_is_out_of_sight(name: str) -> None:
    words = empty_text(view(name), unprivileged(*LACKING))
    assert "needs CAP_SYS_ADMIN and CAP_SYS_PTRACE" in words and "No " not in words


@pytest.mark.parametrize("each", views.VIEWS, ids=lambda each: each.name)
def test_with_all_rights_a_list_explains_itself(each: views.View) -> None:
    assert empty_text(each.list, empty_host()) == each.list.empty


def test_a_part_that_failed_is_told() -> None:
    problem = Problem("nat", "the rules could not be read", "no program nft", "install nftables")
    failed = replace(empty_host(), part_problems={"nat": (problem,)})
    words = "Cannot be read: the rules could not be read (no program nft). Try: install nftables."
    assert empty_text(view("nat"), failed) == words
    assert empty_text(view("conntrack"), failed) == view("conntrack").empty


def test_a_stopped_engine_is_told_beside_the_rest() -> None:
    problem = Problem("docker", "Docker is not running", "", "systemctl start docker")
    stopped = replace(empty_host(), part_problems={"docker": (problem,)})
    words = empty_text(view("containers"), stopped)
    assert words.startswith(view("containers").empty) and "Docker is not running" in words


@pytest.mark.parametrize("name", ["networks", "containers"])
def test_the_own_command_that_makes_one_comes_first(name: str) -> None:
    words = empty_text(view(name), empty_host())
    assert words.partition("`")[2].startswith(f"vnet-tui {name.removesuffix('s')} create NAME`")
