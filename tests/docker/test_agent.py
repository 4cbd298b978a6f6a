"""The agent restores wiped rules and attachments, and nothing else."""

from __future__ import annotations

import errno
import ipaddress
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from core.agent import Agent, AttachmentRestorer
from core.apply import journal, run
from core.operations import (
    AddAddress,
    CreateBridge,
    CreateVeth,
    NetnsTarget,
    Operation,
    PersistAttachment,
    SetLink,
    SetRules,
    SetStormGuard,
    attachments,
)
from tests.docker.engine import DockerHost
from tests.support.machine import ROOT
from tests.support.service import SERVICE
from tests.support.waiting import PATIENCE, wait_until
from tui.cli import main
from tui.cli.agent import render

pytestmark = pytest.mark.root

_EMPTY = "table inet vnet\ndelete table inet vnet\n"
_RULES = _EMPTY + (
    "table inet vnet {\n\tchain post {\n\t\ttype nat hook postrouting priority 100;\n"
    "\t\tip saddr 10.77.0.0/24 counter masquerade\n\t}\n}\n"
)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VNET_STATE", str(tmp_path / "state"))


@pytest.fixture(scope="module", autouse=True)
def rules_again(docker_engine: DockerHost) -> Iterator[None]:
    """Let Docker restore its rules, which these tests wipe, for later tests."""
    yield
    docker_engine.stop()
    docker_engine.start()


@pytest.fixture
def engine(inside_docker_host: DockerHost, monkeypatch: pytest.MonkeyPatch) -> Iterator[DockerHost]:
    monkeypatch.setenv("DOCKER_HOST", inside_docker_host.url)
    yield inside_docker_host
    inside_docker_host.host.run("ip link del br-t", check=False)
    inside_docker_host.host.run("nft delete table inet vnet", check=False)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def agent(engine: DockerHost, said: list[str]) -> Iterator[threading.Event]:
    """Run an agent; set the event to end it."""
    stop = threading.Event()
    thread = threading.Thread(target=Agent(said.append, stop).run)
    thread.start()
    yield stop
    stop.set()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def rules(engine: DockerHost) -> str:
    return engine.host.run("nft -s list table inet vnet", check=False)


def test_wiped_rules_are_restored(engine: DockerHost, agent: threading.Event, said: list[str]) -> None:
    assert run.apply("rules", (SetRules(_RULES, _EMPTY),)).done
    good = rules(engine)
    assert "masquerade" in good
    for wipe in ("flush ruleset", "delete table inet vnet", "flush table inet vnet"):
        said.clear()
        engine.host.run(f"nft {wipe}")
        wait_until(lambda: rules(engine) == good, f"the rules after {wipe}")
        wait_until(lambda: said, "the agent's message")
        assert "restored" in said[0]
    assert "DOCKER" not in engine.host.run("nft list ruleset"), "Docker's rules are Docker's to put back"


def test_rules_removed_by_vnet_are_not_restored(
    engine: DockerHost, agent: threading.Event, said: list[str]
) -> None:
    assert run.apply("rules", (SetRules(_RULES, _EMPTY),)).done
    engine.host.run("nft flush ruleset")
    wait_until(lambda: "masquerade" in rules(engine), "the rules")
    assert run.undo(next(journal.history())).end == "undone"
    said.clear()
    engine.host.run("nft add table inet other")
    engine.host.run("nft flush ruleset")
    agent.wait(0.5)
    assert rules(engine) == ""
    assert said == []


def test_rules_added_by_users_are_left_alone(engine: DockerHost, agent: threading.Event) -> None:
    assert run.apply("rules", (SetRules(_RULES, _EMPTY),)).done
    agent.wait(0.3)
    engine.host.run("nft add rule inet vnet post ip saddr 10.78.0.0/24 counter")
    users_rule = rules(engine)
    agent.wait(0.5)
    assert rules(engine) == users_rule


def test_rules_wiped_before_the_agent_started(engine: DockerHost, said: list[str]) -> None:
    assert run.apply("rules", (SetRules(_RULES, _EMPTY),)).done
    good = rules(engine)
    engine.host.run("nft flush ruleset")
    stop = threading.Event()
    thread = threading.Thread(target=Agent(said.append, stop).run)
    thread.start()
    try:
        wait_until(lambda: rules(engine) == good, "the rules")
    finally:
        stop.set()
        thread.join(PATIENCE)


def attaching(engine: DockerHost, name: str, address: str) -> tuple[Operation, ...]:
    pid = engine.pid(name)
    inside = NetnsTarget(pid=pid, inode=Path(f"/proc/{pid}/ns/net").stat().st_ino)
    port = f"v-{name}"
    steps: tuple[Operation, ...] = (
        CreateVeth(port, "eth9", peer_place=inside, alias=f"vnet:net=t of={name}"),
        SetLink(port, "master", "br-t", ""),
        SetLink(port, "up", "up", "down"),
        AddAddress("eth9", address, inside),
        SetLink("eth9", "up", "up", "down", inside),
    )
    container = engine.run("inspect", "-f", "{{.Id}}", name)
    return (*steps, PersistAttachment(f"docker:{container}", "t", steps))


def addresses(engine: DockerHost, name: str) -> str:
    pid = engine.pid(name)
    return engine.host.run(f"nsenter -t {pid} -n ip -o addr show dev eth9", check=False) if pid else ""


def test_a_restarted_container_is_attached_again(
    engine: DockerHost, agent: threading.Event, said: list[str]
) -> None:
    for name in ("app", "log"):
        engine.container(name)
    bridge = (CreateBridge("br-t", alias="vnet:net=t"), SetLink("br-t", "up", "up", "down"))
    assert run.apply("bridge", bridge).done
    for name, address in (("app", "10.77.0.2/24"), ("log", "10.77.0.3/24")):
        outcome = run.apply(f"attach {name}", attaching(engine, name, address))
        assert outcome.done, outcome.errors
    for _ in range(2):
        engine.run("restart", "-t", "0", "app")
        wait_until(lambda: "10.77.0.2/24" in addresses(engine, "app"), "app's attachment")
    assert engine.host.json("ip -j link show v-app")[0]["master"] == "br-t"
    assert "10.77.0.3/24" in addresses(engine, "log")
    wait_until(lambda: sum("attached to t again" in each for each in said) == 2, "the agent's message")


@pytest.mark.parametrize("possible", [True, False], ids=["guarded", "without bpf"])
def test_a_restarted_container_is_guarded_again(
    engine: DockerHost,
    agent: threading.Event,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
    possible: bool,
) -> None:
    engine.container("app")
    run_vnet("network", "create", "t", "--subnet", "10.77.0.0/24")
    run_vnet("attach", "app", "t", "--link", "eth9")
    run_vnet("storm", "guard", "t", "on", "--rate", "77")
    before = engine.host.run("bridge fdb show brport v-app")
    assert "sticky" in before
    if not possible:
        monkeypatch.setattr(SetStormGuard, "execute", not_permitted)
    engine.run("restart", "-t", "0", "app")
    wait_until(lambda: "10.77.0.2/24" in addresses(engine, "app"), "app's attachment")
    wait_until(lambda: has_said(1, said), "the agent's message")
    # The container has the MAC address that the bridge knows.
    assert before.splitlines()[0] in engine.host.run("bridge fdb show brport v-app")
    filters = engine.host.run("tc filter show dev v-app ingress")
    assert ("vnet_storm_guard 77/770/77" in filters) == possible
    assert any("no storm guard" in each for each in said) != possible
    run_vnet("network", "rm", "t", "--yes")


def not_permitted(step: SetStormGuard, executor: object) -> None:
    raise PermissionError(errno.EPERM, "bpf(2) isn't permitted")


def test_an_undone_attachment_is_not_restored(
    engine: DockerHost, agent: threading.Event, said: list[str]
) -> None:
    engine.container("app")
    assert run.apply("bridge", (CreateBridge("br-t", alias="vnet:net=t"),)).done
    outcome = run.apply("attach app", attaching(engine, "app", "10.77.0.2/24"))
    engine.run("restart", "-t", "0", "app")
    wait_until(lambda: "10.77.0.2/24" in addresses(engine, "app"), "app's attachment")
    entry = journal.find(outcome.entry_id)
    assert entry is not None
    assert run.undo(entry).errors == ()
    assert attachments.read_attachments() == ()
    assert "v-app" not in engine.host.run("ip link")
    said.clear()
    engine.run("restart", "-t", "0", "app")
    agent.wait(0.5)
    assert "10.77.0.2" not in addresses(engine, "app")
    assert said == []


def run_vnet(*words: str) -> None:
    """Run a vnet-tui command."""
    assert main(list(words)) == 0, words


def link_of(engine: DockerHost, name: str, link: str) -> str:
    inside = f"nsenter -t {engine.pid(name)} -n ip -j addr show dev {link}"
    found = engine.host.run(inside, check=False)
    return " ".join(one["local"] for each in json.loads(found or "[]") for one in each["addr_info"])


def has_said(times: int, said: list[str]) -> bool:
    return sum("again" in each for each in said) == times


def restart(engine: DockerHost, name: str) -> None:
    before = engine.pid(name)
    engine.run("restart", "-t", "0", name)
    assert engine.pid(name) != before


@pytest.fixture
def app(engine: DockerHost) -> Iterator[str]:
    """Return a container attached to vnet's network shop, with a chosen address."""
    name = f"app{os.getpid()}"
    engine.container(name)
    run_vnet("network", "create", "shop", "--subnet", f"10.77.{os.getpid() % 256}.0/24")
    yield name
    engine.run("rm", "-f", name, check=False)
    # The kernel deletes the namespace's links a little later.
    wait_until(lambda: f"v-{name}" not in engine.host.run("ip link"), "the end of the veth pair")
    run_vnet("cleanup", "--yes")
    assert attachments.read_attachments() == ()


@pytest.fixture
def address() -> str:
    return f"10.77.{os.getpid() % 256}.9"


def test_a_users_attachment_is_restored(
    engine: DockerHost, agent: threading.Event, said: list[str], app: str, address: str
) -> None:
    run_vnet("attach", app, "shop", "--address", address, "--link", "shop0")
    for times in (1, 2):
        restart(engine, app)
        wait_until(lambda: address in link_of(engine, app, "shop0"), "the attachment")
        wait_until(partial(has_said, times, said), "the agent's message")
    assert not [each for each in said if "can't attach" in each or "already" in each]
    # Undoing it by its id also undoes the agent's changes.
    first = next(entry for entry in journal.history() if entry.title == f"attach {app} to shop")
    run_vnet("undo", first.entry_id)
    assert attachments.read_attachments() == () and address not in link_of(engine, app, "shop0")


def test_a_detached_or_moved_container_stays_so(engine: DockerHost, app: str, address: str) -> None:
    run_vnet("attach", app, "shop", "--address", address)
    run_vnet("network", "create", "lab")
    run_vnet("move", app, "shop", "lab")
    (want,) = attachments.read_attachments()
    assert want.network == "lab"
    run_vnet("undo")
    (want,) = attachments.read_attachments()
    assert want.network == "shop"
    run_vnet("detach", app, "shop")
    assert attachments.read_attachments() == ()
    run_vnet("undo")
    assert [one.network for one in attachments.read_attachments()] == ["shop"]
    run_vnet("network", "rm", "shop")
    assert attachments.read_attachments() == ()
    run_vnet("undo")
    assert [one.network for one in attachments.read_attachments()] == ["shop"]


def test_a_stopped_containers_address_stays_reserved(engine: DockerHost, app: str, address: str) -> None:
    run_vnet("attach", app, "shop", "--address", address)
    engine.run("stop", "-t", "0", app)
    engine.container("other")
    assert main(["attach", "other", "shop", "--address", address]) == 1
    engine.run("start", app)
    run_vnet("attach", app, "shop")
    assert address in link_of(engine, app, "eth1")
    engine.run("stop", "-t", "0", app)
    run_vnet("detach", app, "shop")
    assert attachments.read_attachments() == ()
    run_vnet("attach", "other", "shop", "--address", address)


def test_an_attachment_waits_for_its_network(
    engine: DockerHost, app: str, address: str, said: list[str]
) -> None:
    run_vnet("attach", app, "shop", "--address", address)
    (want,) = attachments.read_attachments()
    run_vnet("network", "rm", "shop")
    attachments.save_attachment(want)  # as after a reboot: the file outlives the network
    restart(engine, app)
    restarted = AttachmentRestorer(said.append)
    assert restarted.restore() and said == []
    run_vnet("network", "create", "shop", "--subnet", str(ipaddress.ip_interface(f"{address}/24").network))
    wait_until(lambda: restarted.restore() and address in link_of(engine, app, "eth1"), "the attachment")


@pytest.mark.needs("systemd-analyze")
def test_the_agent_restores_everything_under_its_unit(
    engine: DockerHost, app: str, address: str, tmp_path: Path
) -> None:
    run_vnet("attach", app, "shop", "--address", address, "--link", "shop0")
    path = tmp_path / "agent.service"
    path.write_text(render())
    words = ["nsenter", f"--net=/run/netns/{engine.namespace}", *SERVICE, str(path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            restart(engine, app)
            wait_until(lambda: address in link_of(engine, app, "shop0"), "the attachment")
            engine.host.run("nft delete table inet vnet")
            wait_until(lambda: "vnet" in rules(engine), "the rules")
        finally:
            process.terminate()
        assert "attached to shop again" in process.communicate(timeout=PATIENCE)[0]


def test_attachments_of_a_removed_container_are_forgotten(
    engine: DockerHost, agent: threading.Event, said: list[str]
) -> None:
    engine.container("app")
    assert run.apply("bridge", (CreateBridge("br-t", alias="vnet:net=t"),)).done
    assert run.apply("attach app", attaching(engine, "app", "10.77.0.2/24")).done
    engine.run("restart", "-t", "0", "app")
    wait_until(lambda: "10.77.0.2/24" in addresses(engine, "app"), "app's attachment")
    engine.run("rm", "-f", "app")
    wait_until(lambda: not attachments.read_attachments(), "the attachment to be forgotten")
