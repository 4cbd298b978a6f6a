"""Looks for what stands in the fast path's way in this network namespace, and names it."""

from __future__ import annotations

import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bpf import judging, marks
from bpf.ruleset import read_rules
from core.collect.netlink import Netlink, attributes
from core.collect.tools import ToolFailed

_XFRM = 6
_GET_SPD_INFO, _SPD_INFO = 0x25, 1
_MOST = 20  # reasons told


@dataclass(frozen=True, slots=True)
class Obstacles:
    """`reasons` why nothing may be forwarded, in words; `marks_taken` where the bits of the ct mark are
    another's, so that none may even be written; `bridge_rules` whether there are rules for frames that
    conntrack never sees."""

    reasons: tuple[str, ...] = ()
    marks_taken: bool = False
    bridge_rules: bool = False


def find() -> Obstacles:
    """All that stands in the way now."""
    try:
        rules = read_rules()
    except ToolFailed as error:
        return Obstacles((f"the rules cannot be told: {error.what}: {error.why}",), bridge_rules=True)
    except OSError as error:
        return Obstacles((f"the rules cannot be read: {error.strerror}",), bridge_rules=True)
    except (KeyError, IndexError, ValueError, struct.error) as error:
        why = f"the rules were not understood ({type(error).__name__}: {error})"
        return Obstacles((why,), marks_taken=True, bridge_rules=True)
    users = judging.mark_users(rules)
    bits = f"bits 0x{marks.field_mask():08x} of the ct mark"
    reasons = [f"{bits} are used by a rule: {user}" for user in users] + judging.hindrances(rules)
    if has_ipsec_policies():
        reasons.append("IPsec policies (ip xfrm policy) decide about packets one by one")
    if _has_legacy_ebtables():
        reasons.append("ebtables-legacy is loaded, which tells nobody when its rules change")
    return Obstacles(tuple(reasons[:_MOST]), bool(users), rules.has_bridge_rules())


def _has_legacy_ebtables() -> bool:
    try:
        return any(line.startswith("ebtable_") for line in Path("/proc/modules").read_text().splitlines())
    except OSError:
        return False  # a kernel without modules


def has_ipsec_policies() -> bool:
    """Whether there is any policy of IPsec (xfrm); a kernel without has none."""
    with suppress(OSError), Netlink(_XFRM) as kernel:
        for message in kernel.request(_GET_SPD_INFO, bytes(4)):
            counts = attributes(message.payload, 4).get(_SPD_INFO, b"")
            return any(struct.unpack_from(f"={len(counts) // 4}I", counts))
    return False
