"""Check rules of nft and iptables against the output of nft and iptables-save."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from core import tools
from core.collect import firewall
from core.collect.firewall import read_firewall
from core.model import Chain, Firewall, FirewallRule, Namespace
from core.netlink.netns import NamespaceGone
from tests.kernel.holders import as_nobody
from tests.kernel.rule_shapes import BEFORE, IP6TABLES, IPTABLES, LEAVING, SHAPES
from tests.support.host import ThrowawayHost
from tests.support.waiting import wait_until

pytestmark = pytest.mark.root

NoTools = Callable[[], Path]
BACKENDS = ("nft", "legacy")
# The fields with the meaning of a rule.
MEANING = [field.name for field in fields(FirewallRule)[6:]]


def read(host: ThrowawayHost, short: str = "host") -> Firewall:
    return read_firewall(Namespace(host.inode_of(short), entry=f"/run/netns/{host.full(short)}"))


def read_rules_of(host: ThrowawayHost) -> Firewall:
    """Read the firewall; there must be no problems."""
    firewall = read(host)
    assert firewall.problems == ()
    return firewall


def nft(host: ThrowawayHost, script: str) -> None:
    subprocess.run(
        ["nsenter", f"--net=/run/netns/{host.name}", "nft", "-f", "-"], input=script, text=True, check=True
    )


def nft_objects(host: ThrowawayHost, kind: str) -> list[dict[str, Any]]:
    return [entry[kind] for entry in host.json("nft -j list ruleset")["nftables"] if kind in entry]


def saved(host: ThrowawayHost, backend: str, program: str = "iptables") -> list[tuple[int, int, str]]:
    """Return (packets, bytes, rule) of iptables-save."""
    lines = host.run(f"{program}-{backend}-save -c").splitlines()
    found = (re.fullmatch(r"\[(\d+):(\d+)\] (-A .*)", line) for line in lines)
    return [(int(one[1]), int(one[2]), one[3]) for one in found if one]


def meaning(rule: FirewallRule) -> dict[str, Any]:
    """Return the set fields of a rule."""
    unset = {"understood": True, "packets": None, "bytes": None, "translations": (), "choices": ()}
    return {name: getattr(rule, name) for name in MEANING if getattr(rule, name) != unset.get(name, "")}


@pytest.fixture
def no_tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], Path]:
    """Return a function that makes an empty folder the PATH.

    The test may put programs there.
    """

    def empty() -> Path:
        monkeypatch.setenv("PATH", str(tmp_path))
        return tmp_path

    return empty


def put(folder: Path, name: str, script: str) -> None:
    """Create a program of that name on the PATH of `no_tools`."""
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


# nftables


def test_nft_rules_of_every_shape_are_decoded(host: ThrowawayHost) -> None:
    rules = [f"add rule inet t rules {text}" for text in SHAPES] + [
        f"add rule inet t post {text}" for text in LEAVING
    ]
    nft(host, "\n".join([BEFORE, *rules]))
    found = {rule.text: meaning(rule) for rule in read_rules_of(host).rules}
    wanted = {text.replace(" packets 0 bytes 0", ""): shape for text, shape in (SHAPES | LEAVING).items()}
    assert found == wanted


def test_nft_rules_have_the_text_and_handle_that_nft_prints(host: ThrowawayHost) -> None:
    nft(host, "\n".join([BEFORE, *(f"add rule inet t rules {text}" for text in SHAPES)]))
    printed = re.findall(r"^\t\t(.+) # handle (\d+)$", host.run("nft -a -s list ruleset"), re.MULTILINE)
    found = [(rule.text, rule.rule_id) for rule in read_rules_of(host).rules]
    assert found == [(text, f"nft/inet/t/{handle}") for text, handle in printed]


def test_a_comment_may_hold_newlines(host: ThrowawayHost) -> None:
    nft(host, 'table ip x { chain c { drop comment "one\n\t}\ntwo # handle 3"; accept; }; }')
    assert [(rule.text.partition("\n")[0], rule.comment) for rule in read_rules_of(host).rules] == [
        ('drop comment "one', "one\n\t}\ntwo # handle 3"),
        ("accept", ""),
    ]


def test_rules_of_a_table_that_a_process_owns_are_attributed_to_it(host: ThrowawayHost) -> None:
    """nft prints the owner after the handle of the table."""
    nft(host, "table ip a { chain c { tcp dport 1 accept; tcp dport 2 accept; }; }")
    script = "table inet own { flags owner; chain c { tcp dport 81 accept; tcp dport 82 accept; }; }\n"
    command = ["nsenter", f"--net=/run/netns/{host.name}", "nft", "-i"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as owner:
        assert owner.stdin is not None
        owner.stdin.write(script)
        owner.stdin.flush()
        wait_until(lambda: "dport 82" in host.run("nft list ruleset"))
        found = [(rule.table, rule.text) for rule in read_rules_of(host).rules]
    wanted = [("a", "tcp dport 1 accept"), ("a", "tcp dport 2 accept")]
    assert found == [*wanted, ("own", "tcp dport 81 accept"), ("own", "tcp dport 82 accept")]


def test_nft_chains_are_those_that_nft_lists(host: ThrowawayHost) -> None:
    nft(host, BEFORE)
    nft(host, "table bridge b { chain f { type filter hook forward priority -200; policy drop; }; }")
    nft(host, "table netdev n { chain i { type filter hook ingress device lo priority 5; }; }")
    unset = {"hook": "", "prio": 0, "policy": ""}
    names = ("family", "table", "name", *unset)
    wanted = [tuple((unset | one)[name] for name in names) for one in nft_objects(host, "chain")]
    found = [
        (one.family, one.table, one.name, one.hook, one.priority, one.policy)
        for one in read_rules_of(host).chains
    ]
    assert found == wanted
    assert len(found) == 6


def test_nft_counters_count_real_packets(host: ThrowawayHost) -> None:
    nft(
        host,
        """
        table inet t {
            counter pings { }
            chain in {
                type filter hook input priority 0;
                icmp type echo-request counter comment "anonymous"
                icmp type echo-request counter name pings accept
                icmp type echo-request accept comment "none"
            }
        }""",
    )
    host.run("ping -c 3 -i 0.01 -q 127.0.0.1")
    counters = {one["name"]: one for one in nft_objects(host, "counter")}
    (anonymous, _), *_ = [
        (part["counter"], rule)
        for rule in nft_objects(host, "rule")
        for part in rule["expr"]
        if isinstance(part.get("counter"), dict)
    ]
    found = [(rule.packets, rule.bytes) for rule in read_rules_of(host).rules]
    assert anonymous["packets"] == 3
    assert found == [
        (anonymous["packets"], anonymous["bytes"]),
        (counters["pings"]["packets"], counters["pings"]["bytes"]),
        (None, None),
    ]


# iptables, of the nftables and the legacy backend


@pytest.mark.parametrize("backend", BACKENDS)
def test_iptables_rules_have_the_text_that_iptables_save_prints(host: ThrowawayHost, backend: str) -> None:
    table(host, backend)
    firewall = read_rules_of(host)
    assert [rule.text for rule in firewall.rules if rule.family == "ip"] == [
        text for *_, text in saved(host, backend)
    ]
    assert [rule.text for rule in firewall.rules if rule.family == "ip6"] == [
        text for *_, text in saved(host, backend, "ip6tables")
    ]
    assert {rule.backend for rule in firewall.rules} == {f"iptables-{backend}"}
    assert len(firewall.rules) == len(IPTABLES) + len(IP6TABLES)


@pytest.mark.parametrize("backend", BACKENDS)
def test_iptables_rules_are_decoded(host: ThrowawayHost, backend: str) -> None:
    table(host, backend)
    found = [(rule.table, rule.chain, meaning(rule)) for rule in read_rules_of(host).rules]
    wanted = [
        (table, chain, {"packets": 0, "bytes": 0, **shape})
        for (table, chain, _), shape in (IPTABLES | IP6TABLES).items()
    ]
    for one in wanted:
        assert one in found


@pytest.mark.parametrize("backend", BACKENDS)
def test_iptables_chains_have_their_hooks_and_policies(host: ThrowawayHost, backend: str) -> None:
    host.run(f"iptables-{backend} -P FORWARD DROP")
    host.run(f"iptables-{backend} -N own")
    host.run(f"iptables-{backend} -t nat -A POSTROUTING -j MASQUERADE")
    name = f"iptables-{backend}"
    chains = read_rules_of(host).chains
    for wanted in (
        Chain(name, "ip", "filter", "FORWARD", "forward", "filter", 0, "drop"),
        Chain(name, "ip", "filter", "own"),
        Chain(name, "ip", "nat", "POSTROUTING", "postrouting", "nat", 100, "accept"),
        Chain(name, "ip", "nat", "OUTPUT", "output", "nat", -100, "accept"),
    ):
        assert wanted in chains


@pytest.mark.parametrize("backend", BACKENDS)
def test_iptables_counters_count_real_packets(host: ThrowawayHost, backend: str) -> None:
    host.run(f"iptables-{backend} -A INPUT -p icmp -m icmp --icmp-type echo-request -j ACCEPT")
    host.run("ping -c 4 -i 0.01 -q 127.0.0.1")
    ((packets, octets, _),) = saved(host, backend)
    assert packets == 4
    assert [(rule.packets, rule.bytes) for rule in read_rules_of(host).rules] == [(packets, octets)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_both_backends_and_nft_at_once(host: ThrowawayHost, backend: str) -> None:
    host.run(f"iptables-{backend} -A FORWARD -j DROP")
    nft(host, "table inet own { chain c { accept; }; }")
    assert [rule.backend for rule in read_rules_of(host).rules].count("nft") == 1
    assert [rule.verdict for rule in read_rules_of(host).rules if rule.backend == f"iptables-{backend}"] == [
        "drop"
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_ids_stay_when_other_rules_change(host: ThrowawayHost, backend: str) -> None:
    rules = ("-s 10.0.0.1 -j DROP", "-s 10.0.0.2 -j DROP", "-s 10.0.0.2 -j DROP")
    for text in rules:
        host.run(f"iptables-{backend} -A FORWARD {text}")
    before = {rule.rule_id: rule.text for rule in read_rules_of(host).rules}
    host.run(f"iptables-{backend} -I FORWARD 1 -s 10.0.0.9 -j DROP")
    host.run(f"iptables-{backend} -D FORWARD 2")
    after = {rule.rule_id: rule.text for rule in read_rules_of(host).rules}
    assert len(before) == 3
    assert [after.get(key) for key, text in before.items() if "10.0.0.2" in text] == [
        "-A FORWARD -s 10.0.0.2/32 -j DROP"
    ] * 2


def test_nft_ids_stay_when_other_rules_change(host: ThrowawayHost) -> None:
    nft(host, "table ip x { chain c { ip saddr 10.0.0.1 drop; ip saddr 10.0.0.2 drop; }; }")
    first, second = read_rules_of(host).rules
    nft(host, f"delete rule ip x c handle {first.rule_id.rpartition('/')[2]}; insert rule ip x c accept")
    assert [rule.rule_id for rule in read_rules_of(host).rules if rule.verdict == "drop"] == [second.rule_id]


def test_rules_that_iptables_prints_wrongly_are_read_by_nft(host: ThrowawayHost) -> None:
    """iptables-save would print the rule below as `-A FORWARD -p tcp -j DROP`."""
    host.run("iptables-nft -t nat -A PREROUTING -p tcp --dport 8080 -j DNAT --to-destination 10.0.0.2:80")
    host.run("iptables-nft -A FORWARD -s 10.0.0.1 -j DROP")
    nft(host, "add rule ip filter FORWARD tcp dport { 80, 443 } drop")
    found = {(rule.backend, rule.table): rule for rule in read_rules_of(host).rules}
    assert found["iptables-nft", "nat"].to_address == "10.0.0.2"
    assert found["nft", "filter"].dport == "80,443"
    assert len(found) == 2


def test_threads_read_different_namespaces_at_once(host: ThrowawayHost) -> None:
    shorts = [f"n{number}" for number in range(6)]
    for short in shorts:
        host.namespace(short)
        host.run(f"iptables-nft -A FORWARD -o {short} -j DROP", inside=short)
        host.run(
            f"nft add table inet {short}; add chain inet {short} c; add rule inet {short} c drop",
            inside=short,
        )
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda short: read(host, short), shorts))
    assert [[rule.oif or rule.table for rule in one.rules] for one in found] == [[one, one] for one in shorts]


# Reading changes nothing and costs little


def test_reading_creates_no_tables(host: ThrowawayHost) -> None:
    assert read_rules_of(host) == Firewall(host.inode)
    assert not host.run("nft list ruleset")
    nft(host, "table ip nat { }")
    before = host.run("nft list ruleset")
    read_rules_of(host)
    assert host.run("nft list ruleset") == before
    names = ("cat", "/proc/net/ip_tables_names", "/proc/net/ip6_tables_names")
    assert not host.run([*names], check=False)


def test_no_tool_runs_without_rules(host: ThrowawayHost, no_tools: NoTools) -> None:
    folder = no_tools()
    put(folder, "nft", f"touch {folder}/ran")
    put(folder, "iptables-nft-save", f"touch {folder}/ran")
    assert read_rules_of(host) == Firewall(host.inode)
    assert not (folder / "ran").exists()


def test_one_process_reads_all_iptables_rules(host: ThrowawayHost, no_tools: NoTools) -> None:
    host.run("iptables-nft -A FORWARD -j DROP")
    host.run("iptables-nft -t nat -A POSTROUTING -j MASQUERADE")
    program = shutil.which("iptables-nft-save")
    folder = no_tools()
    put(folder, "iptables-nft-save", f'echo ran >> {folder}/log\nexec {program} "$@"')
    assert [rule.verdict for rule in read_rules_of(host).rules] == ["drop", "masquerade"]
    assert (folder / "log").read_text() == "ran\n"


# Errors become problems


def problem_of(host: ThrowawayHost) -> tuple[str, str, str]:
    """Return what, why and try_ of the only problem."""
    (problem,) = read(host).problems
    assert (problem.part, problem.ns) == ("nat", host.inode)
    assert problem.what and problem.why and problem.try_
    return problem.what, problem.why, problem.try_


@pytest.fixture
def host_with_rule(host: ThrowawayHost) -> ThrowawayHost:
    nft(host, "table inet own { chain c { accept; }; }")
    return host


def test_without_nft(host_with_rule: ThrowawayHost, no_tools: NoTools) -> None:
    no_tools()
    what, why, try_ = problem_of(host_with_rule)
    assert what == "can't find nft"
    assert "PATH" in why
    assert "install nftables" in try_


def test_without_iptables_nft_reads_what_it_can(host: ThrowawayHost, no_tools: NoTools) -> None:
    host.run("iptables-nft -t nat -A PREROUTING -p tcp --dport 8080 -j DNAT --to-destination 10.0.0.2:80")
    program = shutil.which("nft")
    (no_tools() / "nft").symlink_to(str(program))
    what, why, _ = problem_of(host)
    assert what == "can't find iptables-nft-save"
    assert "nft alone" in why
    (found,) = read(host).rules
    assert (found.verdict, found.dport, found.to_address, found.to_port) == ("dnat", "8080", "10.0.0.2", "80")


@pytest.mark.parametrize(
    "answer",
    [
        "echo surprise",
        "echo '[]'",
        "echo '{}'",
        "echo '{\"nftables\": 3}'",
        'echo \'{"nftables": [{"rule": {"family": "inet", "table": "own"}}]}\'',
        "head -c 100000 /dev/zero | tr '\\0' '['",
        "printf '\\377\\376'",
    ],
)
def test_garbage_from_nft(host_with_rule: ThrowawayHost, no_tools: NoTools, answer: str) -> None:
    put(no_tools(), "nft", f"PATH=/usr/bin:/bin; {answer}")
    assert problem_of(host_with_rule)[0] == "can't parse the output of nft"
    assert read(host_with_rule).rules == ()


def test_garbage_from_iptables_save(host: ThrowawayHost, no_tools: NoTools) -> None:
    host.run("iptables-legacy -A FORWARD -j DROP")
    put(no_tools(), "iptables-legacy-save", "echo '*filter'; echo surprise")
    assert problem_of(host)[0] == "can't parse the output of iptables-save"


def test_a_tool_that_fails_says_why(host_with_rule: ThrowawayHost, no_tools: NoTools) -> None:
    put(no_tools(), "nft", "echo 'the reason' >&2; exit 3")
    assert problem_of(host_with_rule)[:2] == ("can't read with nft", "the reason")


def test_a_tool_that_hangs_is_given_up(
    host_with_rule: ThrowawayHost, no_tools: NoTools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tools, "TIMEOUT", 0.2)
    put(no_tools(), "nft", "exec /usr/bin/sleep 60")
    assert problem_of(host_with_rule)[0] == "can't get an answer from nft"


@pytest.fixture
def three(host_with_rule: ThrowawayHost) -> dict[str, Namespace]:
    """Create the host and two namespaces with a rule each.

    "huge" has a set of 40,000 addresses.
    """
    for short in ("huge", "plain"):
        host_with_rule.namespace(short)
        host_with_rule.run(["nft", "add table inet t; add chain inet t c; add rule inet t c accept"], short)
    members = ",".join(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in range(40_000))
    script = f"add set inet t s {{ type ipv4_addr; }}\nadd element inet t s {{ {members} }}"
    path = f"/run/netns/{host_with_rule.full('huge')}"
    subprocess.run(["nsenter", f"--net={path}", "nft", "-f", "-"], input=script, text=True, check=True)
    return {
        short: Namespace(
            host_with_rule.inode_of(short), is_host=short == "host",
            entry=f"/run/netns/{host_with_rule.full(short)}",
        )
        for short in ("huge", "plain", "host")
    }  # fmt: skip


def by_inode(spaces: dict[str, Namespace]) -> dict[int, Namespace]:
    return {one.inode: one for one in spaces.values()}


def test_a_huge_set_of_a_container_hides_only_its_own_rules(
    three: dict[str, Namespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(firewall, "_MAX_OUTPUT", 1 << 19)
    read_ = {name: firewall.read_firewalls(by_inode(three))[one.inode] for name, one in three.items()}
    assert [len(read_[name].rules) for name in ("host", "plain", "huge")] == [1, 1, 0]
    ((what, why),) = [(one.what, one.why) for one in read_["huge"].problems]
    assert (what, why) == ("can't read the whole output of nft", "it has more than 512 KiB")
    assert not read_["host"].problems and not read_["plain"].problems


def test_a_container_that_takes_too_long_is_read_last(
    three: dict[str, Namespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    read_one = firewall.read_firewall
    monkeypatch.setattr(firewall, "read_firewall", lambda one: asked.append(one.inode) or read_one(one))
    monkeypatch.setattr(firewall, "_SECONDS_EACH", 0.0)
    found = firewall.read_firewalls(by_inode(three))
    host, plain, huge = (three[name].inode for name in ("host", "plain", "huge"))
    assert found[host].rules and not found[host].problems, "the host's are read in any case"
    assert "took too long" in found[huge].problems[0].why and not found[plain].rules
    monkeypatch.undo()
    firewall._slow.discard(plain)
    monkeypatch.setattr(firewall, "read_firewall", lambda one: asked.append(one.inode) or read_one(one))
    found = firewall.read_firewalls(by_inode(three))
    assert asked[-3:] == [host, plain, huge] and all(len(one.rules) == 1 for one in found.values())
    assert huge not in firewall._slow, "the next time it comes in its turn"


def test_without_rights(inside_host: ThrowawayHost) -> None:
    inode = inside_host.inode

    def read_problem() -> list[list[str]]:
        firewall = read_firewall(Namespace(inode, is_host=True))
        return [[one.what, one.why, one.try_] for one in firewall.problems]

    ((what, why, try_),) = as_nobody(read_problem)
    assert "can't read" in what
    assert "CAP_NET_ADMIN" in why
    assert try_ == "run it as root"


def test_a_removed_namespace(host: ThrowawayHost) -> None:
    host.namespace("gone")
    namespace = Namespace(host.inode_of("gone"), entry=f"/run/netns/{host.full('gone')}")
    subprocess.run(["ip", "netns", "del", host.full("gone")], check=True)
    with pytest.raises(NamespaceGone):
        read_firewall(namespace)


def table(host: ThrowawayHost, backend: str) -> None:
    """Create all of IPTABLES and IP6TABLES."""
    host.run(f"iptables-{backend} -N own")
    for program, rules in (("iptables", IPTABLES), ("ip6tables", IP6TABLES)):
        for table, chain, text in rules:
            host.run(f"{program}-{backend} -t {table} -A {chain} {text}")
