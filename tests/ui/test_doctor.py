"""`why` and `doctor`: exit codes, JSON, names, muting, and their screens."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.diagnose import findings, findings_by_id
from core.serialize import pack
from core.topology import Topology
from tests.support import forkserver
from tests.support.snapshots import empty_host, hostile_host, small_host
from tests.ui.driver import dashboard
from tests.ui.test_cli import run, without_root

SIZES = pytest.mark.parametrize("size", [(80, 24), (130, 40)])


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield a folder with dumps of hosts, and use a state directory of its own."""
    monkeypatch.setenv("VNET_STATE", str(tmp_path / "state"))
    hosts = {"small": small_host(), "empty": empty_host(), "hostile": hostile_host()}
    for name, snapshot in hosts.items():
        (tmp_path / f"{name}.vnet").write_bytes(pack(snapshot))
    yield tmp_path


def command(files: Path, *words: str, host: str = "small") -> subprocess.CompletedProcess[str]:
    return forkserver.run([words[0], "--from", str(files / f"{host}.vnet"), *words[1:]], dict(os.environ))


# ---- why


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("web1", "web2"), 0, "web1 can reach web2"),
        (("web1", "web1"), 0, "web1 can reach web1."),
        (
            ("vault", "web1"),
            1,
            "web1 is not reachable from vault because vault is attached to no network, ",
        ),
        (("web1", "outside"), 0, "Packets from web1 to outside leave this host"),
        (("web1", "198.51.100.7", "--port", "443/tcp"), 0, "198.51.100.7 on tcp 443 leave this host"),
        (("172.18.0.2", "host"), 0, "can reach host"),
    ],
)
def test_an_answer_is_a_sentence_and_an_exit_code(
    files: Path, words: tuple[str, ...], code: int, sentence: str
) -> None:
    done = command(files, "why", *words)
    assert done.returncode == code, done.stderr
    assert sentence in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("web1", "webx"), 'can\'t find "webx": no container, namespace or address has that name. Try: web'),
        (("nothing", "web1"), 'can\'t find "nothing"'),
        (("outside", "198.51.100.9"), "both are outside this host. Try: name a container or `host`"),
    ],
)
def test_a_question_without_an_answer(files: Path, words: tuple[str, ...], message: str) -> None:
    done = command(files, "why", *words)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("port", ["0", "abc", "80/sctp", "65536"])
def test_a_wrong_port_is_wrong_usage(files: Path, port: str) -> None:
    done = command(files, "why", "web1", "web2", "--port", port)
    assert done.returncode == 2 and f"can't use the port \"{port}\": it isn't a port" in done.stderr
    assert "Try: 443/tcp, 53/udp or icmp" in done.stderr


def test_an_answer_as_json(files: Path) -> None:
    shown = json.loads(command(files, "why", "vault", "web1", "--port", "80", "--json").stdout)
    assert {name: shown[name] for name in ("schema", "from", "to", "protocol", "port", "verdict")} == {
        "schema": 1, "from": "vault", "to": "web1", "protocol": "tcp", "port": 80, "verdict": "stop",
    }  # fmt: skip
    assert shown["cause"] == shown["there"][-1] and shown["back"] == []
    assert shown["cause"]["kind"] == "route" and shown["cause"]["namespace"] == "vault"
    assert shown["cause"]["fix"]["command"] == "docker network connect NETWORK vault"


def test_names_with_control_characters_are_made_visible(files: Path) -> None:
    for words in (("doctor",), ("doctor", "--all"), ("why", "host", "outside"), ("why", "host", "\x1b[31m")):
        done = command(files, *words, host="hostile")
        assert done.returncode in (0, 1), done.stderr
        assert "\x1b" not in done.stdout + done.stderr and "\u202e" not in done.stdout + done.stderr


# ---- doctor


def doctor(files: Path, *words: str, host: str = "small") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(command(files, "doctor", "--json", *words, host=host).stdout)
    return found


def test_a_host_without_findings_is_healthy(files: Path) -> None:
    done = command(files, "doctor", host="empty")
    lines = done.stdout.splitlines()
    assert (done.returncode, lines[0], len(lines)) == (0, "Nothing is wrong.", 2)
    assert "ports that aren't published" in lines[1]
    assert doctor(files, host="empty") == {"schema": 1, "findings": []}


def test_the_worst_finding_comes_first_with_its_remedy(files: Path) -> None:
    done = command(files, "doctor")
    lines = done.stdout.splitlines()
    assert done.returncode == 1 and lines[0].startswith(("✗ ", "x ")) and "orphan shares" in lines[0]
    assert lines[-1] == "1 problem, 2 warnings, 1 info"
    names = [one["id"] for one in doctor(files)["findings"]]
    assert f"         Repair: vnet-tui doctor --fix {names[1]}" in lines
    topology = Topology(small_host())
    assert names == [*findings_by_id(topology, findings(topology))]


def test_muted_findings_are_not_listed_nor_counted(files: Path) -> None:
    found = doctor(files)["findings"]
    serious = [one["id"] for one in found if one["severity"] != "info"]
    done = command(files, "doctor", "--mute", *serious)
    assert done.returncode == 0 and done.stdout == f"muted: {' '.join(serious)}\n"
    done = command(files, "doctor")
    assert done.returncode == 0 and "orphan" not in done.stdout
    assert done.stdout.splitlines()[-1] == "1 info, 3 muted (vnet-tui doctor --all shows them)"
    assert "orphan shares" in command(files, "doctor", "--all").stdout
    assert [one["id"] for one in doctor(files)["findings"] if one["muted"]] == serious
    command(files, "doctor", "--unmute", serious[0])
    assert command(files, "doctor").returncode == 1


@pytest.mark.parametrize("option", ["--mute", "--unmute"])
def test_an_id_that_no_finding_has(files: Path, option: str) -> None:
    done = command(files, "doctor", option, "zzzzzz")
    assert done.returncode == 1
    reason = "there is no finding with that id. Try: vnet-tui doctor"
    assert f'can\'t {option[2:]} "zzzzzz": {reason}' in done.stderr


def test_a_shell_needs_a_live_host(files: Path) -> None:
    done = forkserver.run(["--from", str(files / "small.vnet"), "shell", "web1"], dict(os.environ))
    assert done.returncode == 1 and "it runs programs on this host" in done.stderr


@pytest.mark.parametrize("words", [("doctor", "--fix", "zzzzzz"), ("why", "web1", "web2", "--fix")])
def test_a_file_cannot_be_repaired(files: Path, words: tuple[str, ...]) -> None:
    done = command(files, *words)
    assert done.returncode == 1 and "can't run" in done.stderr and "without --from" in done.stderr


def test_a_repair_of_an_unknown_finding(files: Path) -> None:
    done = run("doctor", "--fix", "zzzzzz")
    assert done.returncode == 1
    assert 'can\'t repair "zzzzzz": there is no finding with that id. Try: vnet-tui doctor' in done.stderr


def test_a_user_without_rights_gets_an_answer() -> None:
    for words in (("doctor",), ("why", "host", "outside")):
        done = run(*words, before=without_root(), VNET_STATE="/nonexistent")
        assert done.returncode in (0, 1), done.stderr
        assert done.stdout and "Traceback" not in done.stderr


# ---- the dashboard


@SIZES
async def test_the_doctor_view_lists_the_worst_first(size: tuple[int, int], files: Path) -> None:
    async with dashboard(size=size) as person:
        await person.type(":doctor⏎")
        await person.eventually("orphan shares the network")
        assert person.row() == "bad"
        await person.type("/state:warn⏎")
        await person.until(lambda: person.row() == "warn", "the filter")
        assert "orphan shares" not in person.text


async def test_a_muted_finding_is_dim_and_last(files: Path) -> None:
    async with dashboard() as person:
        await person.type(":doctor⏎")
        await person.eventually("orphan shares the network")
        await person.press("I")
        await person.until(lambda: "mute" in person.text, "the mark")
        ((muted,),) = json.loads((files / "state" / "muted.json").read_text()).values()
        topology = Topology(small_host())
        assert muted == next(iter(findings_by_id(topology, findings(topology))))
        await person.press("g")
        await person.until(lambda: person.row() == "warn", "the next finding on top")
        await person.press("G")
        await person.until(lambda: person.row() == "mute", "the muted one at the end")
        await person.press("I")
        await person.until(lambda: "mute" not in person.row(), "the mark's end")


async def test_a_healthy_host_has_an_empty_doctor_view(files: Path) -> None:
    async with dashboard(empty_host()) as person:
        await person.type(":doctor⏎")
        await person.eventually("Nothing is wrong.")


@SIZES
async def test_w_asks_whether_the_selected_container_reaches_another(size: tuple[int, int]) -> None:
    async with dashboard(size=size) as person:
        await person.type("5/vault⏎")
        await person.until(lambda: person.row() == "vault", "the filter")
        await person.type("wweb1 80/tcp⏎")
        await person.eventually("is not reachable from vault because")
        assert "vault → web1" in person.text and "Esc: close" in person.text
        await person.press("escape")
        await person.until(lambda: "vault → web1" not in person.text, "the overlay's end")


async def test_w_on_unknown_names_suggests_others() -> None:
    async with dashboard() as person:
        await person.type("5wwebx⏎")
        await person.eventually("Try: web")
        assert len(person.app.screen_stack) == 1


async def test_keys_for_findings_say_what_to_select() -> None:
    async with dashboard() as person:
        await person.type("5/vault⏎")
        await person.until(lambda: person.row() == "vault", "the filter")
        for key, words in (("F", "nothing is wrong with"), ("I", "no finding is selected")):
            await person.press(key)
            await person.eventually(words)
