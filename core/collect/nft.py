"""nftables' own tables: what nft(8) prints of them, as chains and rules."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from core.collect.iptables_rule import destination
from core.collect.libnftables import JSON, Context, Refused, library
from core.collect.nft_rule import NamedObjects, understand
from core.collect.tools import ToolFailed, run_tool
from core.model import Chain, FirewallRule

TableName = tuple[str, str]
Texts = Mapping[tuple[TableName, int], str]

_TABLE = re.compile(r"table (\S+) (.+) \{ # handle \d+(?: progname .*)?$")
_CHAIN = re.compile(r"\tchain .+ \{ # handle \d+$")
_RULE = re.compile(r"(.*) # handle (\d+)$", re.DOTALL)
_TRANSLATING = ("dnat", "snat", "redirect")
_DESTINATIONS = {"to_address", "to_port", "translations"}
_TO = re.compile(r"(?:dnat|snat|redirect) to (\S+)")
# Lines of a chain that are no rules.
_OWN_LINES = ("\t\ttype ", "\t\tcomment ")


def read_nft(tables: Collection[TableName]) -> tuple[list[Chain], list[FirewallRule]]:
    """The chains and rules of these tables, (family, name), in the thread's network namespace; raises
    ToolFailed. `nft -j` tells what a rule means (libnftables-json(5)), `nft -a` how a person writes it."""
    told = run_tool("nft", "-j", "list", "ruleset", package="nftables")
    printed = run_tool("nft", "-a", "-s", "list", "ruleset", package="nftables")
    return _understood(told, printed, tables)


def _understood(
    told: str, printed: str, tables: Collection[TableName]
) -> tuple[list[Chain], list[FirewallRule]]:
    try:
        objects = [
            (kind, item)
            for entry in json.loads(told)["nftables"]
            for kind, item in entry.items()
            if kind == "table" or (item.get("family"), item.get("table")) in tables
        ]
        return _chains(objects), list(_rules(objects, _texts(printed)))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = f"its answer is not what libnftables-json(5) describes ({type(error).__name__}: {error})"
        raise ToolFailed("nft was not understood", why, "run `nft -j list ruleset` to see it") from error


def read_table(name: TableName) -> tuple[list[Chain], list[FirewallRule]]:
    """The same of one table that is there; by libnftables in this process, where it is installed. The rules'
    text is left out."""
    words = ("list", "table", *name)
    told = _told_by_library(" ".join(words)) or run_tool("nft", "-j", *words, package="nftables")
    return _understood(told, "", [name])


def _told_by_library(command: str) -> str:
    """The answer in JSON, "" where the library is missing, or cannot tell."""
    if not (found := library()):
        return ""
    try:
        context = Context(found)
        try:
            return context.run(command, JSON)
        finally:
            context.close()
    except (Refused, OSError):
        return ""


def _chains(objects: list[tuple[str, Any]]) -> list[Chain]:
    return [
        Chain(
            "nft", chain["family"], chain["table"], chain["name"], chain.get("hook", ""),
            chain.get("type", ""), chain.get("prio", 0), chain.get("policy", ""),
        )
        for kind, chain in objects if kind == "chain"
    ]  # fmt: skip


def _rules(objects: list[tuple[str, Any]], texts: Texts) -> Iterator[FirewallRule]:
    named: dict[TableName, NamedObjects] = {}
    for kind, item in objects:
        if kind in ("map", "counter"):
            of_table = named.setdefault((item["family"], item["table"]), NamedObjects())
            (of_table.maps if kind == "map" else of_table.counters)[item["name"]] = item
    for kind, rule in objects:
        if kind == "rule":
            table = (rule["family"], rule["table"])
            yield _rule(rule, named.get(table, NamedObjects()), texts)


def _rule(rule: Mapping[str, Any], named: NamedObjects, texts: Texts) -> FirewallRule:
    family, table, handle = rule["family"], rule["table"], rule["handle"]
    # A rule that came between the two looks is shown as JSON until the next one.
    text = texts.get(((family, table), handle)) or json.dumps(rule["expr"])
    fields = understand(rule["expr"], named)
    if fields.get("verdict") in _TRANSLATING and not fields.keys() & _DESTINATIONS:
        fields |= _destination(text)
    return FirewallRule(
        "nft", family, table, rule["chain"], f"nft/{family}/{table}/{handle}", text,
        comment=rule.get("comment", ""), **fields,
    )  # fmt: skip


def _destination(text: str) -> dict[str, Any]:
    """Where a rule leads whose target is one of iptables': nft's JSON tells only its name."""
    found = _TO.search(text)
    return destination(found[1]) if found else {}


def _texts(printed: str) -> Texts:
    """Each rule as nft prints it, by its table and handle."""
    texts: dict[tuple[TableName, int], str] = {}
    table: TableName = ("", "")
    in_chain, waiting = False, ""
    for line in printed.split("\n"):
        if not in_chain:
            if found := _TABLE.match(line):
                table = (found[1], found[2])
            in_chain = bool(_CHAIN.match(line))
        elif line == "\t}" and not waiting:
            in_chain = False
        elif waiting or not line.startswith(_OWN_LINES):
            # A comment may hold newlines: a rule ends with its handle.
            waiting += f"\n{line}" if waiting else line.strip()
            if found := _RULE.match(waiting):
                texts[table, int(found[2])] = found[1]
                waiting = ""
    return texts
