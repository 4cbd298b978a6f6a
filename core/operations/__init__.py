"""Operations: changes as values that print, undo and execute themselves."""

from core.operations.addresses import (
    AddAddress,
    AddNeighbour,
    AddRoute,
    DeleteAddress,
    DeleteNeighbour,
    DeleteRoute,
    Hop,
)
from core.operations.attachments import ForgetAttachment, PersistAttachment
from core.operations.base import Operation, affected, is_final, undo_of, undo_title
from core.operations.bridges import AddVlan, DeleteVlan, SetBridge, SetPort, SetPortState
from core.operations.connections import DeleteConnection
from core.operations.docker import DockerConnect, DockerCreateNetwork, DockerDisconnect, DockerRemoveNetwork
from core.operations.etcd import (
    DeleteDefinition,
    JoinEtcd,
    LeaseAddress,
    LeaveEtcd,
    PutDefinition,
    ReleaseAddress,
)
from core.operations.firewall import AddFirewallRule, DeleteFirewallRule
from core.operations.forwarding import AddFdb, AddPolicyRule, DeleteFdb, DeletePolicyRule
from core.operations.frr import AnnounceMac, ConfigureFrr, WithdrawMac
from core.operations.links import CreateBridge, CreateVeth, CreateVxlan, DeleteLink, SetLink
from core.operations.namespaces import CreateNamespace, DeleteNamespace, JoinNamespace, LeaveNamespace
from core.operations.ovs import OvsAddBridge, OvsAddPort, OvsDeleteBridge, OvsDeletePort, OvsSetMtu
from core.operations.settings import SetDockerDns, SetRules, SetSysctl
from core.operations.storm_guard import SetStormGuard
from core.operations.tuning import SetOffloads, SetSizes, SetSteering
from core.operations.values import HOST, NetnsTarget

__all__ = [
    "HOST",
    "AddAddress",
    "AddFdb",
    "AddFirewallRule",
    "AddNeighbour",
    "AddPolicyRule",
    "AddRoute",
    "AddVlan",
    "AnnounceMac",
    "ConfigureFrr",
    "CreateBridge",
    "CreateNamespace",
    "CreateVeth",
    "CreateVxlan",
    "DeleteAddress",
    "DeleteConnection",
    "DeleteDefinition",
    "DeleteFdb",
    "DeleteFirewallRule",
    "DeleteLink",
    "DeleteNamespace",
    "DeleteNeighbour",
    "DeletePolicyRule",
    "DeleteRoute",
    "DeleteVlan",
    "DockerConnect",
    "DockerCreateNetwork",
    "DockerDisconnect",
    "DockerRemoveNetwork",
    "ForgetAttachment",
    "Hop",
    "JoinEtcd",
    "JoinNamespace",
    "LeaseAddress",
    "LeaveEtcd",
    "LeaveNamespace",
    "NetnsTarget",
    "Operation",
    "OvsAddBridge",
    "OvsAddPort",
    "OvsDeleteBridge",
    "OvsDeletePort",
    "OvsSetMtu",
    "PersistAttachment",
    "PutDefinition",
    "ReleaseAddress",
    "SetBridge",
    "SetDockerDns",
    "SetLink",
    "SetOffloads",
    "SetPort",
    "SetPortState",
    "SetRules",
    "SetSizes",
    "SetSteering",
    "SetStormGuard",
    "SetSysctl",
    "WithdrawMac",
    "affected",
    "is_final",
    "undo_of",
    "undo_title",
]
