"""What one nftables rule means: from the expressions of libnftables-json(5) to the fields of FirewallRule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.model import Choice, Translation

_METAS = {"iif": "iif", "iifname": "iif", "ibrname": "iif", "oif": "oif", "oifname": "oif", "obrname": "oif"}
_PORTS = ("sport", "dport")
_TRANSPORTS = ("tcp", "udp", "udplite", "sctp", "dccp", "th")
_IP_FIELDS = {"saddr": "src", "daddr": "dst", "protocol": "l4_proto", "nexthdr": "l4_proto"}
_PLAIN_VERDICTS = {"accept", "drop", "return", "reject", "notrack", "queue", "tproxy"}
_TRANSLATING = {"dnat", "snat", "masquerade", "redirect"}
# Statements that neither match nor decide.
_SILENT = {"log", "mangle", "counter", "set", "map", "flow", "dup", "secmark", "ct helper", "continue"}
_XT_VERDICTS = {
    "MASQUERADE": "masquerade", "DNAT": "dnat", "SNAT": "snat", "REDIRECT": "redirect", "REJECT": "reject",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class NamedObjects:
    """What the rules of one table refer to by name, as nft -j lists it."""

    maps: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    counters: dict[str, Mapping[str, Any]] = field(default_factory=dict)


def understand(expressions: Sequence[Mapping[str, Any]], named: NamedObjects) -> dict[str, Any]:
    """The fields of FirewallRule that these expressions give. Raises KeyError, TypeError and the like for
    what is no answer of nft's."""
    meaning = _Meaning(named)
    for expression in expressions:
        for kind, value in expression.items():
            meaning.add(kind, value)
    return meaning.fields


class _Meaning:
    """A rule's fields in the making."""

    def __init__(self, named: NamedObjects) -> None:
        self.named = named
        self.fields: dict[str, Any] = {}

    def add(self, kind: str, value: Any) -> None:
        """Add one expression."""
        if kind == "match":
            self._match(value)
        elif kind == "counter":
            self._counter(value)
        elif kind in ("jump", "goto"):
            self.fields |= {"verdict": kind, "target": value["target"]}
        elif kind in _PLAIN_VERDICTS:
            self.fields["verdict"] = kind
        elif kind in _TRANSLATING:
            self.fields["verdict"] = kind
            self._translate(value or {})
        elif kind == "vmap":
            self._verdict_map(value)
        elif kind == "xt":
            self._extension(value)
        elif kind not in _SILENT:
            self._not_told()

    def _not_told(self) -> None:
        self.fields["understood"] = False

    def _match(self, match: Mapping[str, Any]) -> None:
        name, implied = _field(match["left"])
        text = _text(match["right"])
        self._set("l4_proto", implied)
        if not name or text is None or match["op"] not in ("==", "in", "!="):
            self._not_told()
            return
        self._set(name, f"!{text}" if match["op"] == "!=" else text)

    def _set(self, name: str, text: str) -> None:
        if text and self.fields.setdefault(name, text) != text:
            # Two matches on one thing: the fields hold the first.
            self._not_told()

    def _counter(self, value: Any) -> None:
        counter = self.named.counters.get(value) if isinstance(value, str) else value
        if counter and "packets" in counter:
            self.fields |= {"packets": int(counter["packets"]), "bytes": int(counter["bytes"])}

    def _translate(self, value: Mapping[str, Any]) -> None:
        address = value.get("addr")
        if isinstance(address, Mapping) and "map" in address:
            self._translate_by_map(address["map"])
        elif address is not None:
            self.fields["to_address"] = _text(address) or ""
        if "port" in value:
            port = _text(value["port"])
            self.fields["to_port"] = port or ""
            if port is None:
                self._not_told()

    def _translate_by_map(self, mapped: Mapping[str, Any]) -> None:
        found = tuple(self._translations(mapped))
        if found:
            self.fields["translations"] = found
            return
        # The key is a number drawn, a mark or the like: only the addresses to choose from can be told.
        addresses = [_text(_parts(data)[0]) for _, data in self._elements(mapped["data"])]
        self.fields["to_address"] = ",".join(address for address in addresses if address)
        self._not_told()

    def _elements(self, data: Any) -> Sequence[Any]:
        if isinstance(data, str):
            found: Sequence[Any] = self.named.maps.get(data.removeprefix("@"), {}).get("elem", ())
            return found
        elements: Sequence[Any] = data["set"]
        return elements

    def _translations(self, mapped: Mapping[str, Any]) -> Iterator[Translation]:
        """What a map's elements translate; none where its key is not among the fields."""
        keys = [_field(part) for part in _parts(mapped["key"])]
        if not all(name for name, _ in keys):
            return
        for key, data in self._elements(mapped["data"]):
            texts = [_text(part) or "" for part in _parts(key)]
            matches = {"l4_proto": next((implied for _, implied in keys if implied), "")}
            matches |= {name: text for (name, _), text in zip(keys, texts, strict=True)}
            address, *port = (_text(part) or "" for part in _parts(data))
            known = {name: text for name, text in matches.items() if name in Translation.__slots__}
            yield Translation(**known, to_address=address, to_port="".join(port))

    def _verdict_map(self, value: Mapping[str, Any]) -> None:
        targets = dict.fromkeys(
            target["target"]
            for _, verdict in self._elements(value["data"])
            for kind, target in verdict.items()
            if kind in ("jump", "goto")
        )
        self.fields |= {"verdict": "vmap", "target": ",".join(targets), "understood": False}
        name, _ = _field(value["key"])
        if name:
            self.fields |= {"chosen_by": name, "choices": tuple(self._choices(value["data"]))}

    def _choices(self, data: Any) -> Iterator[Choice]:
        for key, verdict in self._elements(data):
            ((kind, target),) = verdict.items()
            yield Choice(_text(key) or "", kind, target["target"] if target else "")

    def _extension(self, value: Mapping[str, Any]) -> None:
        """An extension of iptables, of which nft's JSON tells the name alone."""
        if value["type"] == "target":
            self.fields["verdict"] = _XT_VERDICTS.get(value["name"], "")
        elif value["name"] != "comment":
            self._not_told()


def _field(left: Any) -> tuple[str, str]:
    """The field of FirewallRule that the left side of a match is ("" where none), and the transport protocol
    that it implies."""
    if not isinstance(left, Mapping):
        return "", ""
    if "meta" in left:
        key = left["meta"]["key"]
        return ("l4_proto" if key == "l4proto" else _METAS.get(key, "")), ""
    if "ct" in left:
        return ("ct_state" if left["ct"]["key"] == "state" else ""), ""
    if "payload" in left:
        protocol, name = left["payload"].get("protocol", ""), left["payload"].get("field", "")
        if protocol in ("ip", "ip6"):
            return _IP_FIELDS.get(name, ""), ""
        if protocol in _TRANSPORTS and name in _PORTS:
            return name, protocol.removeprefix("th")
        if protocol in ("icmp", "icmpv6"):
            return "", protocol
    return "", ""


def _parts(value: Any) -> Sequence[Any]:
    """The members of a concatenation, the value alone where it is none; timeouts and the like left out."""
    if isinstance(value, Mapping) and "elem" in value:
        value = value["elem"]["val"]
    if isinstance(value, Mapping) and "concat" in value:
        members: Sequence[Any] = value["concat"]
        return members
    return [value]


def _text(value: Any) -> str | None:
    """A value as FirewallRule writes it, None where it is more than that."""
    if isinstance(value, str | int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, list):
        return _joined(value)
    if not isinstance(value, Mapping):
        return None
    if "set" in value:
        return _joined(value["set"])
    if "elem" in value:
        return _text(value["elem"]["val"])
    if "prefix" in value:
        return f"{value['prefix']['addr']}/{value['prefix']['len']}"
    if "range" in value:
        first, last = value["range"]
        return f"{first}-{last}"
    return None


def _joined(values: Sequence[Any]) -> str | None:
    texts = [_text(value) for value in values if value is not None]
    return ",".join(text for text in texts if text is not None) if None not in texts else None
