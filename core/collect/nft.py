"""Parse the output of nft(8) into chains and rules; call libnftables."""

from __future__ import annotations

import ctypes
import json
import re
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from core.collect.iptables import destination
from core.model import Chain, FirewallRule, Translation, VerdictCase
from core.netlink.client import NETFILTER, Netlink
from core.tools import ToolFailed, run_tool

# NFT_CTX_OUTPUT_* of nftables/libnftables.h, as for `nft -s`, `-a` and `-j`.
STATELESS, HANDLES, JSON = 1 << 2, 1 << 3, 1 << 4
# The library has global state, such as its cache of link names.
_library_lock = threading.Lock()


class NftError(Exception):
    """The library refused a command; the text is nft's error message."""


class Context:
    """A context of libnftables with a socket in the thread's network namespace.

    Call `run` in that namespace, and `close` at the end. The kernel frees deleted rules some milliseconds
    later. Closing a socket meanwhile waits for that, and then the creation of links waits as well.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        with Netlink(NETFILTER):
            pass  # libnftables would exit if the kernel had no such sockets
        with _library_lock:
            self._context: Any = library.nft_ctx_new(0)
        library.nft_ctx_buffer_output(self._context)
        library.nft_ctx_buffer_error(self._context)

    def run(self, text: str, output: int = 0) -> str:
        """Run nft commands and return the output. Raises NftError.

        `output` are flags such as JSON. Invalid UTF-8 becomes surrogates.
        """
        library, context = self._library, self._context
        library.nft_ctx_output_set_flags(context, output)
        with _library_lock:
            failed = library.nft_run_cmd_from_buffer(context, text.encode("utf-8", "surrogateescape"))
        printed = _string(library.nft_ctx_get_output_buffer(context))
        if failed:
            raise NftError(_string(library.nft_ctx_get_error_buffer(context)).strip() or "it was refused")
        return printed

    def close(self) -> None:
        """Close the socket."""
        self._library.nft_ctx_free(self._context)


def _string(buffer: bytes | None) -> str:
    return (buffer or b"").decode("utf-8", "surrogateescape")


@cache
def library() -> ctypes.CDLL | None:
    """Load libnftables; return None if it isn't installed."""
    try:
        found = ctypes.CDLL("libnftables.so.1")
    except OSError:
        return None
    found.nft_ctx_new.restype = ctypes.c_void_p
    for name in ("buffer_output", "buffer_error", "get_output_buffer", "get_error_buffer", "free"):
        getattr(found, f"nft_ctx_{name}").argtypes = [ctypes.c_void_p]
    for name in ("get_output_buffer", "get_error_buffer"):
        getattr(found, f"nft_ctx_{name}").restype = ctypes.c_char_p
    found.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
    found.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    return found


TableName = tuple[str, str]
Texts = Mapping[tuple[TableName, int], str]

_TABLE = re.compile(r"table (\S+) (.+) \{ # handle \d+(?: progname .*)?$")
_CHAIN = re.compile(r"\tchain .+ \{ # handle \d+$")
_RULE = re.compile(r"(.*) # handle (\d+)$", re.DOTALL)
_NAT_VERDICTS = ("dnat", "snat", "redirect")
_DESTINATIONS = {"to_address", "to_port", "translations"}
_TO = re.compile(r"(?:dnat|snat|redirect) to (\S+)")
# Lines of a chain that aren't rules.
_CHAIN_LINES = ("\t\ttype ", "\t\tcomment ")


@dataclass(frozen=True, slots=True)
class Ruleset:
    """Chains, rules and the elements of sets, as in core.model.Firewall."""

    chains: list[Chain]
    rules: list[FirewallRule]
    sets: dict[str, tuple[str, ...]]


def read_nft(tables: Collection[TableName]) -> Ruleset:
    """Read chains, rules and sets of these tables in the thread's network namespace.

    `tables` are (family, name). `nft -j` gives the meaning of rules (libnftables-json(5)), `nft -a` their
    text. Raises ToolFailed.
    """
    json_text = run_tool("nft", "-j", "list", "ruleset", package="nftables")
    printed = run_tool("nft", "-a", "-s", "list", "ruleset", package="nftables")
    return _parse(json_text, printed, tables)


def _parse(json_text: str, printed: str, tables: Collection[TableName]) -> Ruleset:
    try:
        objects = [
            (kind, item)
            for entry in json.loads(json_text)["nftables"]
            for kind, item in entry.items()
            if kind == "table" or (item.get("family"), item.get("table")) in tables
        ]
        rules = list(_rules(objects, _rule_texts(printed)))
        return Ruleset(_chains(objects), rules, dict(_sets(objects)))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = f"it isn't as libnftables-json(5) describes it ({type(error).__name__}: {error})"
        try_ = "run `nft -j list ruleset` to see it"
        raise ToolFailed("can't parse the output of nft", why, try_) from error


def read_table(name: TableName) -> Ruleset:
    """Read one existing table, without the rules' text; with libnftables if installed."""
    command = ("list", "table", *name)
    json_text = _run_by_library(" ".join(command)) or run_tool("nft", "-j", *command, package="nftables")
    return _parse(json_text, "", [name])


def _run_by_library(command: str) -> str:
    """Return the library's output in JSON, "" if it is missing or fails."""
    if not (found := library()):
        return ""
    try:
        context = Context(found)
        try:
            return context.run(command, JSON)
        finally:
            context.close()
    except (NftError, OSError):
        return ""


def _chains(objects: list[tuple[str, Any]]) -> list[Chain]:
    return [
        Chain(
            "nft", chain["family"], chain["table"], chain["name"], chain.get("hook", ""),
            chain.get("type", ""), chain.get("prio", 0), chain.get("policy", ""),
            _devices(chain.get("dev", ())),
        )
        for kind, chain in objects if kind == "chain"
    ]  # fmt: skip


def _devices(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(map(str, value))


def _sets(objects: list[tuple[str, Any]]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the elements of sets and maps whose key is one field."""
    for kind, item in objects:
        if kind in ("set", "map") and isinstance(item.get("type"), str):
            keys = (one[0] if kind == "map" else one for one in item.get("elem", ()))
            elements = tuple(_text(key) for key in keys)
            if None not in elements:
                known = tuple(text for text in elements if text is not None)
                yield f"{item['family']}/{item['table']}/{item['name']}", known


def _rules(objects: list[tuple[str, Any]], texts: Texts) -> Iterator[FirewallRule]:
    named: dict[TableName, NamedObjects] = {}
    for kind, item in objects:
        if kind in ("map", "counter"):
            objects_of_table = named.setdefault((item["family"], item["table"]), NamedObjects())
            by_name = objects_of_table.maps if kind == "map" else objects_of_table.counters
            by_name[item["name"]] = item
    for kind, rule in objects:
        if kind == "rule":
            table = (rule["family"], rule["table"])
            yield _rule(rule, named.get(table, NamedObjects()), texts)


def _rule(rule: Mapping[str, Any], named: NamedObjects, texts: Texts) -> FirewallRule:
    family, table, handle = rule["family"], rule["table"], rule["handle"]
    # A rule that was added between both runs of nft is shown as JSON until the next read.
    text = texts.get(((family, table), handle)) or json.dumps(rule["expr"])
    fields = rule_fields(rule["expr"], named)
    if fields.get("verdict") in _NAT_VERDICTS and not fields.keys() & _DESTINATIONS:
        fields |= _destination(text)
    return FirewallRule(
        "nft", family, table, rule["chain"], f"nft/{family}/{table}/{handle}", text,
        comment=rule.get("comment", ""), **fields,
    )  # fmt: skip


def _destination(text: str) -> dict[str, Any]:
    """Parse a destination in the text; nft's JSON lacks it for targets of iptables."""
    found = _TO.search(text)
    return destination(found[1]) if found else {}


def _rule_texts(printed: str) -> Texts:
    """Return the text of each rule by table and handle."""
    texts: dict[tuple[TableName, int], str] = {}
    table: TableName = ("", "")
    in_chain, incomplete = False, ""
    for line in printed.split("\n"):
        if not in_chain:
            if found := _TABLE.match(line):
                table = (found[1], found[2])
            in_chain = bool(_CHAIN.match(line))
        elif line == "\t}" and not incomplete:
            in_chain = False
        elif incomplete or not line.startswith(_CHAIN_LINES):
            # A comment may contain newlines: a rule ends with its handle.
            incomplete += f"\n{line}" if incomplete else line.strip()
            if found := _RULE.match(incomplete):
                texts[table, int(found[2])] = found[1]
                incomplete = ""
    return texts


def read_rule_texts(family: str, table: str, chain: str) -> list[tuple[int, str]]:
    """Return handle and text of each rule of a chain, in order. Raises ToolFailed."""
    printed = run_tool("nft", "-a", "-s", "list", "chain", family, table, chain, package="nftables")
    return [(handle, text) for (_, handle), text in _rule_texts(printed).items()]


_METAS = {"iif": "iif", "iifname": "iif", "ibrname": "iif", "oif": "oif", "oifname": "oif", "obrname": "oif"}
_PORTS = ("sport", "dport")
_TRANSPORTS = ("tcp", "udp", "udplite", "sctp", "dccp", "th")
_IP_FIELDS = {"saddr": "src", "daddr": "dst", "protocol": "l4_proto", "nexthdr": "l4_proto"}
_PLAIN_VERDICTS = {"accept", "drop", "return", "reject", "notrack", "queue", "tproxy"}
_TRANSLATIONS = {"dnat", "snat", "masquerade", "redirect"}
# Statements that neither match nor give a verdict.
_SILENT = {"log", "mangle", "counter", "set", "map", "flow", "dup", "secmark", "ct helper", "continue"}
_XT_VERDICTS = {
    "MASQUERADE": "masquerade", "DNAT": "dnat", "SNAT": "snat", "REDIRECT": "redirect", "REJECT": "reject",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class NamedObjects:
    """The maps and counters of one table by name, as `nft -j` prints them."""

    maps: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    counters: dict[str, Mapping[str, Any]] = field(default_factory=dict)


def rule_fields(expressions: Sequence[Mapping[str, Any]], named: NamedObjects) -> dict[str, Any]:
    """Convert the expressions of a rule into fields of FirewallRule.

    Raises KeyError, TypeError and the like for malformed expressions.
    """
    builder = _FieldBuilder(named)
    for expression in expressions:
        for kind, value in expression.items():
            builder.add(kind, value)
    return builder.fields


class _FieldBuilder:
    """Build the fields of FirewallRule from expressions."""

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
        elif kind in _TRANSLATIONS:
            self.fields["verdict"] = kind
            self._translate(value or {})
        elif kind == "vmap":
            self._verdict_map(value)
        elif kind == "xt":
            self._extension(value)
        elif kind not in _SILENT:
            self._mark_incomplete()

    def _mark_incomplete(self) -> None:
        self.fields["understood"] = False

    def _match(self, match: Mapping[str, Any]) -> None:
        name, implied = _field(match["left"])
        text = _text(match["right"])
        self._set("l4_proto", implied)
        if not name or text is None or match["op"] not in ("==", "in", "!="):
            self._mark_incomplete()
            return
        self._set(name, f"!{text}" if match["op"] == "!=" else text)

    def _set(self, name: str, text: str) -> None:
        if text and self.fields.setdefault(name, text) != text:
            # The fields hold the first of two matches on the same value.
            self._mark_incomplete()

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
                self._mark_incomplete()

    def _translate_by_map(self, mapped: Mapping[str, Any]) -> None:
        found = tuple(self._translations(mapped))
        if found:
            self.fields["translations"] = found
            return
        # The key is a random number, a mark or the like: only the possible addresses are known.
        addresses = [_text(_parts(data)[0]) for _, data in self._elements(mapped["data"])]
        self.fields["to_address"] = ",".join(address for address in addresses if address)
        self._mark_incomplete()

    def _elements(self, data: Any) -> Sequence[Any]:
        if isinstance(data, str):
            found: Sequence[Any] = self.named.maps.get(data.removeprefix("@"), {}).get("elem", ())
            return found
        elements: Sequence[Any] = data["set"]
        return elements

    def _translations(self, mapped: Mapping[str, Any]) -> Iterator[Translation]:
        """Yield the translations of a map; none if its key isn't a known field."""
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

    def _choices(self, data: Any) -> Iterator[VerdictCase]:
        for key, verdict in self._elements(data):
            ((kind, target),) = verdict.items()
            yield VerdictCase(_text(key) or "", kind, target["target"] if target else "")

    def _extension(self, value: Mapping[str, Any]) -> None:
        """Add an extension of iptables, of which nft's JSON has only the name."""
        if value["type"] == "target":
            self.fields["verdict"] = _XT_VERDICTS.get(value["name"], "")
        elif value["name"] != "comment":
            self._mark_incomplete()


def _field(left: Any) -> tuple[str, str]:
    """Return the field for the left side of a match, and the protocol that it implies.

    The field is one of FirewallRule, "" if there is none.
    """
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
    """Return the members of a concatenation, or the value alone, without timeouts."""
    if isinstance(value, Mapping) and "elem" in value:
        value = value["elem"]["val"]
    if isinstance(value, Mapping) and "concat" in value:
        members: Sequence[Any] = value["concat"]
        return members
    return [value]


def _text(value: Any) -> str | None:
    """Return a value in the notation of FirewallRule, None if that is impossible."""
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
