"""The command line as scripts run it: a process in a pipe, without root."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len

from core.model import OvsBridge, OvsInterface, OvsPort, Problem, Snapshot
from core.serialize import pack, to_json, unpack
from tests.support import forkserver
from tests.support.needs import AS_NOBODY, lacking
from tests.support.snapshots import HOST, hostile_host, many_namespaces, overlay_host, small_host
from tests.support.terminal import Terminal
from tests.support.waiting import PATIENCE
from tui.cli import main
from tui.cli.completion import script
from tui.cli.parser import TOPICS, make_parser
from tui.cli.show import PARTS, Output, show
from tui.command import CHECK_FIRST, load

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, "-m", "tui.cli"]


def run(
    *arguments: str, before: tuple[str, ...] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the program in pipes and return its output."""
    if not before:
        return forkserver.run(arguments, os.environ | environment)
    return subprocess.run(
        [*before, *PROGRAM, *arguments], cwd=ROOT, env=os.environ | environment, check=False,
        capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60,
    )  # fmt: skip


def sample() -> Snapshot:
    """Return a small host with an overlay and a bridge of Open vSwitch."""
    ports = (
        OvsPort("vx0", 30, interfaces=(OvsInterface("vx0", "vxlan", options={"remote_ip": "192.0.2.9"}),)),
        OvsPort("gone", trunks=(5, 6), interfaces=(OvsInterface("gone", error="no such device " * 9),)),
    )
    return replace(overlay_host(), ovs=(OvsBridge("br-int", ports=ports),))


@pytest.fixture
def dump() -> Iterator[Path]:
    """Return a dump of a small host, readable by all users."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = Path(folder) / "host.vnet"
        path.write_bytes(pack(sample()))
        yield path


def without_root() -> tuple[str, ...]:
    """Return the words that drop root's rights; none if there are none to drop."""
    return AS_NOBODY if os.geteuid() == 0 and not lacking("nobody") else ()


def test_version() -> None:
    done = run("--version")
    assert re.fullmatch(r"vnet-tui \d+\.\d+\.\d+\n", done.stdout) and done.returncode == 0


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["completion", "bash"]])
def test_commands_without_data_import_no_large_modules(arguments: list[str]) -> None:
    code = f"import sys; from tui.cli import main\ntry: main({arguments!r})\nexcept SystemExit: pass\n"
    code += (
        "print('IMPORTED', *(name for name in ('textual', 'numpy', 'rich', 'docker') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "IMPORTED"


def test_reading_imports_no_modules_for_changes() -> None:
    code = (
        "import sys, tui.app; from core.collect.snapshot import read_snapshot; read_snapshot(); "
        "print('IMPORTED', *(name for name in ('docker', 'requests', 'psutil') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "IMPORTED"


def test_help_has_examples_for_every_command() -> None:
    done = run("--help")
    assert done.returncode == 0 and "examples:" in done.stdout
    for command in ("show", "dump", "demo", "completion", "--from"):
        assert re.search(rf"vnet-tui .*{command}", done.stdout), command


@pytest.mark.parametrize(
    "arguments", [["frobnicate"], ["show", "cats"], ["--frm", "x"], ["completion"], ["dump"]]
)
def test_usage_errors(arguments: list[str]) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "") and "usage: vnet-tui" in done.stderr


@pytest.mark.parametrize(
    "words", ["--write demo", "demo --write", "demo --no-traffic --write", "--ascii demo --write"]
)
def test_options_of_the_demo_before_and_after_its_name(monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    from core.lab import lab

    opened: list[list[str]] = []
    monkeypatch.setattr(lab, "main", lambda command, *_: opened.append(command) or 0)
    monkeypatch.setattr("core.lab.check_rights", lambda: None)
    monkeypatch.setattr("tui.cli.dashboard.require_terminal", lambda: None)
    assert main(words.split()) == 0
    (command,) = opened
    assert [word for word in ("--ascii", "--write") if word in command] == [
        word for word in ("--ascii", "--write") if word in words.split()
    ]


def test_every_topic_of_show_has_parts_to_read() -> None:
    shown = run("show", "--help").stdout
    assert PARTS.keys() == set(TOPICS)
    assert all(topic in shown for topic in TOPICS)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_lists_all_commands_and_options(shell: str) -> None:
    text = script(make_parser(), shell)
    for word in ("show", "dump", "demo", "completion", "json", "from", "ns", "no-traffic", *TOPICS):
        assert word in text


def test_bash_accepts_the_completion_script() -> None:
    done = subprocess.run(["bash", "-n"], input=run("completion", "bash").stdout, text=True, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["sho"], {"show"}),
        (["sh"], {"shell", "show"}),
        (["show", "v"], {"veths"}),
        (["show", "veths", "--j"], {"--json"}),
        (["completion", ""], {"bash", "zsh", "fish", "-h", "--help"}),
        (["--from", "pypro"], {"pyproject.toml"}),
        (["dump", "pypro"], {"pyproject.toml"}),
        (["show", "--ns", "ho"], {"host"}),
    ],
)
def test_bash_completes(typed: list[str], offered: set[str]) -> None:
    words = " ".join(f"'{word}'" for word in ["vnet-tui", *typed])
    code = f"compopt() {{ :; }}\n{script(make_parser(), 'bash')}\n"
    code += f"COMP_WORDS=({words}); COMP_CWORD={len(typed)}; _vnet_tui; "
    code += " printf '%s\\n' \"${COMPREPLY[@]}\""
    done = subprocess.run(["bash", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == offered


@pytest.mark.parametrize("topic", ["all", *TOPICS])
def test_a_dump_is_shown_without_root(dump: Path, topic: str) -> None:
    for arguments in ([], ["--json"]):
        done = run("--from", str(dump), "show", topic, *arguments, before=without_root())
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout
        if arguments:
            whole = json.loads(done.stdout)
            assert all(whole[each] for each in (TOPICS if topic == "all" else [topic]))


def test_show_prints_columns(dump: Path) -> None:
    lines = run("--from", str(dump), "show", "veths").stdout.splitlines()
    web1 = next(line for line in lines if line.startswith("veth-web1"))
    assert lines[0].split()[0] == "END" and "\x1b" not in web1
    assert "172.18.0.2/16" in web1 and "br-app" in web1
    assert len(lines) == 7
    at = lines[0].index("BRIDGE")
    assert {line[at:].split()[0] for line in lines[1:]} == {"br-app", "br-db", "docker0"}


def test_ns_selects_one_namespace(dump: Path) -> None:
    for name in ("web1", str(HOST + 1000), "sidecar"):
        whole = json.loads(run("--from", str(dump), "show", "links", "--ns", name, "--json").stdout)
        assert [link["name"] for link in whole["links"]] == ["lo", "eth0"]
        assert len(run("--from", str(dump), "show", "links", "--ns", name).stdout.splitlines()) == 3
    assert len(run("show", "--from", str(dump), "veths", "--ns", "web1").stdout.splitlines()) == 2


def test_ns_selects_rules_of_its_containers_and_networks(dump: Path) -> None:
    def names_of(name: str) -> list[str]:
        whole = json.loads(run("--from", str(dump), "show", "nat", "--ns", name, "--json").stdout)
        lines = run("--from", str(dump), "show", "nat", "--ns", name).stdout.splitlines()
        assert len(lines) == 1 + len(whole["nat"]) or not whole["nat"]
        return [entry["name"] for entry in whole["nat"]]

    masquerade = "masquerade app (172.18.0.0/16)"
    assert names_of("web1") == ["web1 tcp 8080 -> 172.18.0.2:80", masquerade]
    assert names_of("api") == [masquerade]
    assert "drop 172.18.0.3/32 -> *" in " ".join(names_of("web2"))
    assert len(names_of("host")) == 5, "all that lie there"


def test_an_unknown_namespace_is_an_error(dump: Path) -> None:
    done = run("--from", str(dump), "show", "links", "--ns", "w\x1b[1meb9")
    assert (done.returncode, done.stdout) == (1, "")
    assert "web1" in done.stderr and "\\x1b" in done.stderr and "\x1b" not in done.stderr


def test_problems_are_printed_to_stderr_one_line_per_kind(tmp_path: Path) -> None:
    denied = [
        Problem("links", "can't read its links", "no right", "be root", HOST + 1000 + number)
        for number in range(3)
    ]
    absent = Problem("docker", "can't connect to Docker", "no socket", "start\x1bit")
    path = tmp_path / "problems.vnet"
    path.write_bytes(pack(small_host(part_problems={"links": tuple(denied), "docker": (absent,)})))
    words = "vnet-tui: web1: can't read its links: no right. Try: be root (and 2 more like this)"
    done = run("--from", str(path), "show", "links")
    assert (done.returncode, done.stderr.splitlines()) == (0, [words])
    assert "problem" not in done.stdout
    done = run("--from", str(path), "show", "containers", "--ns", "db")
    assert done.stderr.splitlines() == ["vnet-tui: can't connect to Docker: no socket. Try: start\\x1bit"]
    done = run("--from", str(path), "show", "links", "--json")
    assert len(json.loads(done.stdout)["problems"]) == 4 and done.stderr == ""


def test_hostile_names_are_escaped(tmp_path: Path) -> None:
    path = tmp_path / "hostile.vnet"
    path.write_bytes(pack(hostile_host()))
    for arguments in (["show"], ["show", "--json"]):
        done = run("--from", str(path), *arguments, PYTHONIOENCODING="utf-8")
        text = done.stdout + done.stderr
        assert done.returncode == 0 and "evil" in text
        assert not re.findall(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)


def test_output_in_an_ascii_locale(tmp_path: Path) -> None:
    path = tmp_path / "hostile.vnet"
    path.write_bytes(pack(hostile_host()))
    assert run("--from", str(path), "show", PYTHONIOENCODING="ascii").returncode == 0


def printed_on_a_terminal(arguments: list[str], columns: int, **environment: str) -> str:
    """Return what a command prints on a terminal of this width."""
    with Terminal([*PROGRAM, *arguments], columns=columns, **environment) as terminal:
        terminal.read_to_the_end()
        return terminal.output.decode().replace("\r\n", "\n")


def test_output_on_a_terminal_fits_and_is_coloured(dump: Path) -> None:
    arguments = ["--from", str(dump), "show", "links"]
    coloured = printed_on_a_terminal(arguments, 60, NO_COLOR="")
    plain = printed_on_a_terminal(arguments, 60, NO_COLOR="1")
    assert "\x1b[32m" in coloured and "\x1b" not in plain
    assert "veth-web1" in plain
    assert max(map(len, plain.splitlines())) <= 60
    assert re.sub(r"\x1b\[\d+m", "", coloured) == plain


@pytest.mark.parametrize("columns", [60, 70, 80])
@pytest.mark.parametrize("topic", TOPICS)
def test_every_table_fits_a_narrow_terminal(dump: Path, topic: str, columns: int) -> None:
    output = Output(io.StringIO(), width=columns)
    show(load(dump), (topic,), output)
    lines = output.stream.getvalue().splitlines()
    assert len(lines) > 1 and max(map(cell_len, lines)) <= columns


CORRUPT = {
    "empty": b"",
    "not ours": b"PNG\x89 and so on",
    "truncated": pack(small_host())[:-300],
    "truncated plain": to_json(small_host())[:-300],
    "other schema": to_json(small_host()).replace(b'"schema":1', b'"schema":7', 1),
    "wrong type": to_json(small_host()).replace(b'"mtu":1500', b'"mtu":"x"', 1),
    "deep": b"[" * 500_000,
    "packed rubbish": gzip.compress(b"\0" * 1000),
}


@pytest.mark.parametrize("kind", CORRUPT)
@pytest.mark.parametrize("command", [["show"], ["show", "--json"], ["dump", "/dev/null"]])
def test_a_corrupt_dump_is_refused_with_a_reason(tmp_path: Path, kind: str, command: list[str]) -> None:
    path = tmp_path / "corrupt.vnet"
    path.write_bytes(CORRUPT[kind])
    done = run("--from", str(path), *command)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"vnet-tui: can't read .*corrupt\.vnet: .+\. Try: .+\n", done.stderr)


@pytest.mark.parametrize("path", ["/nonexistent/host.vnet", "/proc/self"])
def test_an_unreadable_dump_is_an_error(path: str) -> None:
    done = run("--from", path, "show")
    assert done.returncode == 1 and re.fullmatch(r"vnet-tui: can't read .+: .+\n", done.stderr)


def test_a_long_name_does_not_widen_all_lines(tmp_path: Path) -> None:
    host = small_host()
    net = host.nets[HOST]
    link = next(link for link in net.links.values() if link.name == "br-app")
    links = {**net.links, link.ifindex: replace(link, name="x" * 10_000)}
    path = tmp_path / "long.vnet"
    path.write_bytes(pack(replace(host, nets={**host.nets, HOST: replace(net, links=links)})))
    lines = run("--from", str(path), "show", "links").stdout.splitlines()
    assert max(map(len, lines)) < 1000 and any("xxx…" in line for line in lines)
    assert "x" * 10_000 in run("--from", str(path), "show", "links", "--json").stdout


def test_an_unwritable_dump_is_an_error(dump: Path) -> None:
    done = run("--from", str(dump), "dump", "/nonexistent/host.vnet")
    assert done.returncode == 1 and done.stderr.startswith("vnet-tui: can't write /nonexistent/host.vnet: ")


def test_a_dump_of_a_dump(dump: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.vnet"
    first, second = (run("--from", str(dump), "dump", str(copy)).stderr for _ in range(2))
    assert first.startswith(f"wrote {copy}, ") and "in place of the file" not in first
    assert f", in place of the file that was there; {CHECK_FIRST}\n" in second
    assert copy.stat().st_mode & 0o777 == 0o600
    assert to_json(unpack(copy.read_bytes())) == to_json(sample())
    assert [path.name for path in tmp_path.iterdir()] == ["copy.vnet"]


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/proc/self/fd/1"])
def test_a_dump_into_a_pipe(dump: Path, name: str) -> None:
    words = [*PROGRAM, "--from", str(dump), "dump", name]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, check=True)
    assert to_json(unpack(done.stdout)) == to_json(sample())


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_a_closed_pipe_ends_the_command_quietly(tmp_path: Path, arguments: list[str]) -> None:
    path = tmp_path / "many.vnet"
    path.write_bytes(pack(many_namespaces(300)))
    command = [*PROGRAM, "--from", str(path), "show", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(PATIENCE) == 0


def test_the_dashboard_needs_a_terminal() -> None:
    done = run()
    assert (done.returncode, done.stdout) == (1, "") and "vnet-tui show" in done.stderr


def test_the_dashboard_opens_on_a_dump(dump: Path) -> None:
    with Terminal([*PROGRAM, "--from", str(dump)]) as terminal:
        terminal.wait_for("web1")
        terminal.press("q")
        assert terminal.read_to_the_end() == 0


def test_show_works_without_root() -> None:
    done = run("show", "links", "--json", before=without_root())
    whole = json.loads(done.stdout)
    assert done.returncode == 0
    assert any(link["name"] == "lo" for link in whole["links"])


@pytest.mark.parametrize(
    ("line", "meant"),
    [("show veth", "veths"), ("shwo", "show"), ("network creat x", "create"), ("show zzzz", "")],
)
def test_a_misspelt_word_gets_a_suggestion(line: str, meant: str) -> None:
    done = run(*line.split())
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.endswith(f"did you mean {meant}?\n") if meant else "did you mean" not in done.stderr


def test_a_bad_file_is_reported_before_a_missing_terminal(tmp_path: Path) -> None:
    path = tmp_path / "words"
    path.write_text("no dump")
    done = subprocess.run(
        [*PROGRAM, "--from", str(path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "can't read" in done.stderr and "terminal" not in done.stderr


def test_the_examples_fit_a_narrow_terminal() -> None:
    assert max(map(len, make_parser().epilog.splitlines())) <= 80
