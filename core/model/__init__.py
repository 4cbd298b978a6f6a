"""The model: frozen values that say what is. No effects, no logic beyond looking things up."""

from core.model.change import Change
from core.model.conntrack import CONNTRACK_DTYPE, TCP_STATES, Conntrack, ConntrackStats
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
from core.model.fastflows import FAST_PATHS, FASTFLOW_DTYPE, FastFlows
from core.model.fastpath import FastPath, FastPort, Requirement
from core.model.firewall import Chain, Choice, Firewall, FirewallRule, NatEntry, Translation
from core.model.link import (
    LONG_AGO,
    Address,
    BridgePort,
    BridgeSettings,
    FdbEntry,
    Link,
    PacketSizes,
    PortVlan,
)
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
    talk_ref,
)
from core.model.routing import Neighbour, NextHop, PolicyRule, Route
from core.model.snapshot import Host, Listener, NetState, Snapshot
from core.model.sockets import SOCKET_DTYPE, Sockets
from core.model.stats import STATS_DTYPE, LinkStats
from core.model.storm import Storm
from core.model.tuning import LinkTuning

__all__ = [
    "CONNTRACK_DTYPE",
    "FASTFLOW_DTYPE",
    "FAST_PATHS",
    "LONG_AGO",
    "NAMESPACE_KINDS",
    "SOCKET_DTYPE",
    "STATS_DTYPE",
    "TCP_STATES",
    "Address",
    "BridgePort",
    "BridgeSettings",
    "Chain",
    "Change",
    "Choice",
    "Conntrack",
    "ConntrackStats",
    "Container",
    "Endpoint",
    "Engine",
    "FastFlows",
    "FastPath",
    "FastPort",
    "FdbEntry",
    "Firewall",
    "FirewallRule",
    "Host",
    "Link",
    "LinkKey",
    "LinkStats",
    "LinkTuning",
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
    "PacketSizes",
    "PolicyRule",
    "PortVlan",
    "Problem",
    "PublishedPort",
    "Ref",
    "Requirement",
    "Route",
    "Snapshot",
    "Sockets",
    "Storm",
    "Translation",
    "container_ref",
    "flow_ref",
    "flows_ref",
    "link_ref",
    "namespace_ref",
    "nat_ref",
    "network_ref",
    "talk_ref",
]
