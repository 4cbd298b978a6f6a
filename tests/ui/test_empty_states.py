"""Empty lists: why a part was not read; "nothing here" only if the part was read."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.model import Conntrack, FastPath, Problem, Snapshot
from core.topology import Topology
from tests.support.snapshots import empty_host, small_host
from tui.views import fastpath, registry
from tui.views.findings import empty_text
from tui.views.rails import rails
from tui.views.rows import ListView, ViewContext

LACKING = ("CAP_NET_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_ADMIN")


def view(name: str) -> ListView:
    found = registry.view_named(name)
    assert found is not None
    return found.list


def unprivileged(*lacking: str) -> Snapshot:
    host = empty_host()
    return replace(host, host=replace(host.host, missing_capabilities=lacking))


@pytest.mark.parametrize("name", ["nat", "conntrack"])
def test_empty_tables_name_the_missing_rights(name: str) -> None:
    words = empty_text(view(name), unprivileged(*LACKING))
    assert words.startswith("Can't read this: it needs CAP_NET_ADMIN and CAP_SYS_ADMIN. Try: ")


@pytest.mark.parametrize("name", ["veths", "containers", "bridges", "networks", "routes"])
def test_lists_across_namespaces_say_what_is_hidden(name: str) -> None:
    words = empty_text(view(name), unprivileged(*LACKING))
    assert "needs CAP_SYS_ADMIN and CAP_SYS_PTRACE" in words and "No " not in words


@pytest.mark.parametrize("each", registry.VIEWS, ids=lambda each: each.name)
def test_with_all_rights_an_empty_list_has_its_own_text(each: registry.View) -> None:
    assert empty_text(each.list, empty_host()) == each.list.empty


def test_a_part_that_could_not_be_read_is_named() -> None:
    problem = Problem("nat", "can't find nft", "there is no such program on PATH", "install nftables")
    failed = replace(empty_host(), part_problems={"nat": (problem,)})
    words = "Can't find nft: there is no such program on PATH. Try: install nftables."
    assert empty_text(view("nat"), failed) == words
    assert empty_text(view("conntrack"), failed) == view("conntrack").empty


def test_a_stopped_engine_is_named_after_the_text() -> None:
    problem = Problem("docker", "can't connect to Docker", "", "systemctl start docker")
    stopped = replace(empty_host(), part_problems={"docker": (problem,)})
    words = empty_text(view("containers"), stopped)
    assert (
        words.startswith(view("containers").empty)
        and "Can't connect to Docker. Try: systemctl start docker." in words
    )


def test_unread_entries_are_not_counted() -> None:
    refused = Problem("conntrack", "the conntrack entries of this namespace could not be read")
    host = small_host()
    ns = host.host.netns
    unread = replace(host, conntracks={ns: Conntrack(ns, problems=(refused,))})
    assert any("conntrack entries" in fact.text for fact in rails(Topology(host))[0].facts)
    assert not any("conntrack" in fact.text for fact in rails(Topology(unread))[0].facts)


def test_without_root_the_fast_path_is_not_reported_as_running() -> None:
    fast = FastPath("hidden")
    assert not fast.is_running
    context = ViewContext(Topology(empty_host()), fast=fast)
    assert [cell.text for cell in fastpath.rows(context).head] == [
        "fast path unknown (only root can read it): run sudo vnet-tui"
    ]


@pytest.mark.parametrize("name", ["networks", "containers"])
def test_the_first_hint_is_vnet_tuis_own_command(name: str) -> None:
    words = empty_text(view(name), empty_host())
    assert words.partition("`")[2].startswith(f"vnet-tui {name.removesuffix('s')} create NAME`")
