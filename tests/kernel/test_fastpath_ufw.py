"""The fast path together with ufw, as Ubuntu and Debian ship it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.fastlab import V4, V6, FastLab
from tests.kernel.streams import FAMILIES, talks_fast
from tests.support.fastpath import Talk
from tests.support.waiting import eventually

pytestmark = pytest.mark.root
_RULES = Path(__file__).parents[1] / "support" / "rules"


@pytest.fixture(scope="module")
def ufw_lab() -> Iterator[FastLab]:
    """A host with Docker's rules before ufw's."""
    with FastLab() as made:
        made.run_with("iptables-nft-restore --noflush", (_RULES / "ufw.ip4").read_text())
        made.run_with("ip6tables-nft-restore --noflush", (_RULES / "ufw.ip6").read_text())
        yield made


@pytest.mark.parametrize("family", FAMILIES)
def test_connections_go_fast_beside_ufw(ufw_lab: FastLab, family: int) -> None:
    if not ufw_lab.fast:
        ufw_lab.accelerate()
    far = {4: V4, 6: V6}[family]["far"]
    ping = f"ping -c1 -W2 {far}"
    assert eventually(lambda: " 0% packet loss" in ufw_lab.run(ping, inside="a", check=False)), "no way there"
    with Talk(ufw_lab.host, "a", "far", far, 7000 + family, family=FAMILIES[family]) as tcp:
        assert talks_fast(ufw_lab, tcp)
