"""nft(8) instead of libnftables: one transaction in the right namespace."""

from __future__ import annotations

import ctypes
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.apply import journal, run
from core.collect import nft as nft_reader
from core.collect.snapshot import read_snapshot
from core.model import Part
from core.operations import NetnsTarget, SetRules, SetSysctl, executor
from core.operations.executor import Executor
from core.plan import Plan, plan_all
from core.plan.requests import CreateContainer, CreateNetwork, Publish
from core.topology import Topology
from tests.support.host import ThrowawayHost
from tests.support.state import state

pytestmark = pytest.mark.root

EMPTY = "table inet vnet\ndelete table inet vnet\n"
RULES = EMPTY + 'table inet vnet {\n\tchain c {\n\t\tcounter accept comment "one"\n\t}\n}\n'
BAD = EMPTY + "table inet vnet {\n\tchain c {\n\t\tno such words\n\t}\n}\n"
WEB = f"w{os.getpid()}"


@pytest.fixture(autouse=True)
def state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VNET_STATE", str(tmp_path / "state"))


@pytest.fixture(autouse=True)
def library_missing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hide libnftables from the dynamic loader."""
    load = ctypes.CDLL

    def refuse(name: str | None, *more: Any, **named: Any) -> ctypes.CDLL:
        if name and "nftables" in name:
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")
        return load(name, *more, **named)

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    nft_reader.library.cache_clear()
    yield
    nft_reader.library.cache_clear()


@pytest.fixture
def tool_runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the input of nft(8)."""
    given: list[str] = []
    run_tool = executor._run_tool

    def note(text: str) -> None:
        given.append(text)
        run_tool(text)

    monkeypatch.setattr(executor, "_run_tool", note)
    return given


def comments(host: ThrowawayHost, inside: str = "host") -> list[str]:
    rules = [one["rule"] for one in host.json("nft -j list ruleset", inside)["nftables"] if "rule" in one]
    return [rule.get("comment", "") for rule in rules]


def test_rules_are_replaced_and_restored(inside_host: ThrowawayHost, tool_runs: list[str]) -> None:
    inside_host.run("nft add table inet theirs")
    before = state(inside_host.names)
    assert run.apply("rules", (SetRules(RULES, EMPTY),)).done
    assert comments(inside_host) == ["one"]
    assert tool_runs == [RULES]
    assert run.undo(next(journal.history())).end == "undone"
    assert state(inside_host.names) == before
    assert tool_runs == [RULES, EMPTY]


def test_a_refusal_of_nft_is_reported_and_undone(inside_host: ThrowawayHost) -> None:
    assert run.apply("rules", (SetRules(RULES, EMPTY),)).done
    before = state(inside_host.names)
    forward = inside_host.run("sysctl -n net.ipv4.ip_forward").strip()
    other = "1" if forward == "0" else "0"
    steps = (SetSysctl("net.ipv4.ip_forward", other, forward), SetRules(BAD, RULES))
    outcome = run.apply("bad rules", steps)
    assert outcome.end == "undone"
    assert any("nft: " in error and "syntax error" in error for error in outcome.errors), outcome.errors
    assert state(inside_host.names) == before, "all or nothing, the rules that were there among it"


def test_rules_are_changed_in_the_namespace_of_the_step(inside_host: ThrowawayHost) -> None:
    """From another thread than the one that entered the host."""
    inside_host.namespace("web")
    place = NetnsTarget(inside_host.full("web"))

    def load() -> None:
        with Executor() as executor:
            SetRules(RULES, EMPTY, place).execute(executor)

    thread = threading.Thread(target=load)
    thread.start()
    thread.join()
    assert comments(inside_host, "web") == ["one"]
    assert comments(inside_host) == []


def test_without_the_tool_the_error_names_the_package(
    inside_host: ThrowawayHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state(inside_host.names)
    path = os.environ["PATH"]
    monkeypatch.setenv("PATH", str(tmp_path))
    outcome = run.apply("rules", (SetRules(RULES, EMPTY),))
    monkeypatch.setenv("PATH", path)
    assert not outcome.done
    assert any("nft isn't installed" in error for error in outcome.errors), outcome.errors
    assert state(inside_host.names) == before


def test_a_complete_plan_creates_the_same_rules(inside_host: ThrowawayHost, tool_runs: list[str]) -> None:
    net = f"10.97.{os.getpid() % 256}"
    requests = (
        CreateNetwork("shop", subnets=(f"{net}.0/24",)),
        CreateContainer(WEB, "bridged", "shop", (f"{net}.2",)),
        Publish(WEB, "8080", "80"),
    )
    inside_host.names.append(WEB)
    made = plan_all(requests, Topology(read_snapshot((Part.LINKS, Part.CONTAINERS, Part.FIREWALL))))
    assert isinstance(made, Plan), made
    assert run.apply(made.title, made.steps).done
    assert len(tool_runs) == 1
    by_tool = _ruleset(inside_host)
    assert "dnat" in by_tool and "masquerade" in by_tool
    inside_host.run("nft delete table inet vnet")
    inside_host.run(["nft", tool_runs[0]])
    assert _ruleset(inside_host) == by_tool
    assert run.undo(next(journal.history())).end == "undone"
    assert "vnet" not in inside_host.run("nft list tables")


def _ruleset(host: ThrowawayHost) -> str:
    """Return the rules as JSON, without handles."""
    found = [one for one in host.json("nft -j list ruleset")["nftables"] if "metainfo" not in one]
    return json.dumps([{k: {**v, "handle": 0} for k, v in one.items()} for one in found])
