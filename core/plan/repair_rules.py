"""Plan to delete firewall rules of other programs, and to add a masquerade rule."""

from __future__ import annotations

import ipaddress
import re

from core.model import Chain, Firewall, FirewallRule
from core.model.fix import FixAccept, FixFirewall, FixMasquerade
from core.nat.packets import chain_key
from core.operations import AddFirewallRule, DeleteFirewallRule, NetnsTarget, SetRules
from core.plan import rules
from core.plan.builder import CannotPlan, PlanBuilder, require, when
from core.plan.delete import unpublish_entry
from core.plan.repair import ALREADY, GONE, add_fix
from core.plan.tags import VnetNetwork
from core.text import PLAIN_LINK, TABLE, safe

# Words that nft(8) takes for names, and its quoted text. It has no escapes.
_NAME = re.compile(r"[A-Za-z_.][A-Za-z0-9/_.-]*")
_QUOTED = re.compile(r'"[^"]*"')
_NOT_REPEATABLE = re.compile(r'[;\n#$"]|^\[|\bxt (?:match|target)\b|\b(?:jump|goto) \{')
_UNDECODED = re.compile("[\ud800-\udfff]")


def _find_firewall(ns: int, builder: PlanBuilder) -> Firewall:
    firewall = builder.snapshot.firewalls.get(ns)
    if firewall is None:
        raise CannotPlan(["the firewall of the namespace couldn't be read"])
    return firewall


@add_fix.register
def _(step: FixFirewall, builder: PlanBuilder) -> None:
    firewall, place = _find_firewall(step.ns, builder), builder.netns_target(step.ns)
    rule = next((one for one in firewall.rules if one.rule_id == step.rule_id), None)
    if rule is None:
        raise CannotPlan([GONE])
    if rule.table == TABLE and step.ns == builder.topology.host:
        _unpublish(rule, builder)
        return
    if rule.backend == "nft":
        _require_repeatable(rule)
    made = _described(rule, firewall, place, builder)
    if made not in (one.rule for one in builder.steps if isinstance(one, DeleteFirewallRule)):
        builder.add(DeleteFirewallRule(made, _handle(rule)))


def _unpublish(rule: FirewallRule, builder: PlanBuilder) -> None:
    """Plan to remove a port that vnet published: its rules belong together."""
    entry = next((one for one in builder.topology.nat if rule.rule_id in one.rules), None)
    if entry is None:
        raise CannotPlan(["it is a rule of vnet-tui itself, which its next change would write again"])
    left = {port.comment() for port in builder.vnet.ports}
    planned = {port.comment() for port in builder.before.ports} - left
    if rule.comment not in planned:
        unpublish_entry(entry.entry_id, builder)


def _require_repeatable(rule: FirewallRule) -> None:
    """Raise CannotPlan if nft couldn't add the rule again from its text."""
    plain = _QUOTED.sub("", rule.text)
    is_text = not _UNDECODED.search(rule.text)
    names = all(_NAME.fullmatch(one) for one in (rule.table, rule.chain))
    if names and is_text and not _NOT_REPEATABLE.search(plain):
        return
    command = f"nft delete rule {rule.family} {safe(rule.table)} {safe(rule.chain)} handle {_handle(rule)}"
    raise CannotPlan([f"nft couldn't add the rule again from its text, so there is no undo. Try: {command}"])


def _handle(rule: FirewallRule) -> int:
    return int(rule.rule_id.rpartition("/")[2]) if rule.backend == "nft" else 0


def _described(
    rule: FirewallRule, firewall: Firewall, place: NetnsTarget, builder: PlanBuilder
) -> AddFirewallRule:
    """Return the operation that adds the rule at its place again.

    The place is that at its turn: after the deletions that are already planned.
    """
    present = [one for one in firewall.rules if chain_key(one) == chain_key(rule)]
    for step in builder.steps:
        if isinstance(step, DeleteFirewallRule) and step.rule.place == place:
            present = _without(present, step)
    equal = [one for one in present if one.text == rule.text]
    if rule not in present or not equal:
        raise CannotPlan([GONE])
    # iptables deletes the first of equal rules.
    place_in = present.index(rule if rule.backend == "nft" else equal[0])
    after = _handle(present[place_in - 1]) if place_in else 0
    before = _handle(present[place_in + 1]) if place_in + 1 < len(present) else 0
    return AddFirewallRule(
        rule.backend, rule.family, rule.table, rule.chain, rule.text, place, after, before, place_in + 1,
        copies=len(equal), length=len(present),
    )  # fmt: skip


def _without(present: list[FirewallRule], step: DeleteFirewallRule) -> list[FirewallRule]:
    """Return the rules of a chain without the one that a step deletes."""
    gone = step.rule
    where = (gone.backend, gone.family, gone.table, gone.chain)
    for place, one in enumerate(present):
        same = (one.backend, one.family, one.table, one.chain) == where and one.text == gone.text
        if same and (not step.handle or step.handle == _handle(one)):
            return present[:place] + present[place + 1 :]
    return present


@add_fix.register
def _(step: FixAccept, builder: PlanBuilder) -> None:
    firewall, place = _find_firewall(step.ns, builder), builder.netns_target(step.ns)
    where = (step.backend, step.family, step.table, step.chain)
    chain = next((one for one in firewall.chains if one.key == where), None)
    if chain is None:
        raise CannotPlan([GONE])
    present = [one for one in firewall.rules if chain_key(one) == where]
    plain = step.backend != "nft" or all(map(_NAME.fullmatch, (step.table, step.chain)))
    require(
        when(any(one.text == step.text for one in present), ALREADY),
        when(not plain, f"nft can't name the chain {safe(step.table)} {safe(step.chain)}"),
        when(step.table == TABLE, "vnet-tui's next change would write its own table again"),
    )
    # At the end it overrides the policy, and no rule that drops.
    builder.add(AddFirewallRule(*where, step.text, place, at_end=True))


@add_fix.register
def _(step: FixMasquerade, builder: PlanBuilder) -> None:
    firewall, place = _find_firewall(step.ns, builder), builder.netns_target(step.ns)
    networks = builder.vnet.networks.values() if step.ns == builder.topology.host else ()
    if network := next((one for one in networks if one.bridge == step.bridge), None):
        _write_own_rules(network, step.subnet, builder)
        return
    require(when(not PLAIN_LINK.fullmatch(step.bridge), f"rules can't name the link {safe(step.bridge)}"))
    chain, version = _nat_chain(step, firewall)
    text = (
        f'ip{version} saddr {step.subnet} oifname != "{step.bridge}" masquerade'
        if chain.backend == "nft"
        else f"-A {chain.name} -s {step.subnet} ! -o {step.bridge} -j MASQUERADE"
    )
    copies = [one for one in firewall.rules if one.text == text and chain_key(one) == chain.key]
    require(when(copies, ALREADY))
    builder.add(
        AddFirewallRule(chain.backend, chain.family, chain.table, chain.name, text, place, at_end=True)
    )


def _write_own_rules(network: VnetNetwork, subnet: str, builder: PlanBuilder) -> None:
    """Plan to write vnet's own rules again, if they masquerade the network."""
    is_masqueraded = network.is_translated and (":" not in subnet or network.nat66)
    reason = f"vnet-tui doesn't masquerade {subnet}, as {safe(network.name)} was made"
    require(when(not is_masqueraded, f"{reason}. Try: a network of the kind nat"))
    before = rules.render(builder.before) if builder.before.table else rules.EMPTY
    builder.add(SetRules(rules.render(builder.vnet), before))


def _nat_chain(step: FixMasquerade, firewall: Firewall) -> tuple[Chain, str]:
    """Return a chain for source NAT, and "6" for IPv6, else "". Raises CannotPlan.

    It is one of nft if there is one.
    """
    version = "6" if ipaddress.ip_network(step.subnet).version == 6 else ""
    found = [
        one
        for one in firewall.chains
        if (one.kind, one.hook) == ("nat", "postrouting")
        and one.family in (f"ip{version}", "inet")
        and one.table != TABLE
        and (one.backend != "nft" or all(map(_NAME.fullmatch, (one.table, one.name))))
    ]
    if not found:
        tool = f"ip{version}tables"
        command = f"{tool} -t nat -A POSTROUTING -s {step.subnet} ! -o {step.bridge} -j MASQUERADE"
        raise CannotPlan([f"there is no chain for source NAT. Try: {command}"])
    return min(found, key=lambda one: one.backend != "nft"), version
