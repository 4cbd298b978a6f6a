"""The nftables table of vnet: nft accepts it, and objects are read back."""

from __future__ import annotations

import re
import subprocess

import pytest

from core.plan.rules import EMPTY, render
from core.plan.tags import VnetNetwork, VnetPort, VnetState
from core.text import format_tag, parse_tag

SHOP = VnetNetwork("shop", "nat", "br-shop", ("10.9.0.0/24", "fd09::/64"), ("10.9.0.1", "fd09::1"))
VAULT = VnetNetwork("vault", "internal", "br-vault", ("10.8.0.0/24",), ("10.8.0.1",))
LAN = VnetNetwork("lan", "routed", "br-lan", ("10.7.0.0/24",), ("10.7.0.1",))
WEB = VnetPort("netns:web", "tcp", "", "8080", "10.9.0.2", "80")


def text_of(*networks: VnetNetwork, ports: tuple[VnetPort, ...] = (), joined: frozenset = frozenset()) -> str:
    return render(VnetState({one.name: one for one in networks}, ports=ports, joined=joined))


def chain(text: str, name: str) -> list[str]:
    """Return the rules of one chain, without its first line (type and hook)."""
    body = re.search(rf"\tchain {name} \{{\n(.*?)\t\}}\n", text, re.DOTALL)
    assert body
    return [line.strip() for line in body[1].splitlines() if "hook" not in line]


def test_without_networks_there_is_no_table() -> None:
    assert render(VnetState()) == EMPTY == "table inet vnet\ndelete table inet vnet\n"


def test_the_text_replaces_the_table() -> None:
    assert text_of(SHOP).startswith(f"{EMPTY}table inet vnet {{\n")


@pytest.mark.root
@pytest.mark.needs("nft")
@pytest.mark.parametrize(
    "ports",
    [
        (WEB,),
        (VnetPort("netns:web", "udp", "192.0.2.1", "53", "10.9.0.2", "53"),),
        (VnetPort("netns:web", "sctp", "", "8000-8010", "10.9.0.2", "8000-8010"),),
        (VnetPort("netns:web", "tcp", "", "8000-8002", "10.9.0.2", "80-82"),),
        (VnetPort("netns:web", "tcp", "2001:db8::1", "8080", "fd09::2", "80"),),
        (VnetPort("netns:web", "tcp", "", "8000-8002", "fd09::2", "80-82"),),
    ],
)
def test_nft_accepts_the_table(ports: tuple[VnetPort, ...]) -> None:
    text = text_of(SHOP, VAULT, LAN, ports=ports, joined=frozenset({("shop", "vault")}))
    words = ["unshare", "--net", "nft", "--check", "-f", "-"]
    done = subprocess.run(words, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_nat_network() -> None:
    text = text_of(SHOP)
    assert chain(text, "postrouting") == [
        'ip saddr 10.9.0.0/24 oifname != "br-shop" counter masquerade comment "vnet nat shop"'
    ]
    assert 'oifname "br-shop" counter drop comment "vnet unasked"' in chain(text, "forward")


def test_nat66_only_on_request() -> None:
    assert "ip6 saddr" not in text_of(SHOP)
    asked = VnetNetwork("shop", "nat", "br-shop", SHOP.subnets, SHOP.gateways, nat66=True)
    assert 'ip6 saddr fd09::/64 oifname != "br-shop"' in text_of(asked)


def test_internal_and_routed_networks_are_not_translated() -> None:
    text = text_of(VAULT, LAN)
    assert chain(text, "postrouting") == []
    assert 'iifname "br-vault" counter drop comment "vnet internal"' in chain(text, "forward")
    assert 'oifname "br-lan" counter accept comment "vnet routed"' in chain(text, "forward")


def test_networks_are_isolated_unless_joined() -> None:
    apart = 'iifname { "br-shop", "br-vault" } oifname { "br-shop", "br-vault" } counter drop'
    alone = chain(text_of(SHOP, VAULT), "forward")
    assert any(rule.startswith(apart) for rule in alone)
    text = text_of(SHOP, VAULT, joined=frozenset({("shop", "vault")}))
    rules = chain(text, "forward")
    way = 'iifname "br-shop" oifname "br-vault" counter accept comment "vnet join shop vault"'
    assert rules.index(way) < next(at for at, rule in enumerate(rules) if rule.startswith(apart))
    assert 'ip saddr 10.9.0.0/24 oifname "br-vault" accept' in chain(text, "postrouting")[0]


def test_published_port() -> None:
    text = text_of(SHOP, ports=(WEB,))
    assert chain(text, "publish") == [
        "meta nfproto ipv4 fib daddr type local tcp dport 8080 counter dnat ip to 10.9.0.2:80 "
        'comment "vnet publish tcp/8080 80 netns:web"'
    ]
    assert chain(text, "prerouting") == chain(text, "output") == ["jump publish"]
    hairpin = "ct status dnat ip saddr 10.9.0.0/24 ip daddr 10.9.0.2 counter masquerade"
    assert chain(text, "postrouting")[0].startswith(hairpin)


def test_containers_cannot_reach_the_loopback_address() -> None:
    assert chain(text_of(SHOP), "guard") == [
        'iifname "br-shop" ip daddr 127.0.0.0/8 drop comment "vnet loopback shop"'
    ]


@pytest.mark.parametrize("text", ["plain", "a b", 'a"b', "a=b", "a%20b", "ü\n\u202e", "", "vnet:"])
def test_tags_keep_any_text(text: str) -> None:
    made = format_tag([("of", text), ("net", "shop"), ("of", "more")])
    assert made.isascii() and made.isprintable() and '"' not in made
    assert parse_tag(made) == {"of": (text, "more"), "net": ("shop",)}


def test_other_aliases_are_not_tags() -> None:
    assert parse_tag("uplink to vnet:") is None and parse_tag("") is None
