"""What `vnet-tui why` and `doctor` print in the demo lab, compared with ip(8), nft(8) and ping(8)."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from core.lab import Lab, LabSettings
from tests.support.machine import ROOT

pytestmark = pytest.mark.root

_MAIN = "import sys; from tui.cli import main; sys.exit(main())"
_VNET = f"vnet() {{ {sys.executable} -P -c '{_MAIN}' \"$@\"; }}\n"


class Shell:
    """Run commands on the lab's host; `vnet` is vnet-tui."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def run(self, script: str) -> tuple[int, str]:
        """Return the exit status and both outputs."""
        argv = ["env", f"PYTHONPATH={ROOT}", "VNET_STATE=/run/vnet-state", "COLUMNS=200", "sh", "-c"]
        popen = self.lab.popen_inside
        with popen(
            [*argv, _VNET + script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as one:
            output, _ = one.communicate(timeout=120)
        return one.returncode, output

    def words(self, script: str) -> str:
        """Return the output in one line with single spaces."""
        return " ".join(self.run(script)[1].split())

    @contextmanager
    def fault(self, name: str) -> Iterator[None]:
        """Inject a fault, and undo it."""
        self.lab.inject(name)
        try:
            yield
        finally:
            self.lab.undo_fault(name)


@pytest.fixture(scope="module")
def shell() -> Iterator[Shell]:
    with Lab(LabSettings(traffic=False, healthy=True)) as lab:
        yield Shell(lab)


def test_a_target_without_address_gets_no_probe(shell: Shell) -> None:
    status, output = shell.run("vnet why web1 vault --probe")
    assert status == 1
    assert "vault is not reachable from web1 because vault has no address." in " ".join(output.split())
    assert "can't" not in output
    status, output = shell.run("vnet why web1 vault --probe --json")
    assert (status, json.loads(output)["verdict"], "probe" in json.loads(output)) == (1, "stop", False)


def test_a_missing_masquerade_is_one_hop(shell: Shell) -> None:
    with shell.fault("masquerade-missing"):
        answer = json.loads(shell.run("vnet why web2 outside --json")[1])
    hops = [hop for hop in answer["there"] if "untranslated" in hop["text"]]
    assert [(hop["kind"], hop["verdict"]) for hop in hops] == [("nat", "stop")]


_RULES = "nft -s list chain inet hostfw forward"


def test_a_repair_between_networks_accepts_only_what_was_asked(shell: Shell) -> None:
    before = shell.run(_RULES)[1]
    shell.run("vnet why web1 cache --port 6379 --fix --yes")
    try:
        added = set(shell.run(_RULES)[1].splitlines()) - set(before.splitlines())
        assert [" ".join(one.split()) for one in added if "accept" in one] == [
            'iifname "br-shop" oifname "br-data" ip daddr 10.89.0.3 tcp dport 6379 accept'
        ]
        connect = "ip netns exec web1 timeout 2 bash -c 'echo > /dev/tcp/10.89.0.%s/%s'"
        assert shell.run(connect % (3, 6379))[0] == 0
        assert shell.run("ip netns exec web1 ping -c 1 -W 1 10.89.0.3")[0] == 1
        assert shell.run("ip netns exec web1 ping -c 1 -W 1 10.89.0.2")[0] == 1
    finally:
        shell.run("vnet undo")
    assert "10.89.0.3" not in shell.run(_RULES)[1]


def test_a_repair_for_ping_accepts_echo_requests(shell: Shell) -> None:
    shell.run("vnet why web1 db --fix --yes")
    try:
        assert "ip daddr 10.89.0.2 icmp type echo-request accept" in shell.run(_RULES)[1]
        assert shell.run("ip netns exec web1 ping -c 1 -W 2 10.89.0.2")[0] == 0
        assert shell.run("vnet why web1 db")[0] == 0
    finally:
        shell.run("vnet undo")


def _findings(shell: Shell) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(shell.run("vnet doctor --json")[1])["findings"]
    return found


def _mtus(shell: Shell) -> dict[str, int]:
    links = json.loads(shell.run("ip -j link show")[1])
    return {link["ifname"]: link["mtu"] for link in links if link["ifname"] in ("br-shop", "v-api")}


def test_a_bridge_that_follows_a_port_is_no_finding(shell: Shell) -> None:
    shell.run("ip link set v-api mtu 1400")
    try:
        assert _mtus(shell) == {"br-shop": 1400, "v-api": 1400}
        (finding,) = _findings(shell)
        assert finding["sentence"].startswith("v-api (host) has MTU 1400")
        cause = json.loads(shell.run("vnet why web1 api --json")[1])["cause"]
        assert (cause["ref"], cause["fix"]["sentence"]) == (finding["ref"], "set the MTU of v-api to 1500")
        shell.run(f"vnet doctor --fix {finding['id']} --yes")
        assert _mtus(shell) == {"br-shop": 1500, "v-api": 1500}
        shell.run("vnet undo")
        assert _mtus(shell) == {"br-shop": 1400, "v-api": 1400}
    finally:
        shell.run("ip link set v-api mtu 1500")
    assert _findings(shell) == []


@pytest.mark.parametrize("packets", ["", "udp dport 53"], ids=["all", "dns"])
def test_a_policy_and_a_rule_are_two_findings(shell: Shell, packets: str) -> None:
    """A rule that drops packets of one container, and a policy that drops those of its network."""
    chain = "inet hostfw forward"
    rules = shell.run("nft list ruleset")[1]
    shell.run("nft flush chain inet hostfw from_shop")
    shell.run(f"nft insert rule {chain} ip saddr 172.18.0.3 {packets} counter drop comment audit")
    shell.run("ip netns exec web2 bash -c 'echo > /dev/udp/198.51.100.1/53'")
    try:
        found = [one for one in _findings(shell) if one["kind"] in ("forward", "dropped")]
        policy = [one for one in found if f"{chain}: policy drop" in one["evidence"]]
        rule = [one for one in found if any("172.18.0.3" in text for text in one["evidence"])]
        assert (len(policy), len(rule), len(found)) == (1, 1, 2), found
        assert policy[0]["fix"] and rule[0]["fix"]
        shell.run(f"vnet doctor --fix {policy[0]['id']} --yes")
        assert shell.run("ip netns exec web1 ping -c 1 -W 2 198.51.100.1")[0] == 0
        shell.run("vnet undo")
    finally:
        shell.run(f"nft -f - <<'END'\nflush ruleset\n{rules}\nEND")
    assert _findings(shell) == []


def test_the_probes_own_answer_is_no_drop(shell: Shell) -> None:
    answered = shell.words("vnet why web1 api --probe")
    assert "The probe agrees with the static answer: answered by 172.18.0.4" in answered
    assert "dropped" not in answered


def test_a_target_outside_that_answers_is_reachable(shell: Shell) -> None:
    output = shell.words("vnet why web1 outside --probe")
    assert output.startswith("web1 can reach outside: it answered the probe.")
    assert "leave this host; what" not in output
    assert "The target can be reached: answered by 198.51.100.7" in output
    assert "leave this host" in shell.words("vnet why web1 outside")


def test_a_probe_that_is_dropped_on_its_way_has_not_arrived(shell: Shell) -> None:
    """The host forwards the packet back to the port that it came from, whose hairpin mode is off."""
    output = shell.words("vnet why web1 host --port 8080 --probe")
    assert "hairpin mode of v-web1 is off" in output
    assert "arrive" not in output
    assert "no answer within 1.5 s, the request was " in output
    sentence = output.partition("The probe agrees with the static answer: ")[2].partition(". - ")[0]
    assert sentence.rstrip(".").endswith((" at v-web1 in host", " at br-shop in host"))
    kernel = [one for one in output.split(" - ") if one.startswith("kernel: ")]
    assert len(kernel) == len(set(kernel))


def test_a_published_port_is_pointed_at_instead_of_exposed(shell: Shell) -> None:
    answer = json.loads(shell.run("vnet why outside web1 --port 80 --json")[1])
    assert answer["sentence"].endswith("web1:80 is published as port 8080 of the host.")
    assert answer["cause"]["fix"]["command"] == "vnet-tui why outside host --port 8080"
    assert answer["cause"] in answer["there"]
    before = shell.run(_RULES)[1]
    status, output = shell.run("vnet why outside web1 --port 80 --fix --yes")
    assert (status != 0, "can't repair this" in output, shell.run(_RULES)[1]) == (True, True, before)
    assert shell.run("vnet why outside host --port 8080")[0] == 0
    other = json.loads(shell.run("vnet why outside api --port 3478/udp --json")[1])
    assert other["cause"]["fix"]["command"] == "vnet-tui why outside host --port 3478/udp"


def test_the_example_address_of_the_outside_is_explained(shell: Shell) -> None:
    assert "from web1 to outside (198.51.100.7, an example address)" in shell.words("vnet why web1 outside")
    assert "example" not in shell.words("vnet why web1 198.51.100.7")
    with shell.fault("container-no-default-route"):
        output = shell.words("vnet why api outside")
        assert "because api has no default route." in output
        assert "Try: add the default route via 172.18.0.1" in output
        (finding,) = _findings(shell)
    assert finding["sentence"].startswith("api has no default route: ")


@pytest.mark.parametrize(
    ("words", "because", "advice"),
    [
        ("vault web1", "vault is attached to no network, it has only a loopback link", "attach it"),
        ("web1 fd19:b10c::2", "web1 has no IPv6 address", "give it an IPv6 address"),
    ],
)
def test_advice_is_possible(shell: Shell, words: str, because: str, advice: str) -> None:
    output = shell.words(f"vnet why {words}")
    assert f"because {because}." in output and f"Try: {advice}" in output
    assert "default" not in output


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("br-shop", "it is a bridge, which is no end of packets. Try: its address 172.18.0.1"),
        ("v-web1", "it is a link of the host"),
        ("999.1.2.3", "it isn't an IPv4 or IPv6 address"),
        ("fd00::zz:1", "no container, namespace or address has that name"),
        ("1:2:3", "it isn't an IPv4 or IPv6 address"),
        ("example.com", "names of other hosts aren't resolved. Try: its address"),
        ("web3", "no container, namespace or address has that name. Try: web"),
    ],
)
def test_texts_that_are_no_end_get_their_reason(shell: Shell, text: str, reason: str) -> None:
    status, output = shell.run(f"vnet why web1 {text}")
    assert status == 1 and f'can\'t find "{text}": {reason}' in " ".join(output.split())


def test_a_listening_port_is_shown_as_bridge_prints_it(shell: Shell) -> None:
    with shell.fault("stp-listening"):
        (finding,) = _findings(shell)
        shown = shell.words("bridge -d link show dev v-web2")
    command, _, state = finding["evidence"][0].partition(": ")
    assert (command, state) == ("bridge -d link show dev v-web2", "state listening")
    assert state in shown


def test_echo_requests_have_an_id_and_no_ports(shell: Shell) -> None:
    lines = shell.run("vnet trace web1 outside")[1].splitlines()
    requests = [line for line in lines if "echo request" in line]
    assert len(requests) >= 3
    shape = re.compile(
        r" (172\.18\.0\.2|192\.0\.2\.10) → 198\.51\.100\.7  id \d+ seq \d+  ttl \d+  echo request"
    )
    assert [line for line in requests if not shape.search(line)] == []
    tcp = shell.run("vnet trace web1 api --port 8000")[1]
    assert " → 172.18.0.4:8000 " in tcp and " id " not in tcp
