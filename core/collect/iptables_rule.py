"""What one iptables rule means: from the options of iptables-extensions(8) to FirewallRule's fields."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_WORD = re.compile(r'"((?:[^"\\]|\\.)*+)"|(\S+)', re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)

_FIELDS = {
    "-s": "src", "--src-range": "src", "-d": "dst", "--dst-range": "dst", "-i": "iif", "-o": "oif",
    "-p": "l4_proto", "--sport": "sport", "--sports": "sport", "--dport": "dport", "--dports": "dport",
    "--ctstate": "ct_state", "--state": "ct_state", "--comment": "comment",
}  # fmt: skip
# Modules that match nothing by themselves: their options tell.
_MODULES = {
    "tcp", "udp", "udplite", "sctp", "dccp", "multiport", "conntrack", "state", "iprange", "comment", "set",
}  # fmt: skip
_VERDICTS = {
    "ACCEPT": "accept", "DROP": "drop", "RETURN": "return", "REJECT": "reject", "MASQUERADE": "masquerade",
    "SNAT": "snat", "DNAT": "dnat", "REDIRECT": "redirect", "NOTRACK": "notrack", "NFQUEUE": "queue",
    "QUEUE": "queue", "TPROXY": "tproxy",
}  # fmt: skip
# Targets that let the packet go on to the next rule.
_PASSING = {
    "AUDIT", "CHECKSUM", "CLASSIFY", "CONNMARK", "CONNSECMARK", "CT", "DSCP", "ECN", "HL", "HMARK",
    "IDLETIMER", "LED", "LOG", "MARK", "NFLOG", "RATEEST", "SECMARK", "SET", "SYNPROXY", "TCPMSS",
    "TCPOPTSTRIP", "TEE", "TOS", "TRACE", "TTL", "ULOG",
}  # fmt: skip
_ADDRESS_AND_PORT = re.compile(r"\[(.*?)\](?::(.*))?|([^:]*)(?::([^:]*))?")


def understand(rule: str, chain: str) -> dict[str, Any]:
    """The fields of FirewallRule that a rule of `chain`, as iptables-save prints it, gives."""
    fields: dict[str, Any] = {}
    for option, value, negated in _options(rule):
        if option in ("-j", "-g"):
            fields |= {} if "verdict" in fields else _verdict(option, value, chain)
        elif option.startswith("--to"):
            fields |= _destination(option, value)
        elif option == "--notrack":
            fields["verdict"] = "notrack"
        elif "verdict" not in fields:
            _match(fields, option, value, negated)
    return fields


def _words(rule: str) -> Iterator[tuple[str, bool]]:
    """Each word behind "-A CHAIN", and whether it was quoted."""
    found = _WORD.finditer(rule)
    next(found), next(found)
    for word in found:
        quoted, bare = word.groups()
        yield (bare, False) if quoted is None else (_ESCAPED.sub(r"\1", quoted), True)


def _options(rule: str) -> Iterator[tuple[str, str, bool]]:
    """Each option with the words up to the next one, and whether a "!" stands before it."""
    option, values, negated, negates = "", list[str](), False, False
    for word, quoted in _words(rule):
        if quoted or (option == "--comment" and not values):
            values.append(word)
        elif word == "!":
            negates = True
        elif word.startswith("-") and len(word) > 1:
            if option:
                yield option, " ".join(values), negated
            option, values, negated, negates = word, [], negates, False
        else:
            values.append(word)
    if option:
        yield option, " ".join(values), negated


def _match(fields: dict[str, Any], option: str, value: str, negated: bool) -> None:
    if option == "-m":
        known = value in _MODULES
    elif option == "--match-set":
        known = _match_set(fields, value, negated)
    else:
        known = option in _FIELDS and _set(fields, _FIELDS[option], _plain(option, value), negated)
    if not known:
        fields["understood"] = False


def _match_set(fields: dict[str, Any], value: str, negated: bool) -> bool:
    name, _, side = value.rpartition(" ")
    return side in ("src", "dst") and _set(fields, side, f"@{name}", negated)


def _set(fields: dict[str, Any], name: str, text: str, negated: bool) -> bool:
    """Fill a field; False where another match has filled it."""
    text = f"!{text}" if negated else text
    return bool(fields.setdefault(name, text) == text)


def _plain(option: str, value: str) -> str:
    """A value as FirewallRule writes it."""
    if option in ("-s", "-d"):
        return value.removesuffix("/32" if ":" not in value else "/128")
    if option in ("-i", "-o"):
        return f"{value[:-1]}*" if value.endswith("+") else value
    if "port" in option:
        return value.replace(":", "-")
    if "state" in option:
        return value.lower()
    return "icmpv6" if value == "ipv6-icmp" else value


def _verdict(option: str, target: str, chain: str) -> dict[str, Any]:
    if target == "NETMAP":
        return {"verdict": "snat" if chain == "POSTROUTING" else "dnat"}
    if target in _VERDICTS:
        return {"verdict": _VERDICTS[target]}
    if target in _PASSING:
        return {"verdict": ""}
    return {"verdict": "jump" if option == "-j" else "goto", "target": target}


def _destination(option: str, value: str) -> dict[str, Any]:
    return {"to_port": value} if option == "--to-ports" else destination(value)


def destination(value: str) -> dict[str, Any]:
    """The fields of FirewallRule for "ADDRESS", "ADDRESS:PORT", "[ADDRESS]:PORT" or ":PORT"; ADDRESS and PORT
    may be ranges."""
    if value.count(":") > 1 and not value.startswith("["):
        return {"to_address": value}
    found = _ADDRESS_AND_PORT.fullmatch(value)
    bracketed, port6, address, port4 = found.groups(default="") if found else ("", "", value, "")
    return {"to_address": bracketed or address, "to_port": port6 or port4}
