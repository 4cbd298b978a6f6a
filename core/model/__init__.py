"""The model: frozen values that say what is. No effects, no logic beyond looking things up."""

from core.model.change import Change
from core.model.conntrack import CONNTRACK_DTYPE, TCP_STATES, Conntrack
from core.model.container import (
    NAMESPACE_KINDS,
    Container,
    Endpoint,
    Engine,
    ModelCard,
    NamespaceUse,
    Network,
    PublishedPort,
)
from core.model.fastflows import FASTFLOW_DTYPE, FastFlows
from core.model.firewall import Chain, Firewall, FirewallRule, NatEntry, Translation
from core.model.link import Address, BridgePort, BridgeSettings, FdbEntry, Link, PortVlan
from core.model.namespace import Namespace
from core.model.ovs import OvsBridge, OvsInterface, OvsPort
from core.model.problem import Problem
from core.model.refs import (
    LinkKey,
    Ref,
    container_ref,
    flow_ref,
    flows_ref,
    link_ref,
    namespace_ref,
    nat_ref,
    network_ref,
)
from core.model.routing import Neighbour, NextHop, PolicyRule, Route
from core.model.snapshot import Host, Listener, NetState, Snapshot
from core.model.stats import STATS_DTYPE, LinkStats

__all__ = [
    "CONNTRACK_DTYPE",
    "FASTFLOW_DTYPE",
    "NAMESPACE_KINDS",
    "STATS_DTYPE",
    "TCP_STATES",
    "Address",
    "BridgePort",
    "BridgeSettings",
    "Chain",
    "Change",
    "Conntrack",
    "Container",
    "Endpoint",
    "Engine",
    "FastFlows",
    "FdbEntry",
    "Firewall",
    "FirewallRule",
    "Host",
    "Link",
    "LinkKey",
    "LinkStats",
    "Listener",
    "ModelCard",
    "Namespace",
    "NamespaceUse",
    "NatEntry",
    "Neighbour",
    "NetState",
    "Network",
    "NextHop",
    "OvsBridge",
    "OvsInterface",
    "OvsPort",
    "PolicyRule",
    "PortVlan",
    "Problem",
    "PublishedPort",
    "Ref",
    "Route",
    "Snapshot",
    "Translation",
    "container_ref",
    "flow_ref",
    "flows_ref",
    "link_ref",
    "namespace_ref",
    "nat_ref",
    "network_ref",
]
