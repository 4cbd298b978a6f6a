"""The TOML file: errors with line numbers; an exported file changes nothing."""

from __future__ import annotations

import tomllib
from dataclasses import replace

import pytest

from core.plan import Plan, plan_all
from core.plan.desired_state import BadFile, Desired, difference, parse
from core.plan.export import export, toml_value
from core.plan.requests import (
    Attach,
    CreateContainer,
    CreateNetwork,
    Detach,
    Publish,
    RemoveContainer,
    RemoveNetwork,
    Unpublish,
)
from tests.support.host_builder import HOST
from tests.unit.test_plan import BARE, RULE, host, topology

FILE = """\
joined = [["shop", "vault"]]

[network.shop]
subnets = ["10.9.0.0/24"]

[network.vault]
kind = "internal"   # shut

[container.web]

[[attach]]
container = "web"
network = "shop"

[[publish]]
container = "web"
host_ports = 8080
container_ports = "80"
"""


def test_parse() -> None:
    assert parse(FILE) == Desired(
        (CreateNetwork("shop", subnets=("10.9.0.0/24",)), CreateNetwork("vault", "internal")),
        (CreateContainer("web"),),
        (Attach("web", "shop"),),
        (Publish("web", "8080", "80"),),
        (("shop", "vault"),),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[network.a]\nkind = 'nat'\ncolour = 'red'\n", 'line 3: unknown key "colour" in [network.a]'),
        ("[network.a]\n[network.b]\nmtu = 'x'\n", 'line 3: "mtu" in [network.b] must be an integer'),
        ("nets = 1\n", 'line 1: unknown table "nets"'),
        ("[nets.a]\n", 'line 1: unknown table "nets"'),
        (
            "[[attach]]\ncontainer='a'\nnetwork='b'\n[[attach]]\ncontainer='a'\nnet='b'\n",
            'line 6: unknown key "net"',
        ),
        ("[[attach]]\ncontainer='a'\n", "line 1: [attach] needs network"),
        ("[network.a]\nsubnets = [1]\n", "a list of text"),
        ("[network.a]\nnat66 = 1\n", "true or false"),
        ("[network.a]\nname = 'b'\n", 'line 2: unknown key "name"'),
        ("network = 3\n", "line 1: [network.NAME]"),
        ("publish = 3\n", "line 1: [[publish]]"),
        ("joined = ['a']\n", "list of pairs"),
        ("[network.a\n", "line 1"),
        ('[network."a b"]\ncolour = 1\n', 'line 2: unknown key "colour"'),
    ],
)
def test_mistakes_have_line_numbers(text: str, expected: str) -> None:
    with pytest.raises(BadFile) as caught:
        parse(text)
    assert any(expected in reason for reason in caught.value.reasons), caught.value.reasons


def test_the_exported_file_changes_nothing() -> None:
    now = topology(host(), (RULE,))
    desired = replace(parse(FILE), networks=parse(FILE).networks[:1], joined=())
    assert difference(desired, now) == ()


def test_missing_objects_are_requested_in_order() -> None:
    made = parse(FILE + '[container.api]\n[[attach]]\ncontainer = "api"\nnetwork = "vault"\n')
    requests = difference(made, topology(host()))
    names = [type(one).__name__ for one in requests]
    assert names == ["CreateNetwork", "CreateContainer", "Attach", "Publish", "Join"]
    assert isinstance(plan_all(requests, topology(host())), Plan)


def test_a_changed_network_is_created_again_with_its_members() -> None:
    made = parse(FILE.replace("10.9.0.0/24", "10.10.0.0/24"))
    requests = difference(made, topology(host(), (RULE,)))
    assert requests[0] == RemoveNetwork("shop")
    assert Attach("web", "shop") in requests and Publish("web", "8080", "80") in requests
    assert isinstance(plan_all(requests, topology(host(), (RULE,))), Plan)


def test_prune_only_removes_objects_of_vnet() -> None:
    made = host()
    lo = made.links[BARE][1]
    made.links[BARE][1] = replace(lo, alias="vnet:name=bare")
    made.bridge("br-other", ["10.99.0.1/24"])
    now = topology(made, (RULE,))
    assert difference(Desired(), now) == ()
    assert difference(Desired(), now, prune=True) == (RemoveContainer("bare"), RemoveNetwork("shop"))
    kept = Desired((CreateNetwork("shop"),), (CreateContainer("bare"),))
    assert difference(kept, now, prune=True) == (Unpublish("8080"), Detach("netns:web", "shop"))


def test_export_and_back() -> None:
    made = host()
    made.links[BARE][1] = replace(made.links[BARE][1], alias="vnet:name=bare")
    now = topology(made, (RULE,))
    desired = parse(export(now))
    assert [one.name for one in desired.networks] == ["shop"]
    assert desired.attachments == (Attach("netns:web", "shop", ("10.9.0.2",), "eth0"),)
    assert difference(desired, now, prune=True) == ()


def test_export_of_nothing() -> None:
    made = host()
    made.links[HOST] = {1: made.links[HOST][1]}
    assert parse(export(topology(made))) == Desired()


@pytest.mark.parametrize("text", ["a = " + "[" * 100_000, "a=" + "{a=" * 50_000, "mtu = " + "9" * 9000])
def test_deep_or_endless_values(text: str) -> None:
    with pytest.raises(BadFile):
        parse(text)


@pytest.mark.parametrize("text", ["box-\U0001f600", 'say "no" \\ \x7f\x01\t', "caf\u00e9"])
def test_any_text_survives_writing_and_reading(text: str) -> None:
    written = f"[{toml_value(text)}]\nlist = {toml_value([text])}\n"
    assert tomllib.loads(written) == {text: {"list": [text]}}
