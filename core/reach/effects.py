"""Apply what rules set besides their verdicts: marks and the conntrack zone."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache

from core.model import FirewallRule
from core.reach.packet import Packet

_NFT = re.compile(r"\b(?P<what>ct mark|(?:meta )?mark|ct zone|ct original zone) set (?P<value>\S+(?: \S+)*)")
_NUMBER = re.compile(r"0x[0-9a-f]+|\d+")
_MARK = re.compile(r"-j MARK --set-x?mark (0x[0-9a-f]+)(?:/(0x[0-9a-f]+))?")
_CONNMARK = re.compile(r"-j CONNMARK --set-x?mark (0x[0-9a-f]+)(?:/(0x[0-9a-f]+))?")
_ZONE = re.compile(r"-j CT .*--zone(?:-orig)? (\d+)")
_ALL = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Effect:
    """What a rule sets: "mark", "ct_mark" or "zone".

    `value` is the new value within `mask`; None if it isn't a number. `copied` is "mark" or "ct_mark" if the
    value is that of the packet or of its connection.
    """

    what: str
    value: int | None
    mask: int = _ALL
    copied: str = ""


def effect_of(rule: FirewallRule) -> Effect | None:
    """Return what a rule sets, None for nothing."""
    return _effect(rule.backend, rule.text)


@lru_cache(8192)
def _effect(backend: str, text: str) -> Effect | None:
    return _of_nft(text) if backend == "nft" else _of_iptables(text)


def _of_nft(text: str) -> Effect | None:
    found = _NFT.search(text) if " set " in text else None
    if found is None:
        return None
    what = {"ct mark": "ct_mark", "ct zone": "zone", "ct original zone": "zone"}.get(found["what"], "mark")
    words = found["value"].split()
    if words[:2] == ["ct", "mark"]:
        return Effect(what, None, copied="ct_mark" if len(words) == 2 else "")
    if words[:2] == ["meta", "mark"] or words[0] == "mark":
        return Effect(what, None, copied="mark" if words[-1] == "mark" else "")
    is_number = _NUMBER.fullmatch(words[0]) and words[1:2] not in (["and"], ["or"], ["xor"], ["&"], ["|"])
    return Effect(what, int(words[0], 0) if is_number else None)


def _of_iptables(text: str) -> Effect | None:
    if found := _MARK.search(text):
        return Effect("mark", int(found[1], 16), int(found[2] or "0xffffffff", 16))
    if found := _CONNMARK.search(text):
        return Effect("ct_mark", int(found[1], 16), int(found[2] or "0xffffffff", 16))
    if "-j CONNMARK" in text:
        plain = "mask" not in text.replace("0xffffffff", "").replace("--nfmask ", "").replace("--ctmask ", "")
        if "--save-mark" in text:
            return Effect("ct_mark", None, copied="mark" if plain else "")
        return Effect("mark", None, copied="ct_mark" if plain else "")
    if found := _ZONE.search(text):
        return Effect("zone", int(found[1]))
    return Effect("mark", None) if "-j MARK" in text else None


def apply_effect(effect: Effect, packet: Packet, certain: bool) -> Packet:
    """Return the packet after a rule that matches, or may match (not `certain`)."""
    if effect.what == "zone":
        return replace(packet, zone=effect.value or 0) if certain else packet
    old = packet.mark if effect.what == "mark" else packet.ct_mark
    new = effect.value
    if effect.copied:
        new = packet.mark if effect.copied == "mark" else packet.ct_mark
    elif new is not None and effect.mask != _ALL:
        new = None if old is None else old & ~effect.mask | new
    if not certain and new != old:
        new = None
    return replace(packet, mark=new) if effect.what == "mark" else replace(packet, ct_mark=new)
