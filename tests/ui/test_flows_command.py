"""`vnet-tui flows` on a dump file: output, errors, and JSON schema."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from core.serialize import pack
from tests.ui.test_conntrack_rows import snapshot
from tui.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "json.md"


@pytest.fixture
def file(tmp_path: Path) -> str:
    """Return the path of a dump of a host with seven connections."""
    path = tmp_path / "host.vnet"
    path.write_bytes(pack(snapshot()))
    return str(path)


def flows_output(capsys: pytest.CaptureFixture[str], file: str, words: str) -> str:
    assert main(["flows", "--from", file, *words.split()]) == 0
    return capsys.readouterr().out


def documented(heading: str) -> set[str]:
    """Return the fields in the table under a heading of the page."""
    part = PAGE.read_text().split(f"### {heading}\n")[1].split("\n#")[0]
    return set(re.findall(r"^\| `(\w+)` \|", part, re.M))


def test_a_flow_is_one_line(capsys: pytest.CaptureFixture[str], file: str) -> None:
    assert flows_output(capsys, file, "to:web1") == (
        "198.51.100.9:5000 -> [DNAT 192.0.2.1:8080] -> web1 172.18.0.2:80 tcp ESTABLISHED kernel\n"
    )
    assert flows_output(capsys, file, "--per-hop ns:lab").endswith("[lab]\n")


def test_the_json_document(capsys: pytest.CaptureFixture[str], file: str) -> None:
    flows = json.loads(flows_output(capsys, file, "--json"))
    groups = json.loads(flows_output(capsys, file, "--json --by port"))
    assert set(flows) | set(groups) == documented("the flows")
    assert set(groups["groups"][0]) == documented("group")
    assert flows["clients"] == {
        "": 6, "host": 0, "beside": 0, "other network": 0, "outside": 1, "itself": 0,
    }  # fmt: skip
    ping = next(one for one in flows["flows"] if one["l4_proto"] == "icmp")
    assert (ping["icmp"], ping["origin"]["port"], ping["bytes"]) == (
        {"id": 7, "type": 8, "code": 0},
        None,
        None,
    )
    incoming = next(one for one in flows["flows"] if one["client"] == "outside")
    assert incoming["dnat"] == {"address": "192.0.2.1", "port": 8080}
    assert incoming["responder"] == {"address": "172.18.0.2", "name": "web1", "port": 80}


def test_groups_as_columns(capsys: pytest.CaptureFixture[str], file: str) -> None:
    heading, *lines = flows_output(capsys, file, "--by container").splitlines()
    assert heading.split()[:3] == ["CONTAINER", "FLOWS", "RATE"]
    assert {line.split()[0]: line.split()[1] for line in lines} == {"web1": "3", "web2": "2", "host": "1"}


def test_top_limits_flows(capsys: pytest.CaptureFixture[str], file: str) -> None:
    assert len(flows_output(capsys, file, "--top 2").splitlines()) == 2


def test_top_limits_groups(capsys: pytest.CaptureFixture[str], file: str) -> None:
    assert len(flows_output(capsys, file, "--by container --top 2").splitlines()) == 3
    groups = json.loads(flows_output(capsys, file, "--json --by container --top 2"))["groups"]
    assert [groups[0]["flows"], len(groups)] == [3, 2]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("colour:red", "can't filter by colour: there is no such column. Try: addr, "),
        ("--over -1", "can't measure over -1 seconds: it takes 0 to 3600"),
        ("--top 0", "can't print 0 flows: --top takes 1 or more"),
        ("--top -1", "can't print -1 flows: --top takes 1 or more"),
        ("rate:>10k", "can't filter by rate: a file holds one moment"),
        ("rtt:<5", "a file holds no sockets"),
        ("--by process", "a file holds no sockets"),
        ("--follow", "can't follow the flows of a file: it holds one moment"),
        ("addr:10.0.0.0/99", "can't filter by addr:10.0.0.0/99: it isn't a prefix. Try: addr:10.0.0.0/8"),
    ],
)
def test_errors_give_the_reason(
    capsys: pytest.CaptureFixture[str], file: str, words: str, reason: str
) -> None:
    assert main(["flows", "--from", file, *words.split()]) == 1
    assert reason in capsys.readouterr().err
