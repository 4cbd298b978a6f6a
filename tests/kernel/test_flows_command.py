"""`vnet-tui flows`: JSON against `conntrack -L` and docs/json.md, and --follow."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.host import ThrowawayHost

pytestmark = pytest.mark.root

PAGE = Path(__file__).parents[2] / "docs" / "json.md"
INSERT = 300


@pytest.fixture
def busy(host: ThrowawayHost) -> ThrowawayHost:
    """Yield a host that counts, with entries."""
    host.run("sysctl -qw net.netfilter.nf_conntrack_acct=1")
    host.run([sys.executable, "-c", f"from tests.support.bulk_conntrack import insert; insert({INSERT})"])
    return host


def flows(host: ThrowawayHost, words: str, check: bool = True) -> str:
    done = host.vnet("flows", *words.split())
    assert not check or done.returncode == 0, done.stderr
    return done.stdout


def documented(heading: str) -> set[str]:
    """Return the fields in the table under a heading."""
    part = PAGE.read_text().split(f"### {heading}\n")[1].split("\n#")[0]
    return set(re.findall(r"^\| `(\w+)` \|", part, re.M))


def of_host(host: ThrowawayHost, document: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for one in document["flows"] if one["ns"] == host.inode]


def test_json_agrees_with_conntrack_and_the_docs(busy: ThrowawayHost) -> None:
    document = json.loads(flows(busy, "--json --per-hop"))
    mine = of_host(busy, document)
    assert (document["schema"], document["counted"], document["measured"], len(mine)) == (
        1,
        "per hop",
        False,
        INSERT,
    )
    assert set(mine[0]) == documented("flow")
    theirs = subprocess.run(
        ["nsenter", f"--net=/run/netns/{busy.name}", "conntrack", "-L", "-f", "ipv4", "-o", "id"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    by_id = {one["id"]: one for one in mine}
    for line in theirs.splitlines():
        values = re.findall(r"(src|dst|sport|dport|id)=(\S+)", line)
        src, _, sport, _, answers, seen, answered, seen_port = [value for _, value in values[:8]]
        one = by_id[int(values[-1][1])]
        assert (one["origin"]["address"], one["origin"]["port"]) == (src, int(sport))
        assert (one["responder"]["address"], one["responder"]["port"]) == (answers, int(answered))
        assert one["snat"] == {"address": seen, "port": int(seen_port)}


@pytest.mark.parametrize("words", ["rate:<1k", "--top 5", "--by port"])
def test_options_that_need_rates_measure_them(busy: ThrowawayHost, words: str) -> None:
    document = json.loads(flows(busy, f"--json {words}"))
    assert document["measured"]
    some = document["groups" if "--by" in words else "flows"]
    assert some
    assert all(one["bits_per_second"] is not None for one in some)


def test_filtering_by_an_unmeasured_rate_is_an_error(busy: ThrowawayHost) -> None:
    refused = flows(busy, "--json --over 0 rate:>1k", check=False)
    assert not refused


def test_follow_prints_repeatedly(busy: ThrowawayHost) -> None:
    words = [sys.executable, "-u", "-m", "tui.cli", "flows", "--follow", "--over", "0.3"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout
        heads = 0
        for line in following.stdout:
            heads += line.startswith("-- ")
            if heads == 2:
                break
        following.kill()
    assert heads == 2
