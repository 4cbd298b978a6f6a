"""`vnet-tui shell` and its key: programs of the host in the network namespace of a container."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from core.model import container_ref, link_ref, namespace_ref
from core.topology import Topology
from core.topology.related import shell_target
from tests.support.machine import PROGRAM, Machine, ok, refused
from tests.support.needs import AS_NOBODY
from tests.support.snapshots import small_host
from tests.support.terminal import Terminal
from tests.ui.driver import FedSource, dashboard
from tui import keys
from tui.cli.shell import _prompt

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """Yield a machine with the container web, 10.91.0.2."""
    made = Machine()
    try:
        ok(made, "network create shop --subnet 10.91.0.0/24")
        ok(made, "container create web --network shop")
        yield made
    finally:
        made.close()


def test_command_runs_in_the_namespace(machine: Machine) -> None:
    expected = machine.json("ip -j link", inside="web")
    inode = machine.run("stat -Lc %i /run/netns/web").strip()
    for words in (["web"], ["web", "--"], ["--net", "web"], ["web", "--net"], [inode]):
        assert json.loads(machine.vnet("shell", *words, "ip", "-j", "link").stdout) == expected


def test_exit_code_input_and_arguments(machine: Machine) -> None:
    done = machine.vnet("shell", "web", "sh", "-c", 'cat; echo "$1"; exit 7', "sh", "a b; $(c)", text="in\n")
    assert (done.returncode, done.stdout, done.stderr) == (7, "in\na b; $(c)\n", "")


def test_wrong_names_and_programs(machine: Machine) -> None:
    wanted = "can't open a shell in wbe: no container or namespace has that name. Try: vnet-tui shell web"
    assert wanted in refused(machine, "shell", "wbe")
    assert "Try: vnet-tui show containers" in refused(machine, "shell", "zzzzz\x1b[31m")
    assert "can't run no-such-program: No such file" in refused(machine, "shell", "web", "no-such-program")
    assert "can't run shell with --read-only" in refused(machine, "--read-only", "shell", "web")


@pytest.mark.needs("nobody", "setpriv")
def test_unprivileged(machine: Machine) -> None:
    done = machine.vnet("shell", "web", "true", before=AS_NOBODY)
    assert done.returncode == 1 and done.stderr.startswith("vnet-tui: can't open a shell in web: ")
    assert "Traceback" not in done.stderr


def test_shell_on_a_terminal(machine: Machine) -> None:
    words = machine.words(*PROGRAM, "shell", "web")
    with Terminal(words, **machine.environment | {"SHELL": "/bin/bash"}) as terminal:
        terminal.wait_for("the host's shell, in the network namespace of web; exit or Ctrl-d returns")
        terminal.wait_for("doesn't record or undo changes made in it")
        terminal.press("ip -br addr show eth0; exit 3\r")
        terminal.wait_for("10.91.0.2/24")
        assert terminal.read_to_the_end() == 3


def test_the_prompt_names_the_container(machine: Machine) -> None:
    words = machine.words(*PROGRAM, "shell", "web")
    with Terminal(words, **machine.environment | {"SHELL": "/bin/sh"}) as terminal:
        terminal.wait_for("(web) /")
        terminal.press("exit\r")
        terminal.read_to_the_end()


def test_the_prompt_runs_no_text_of_a_name() -> None:
    assert _prompt("a$(reboot)`id`\\w\x1b").keys() == {"PS1", "debian_chroot"}
    assert _prompt("a$(reboot)`id`\\w\x1b")["PS1"] == "(a__reboot__id__w_) $PWD # "


def test_key_suspends_the_dashboard(machine: Machine) -> None:
    environment = machine.environment | {"SHELL": "/bin/bash"}
    with Terminal(machine.words(*PROGRAM), **environment) as terminal:
        terminal.wait_for("shop")
        terminal.press(":web\r")
        terminal.wait_for("10.91.0.2")
        terminal.settle()
        since = len(terminal.output)
        terminal.press("x")
        terminal.wait_for("in the network namespace of web; exit or Ctrl-d returns", since=since)
        terminal.press("ip -br addr show eth0\r")
        terminal.wait_for("10.91.0.2/24", since=since)
        terminal.settle()  # until ip has ended, as its Ctrl-C wouldn't be the shell's
        terminal.press("\x03")  # ends neither the shell nor the dashboard
        terminal.wait_for("^C", since=since)
        terminal.settle()  # the shell drops what it gets together with Ctrl-C
        terminal.press("echo still $((6*7))\r")
        terminal.wait_for("still 42", since=since)
        since = len(terminal.output)
        terminal.press("exit 0\r")
        terminal.wait_for("namespace host", since=since)
        terminal.press("q")
        assert terminal.read_to_the_end() == 0
    assert b"Traceback" not in terminal.output


async def test_key_without_a_target() -> None:
    async with dashboard() as person:
        await person.type("9x")
        await person.eventually("can't open a shell")
    async with dashboard(source=FedSource(small_host(), live=False)) as person:
        await person.press("x")
        await person.eventually("can't open a shell: this isn't a live host")


def test_targets() -> None:
    topology = Topology(small_host())
    container = next(iter(topology.containers.values()))
    assert shell_target(topology, container_ref(container.runtime, container.id)) == container.uid
    link = next(iter(topology.snapshot.nets[topology.host].links.values()))
    assert shell_target(topology, link_ref(link.key)) == str(topology.host)
    assert shell_target(topology, namespace_ref(topology.host)) == str(topology.host)
    assert shell_target(topology, namespace_ref(1)) == shell_target(topology, None) == ""


def test_key_is_free() -> None:
    owners = [action.name for action in keys.ACTIONS if "x" in action.keys]
    assert owners == ["shell"]
