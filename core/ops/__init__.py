"""Operations: changes as values, each of which prints itself as a command and names its undo."""

from core.ops.addressing import (
    AddAddress,
    AddNeighbour,
    AddRoute,
    DeleteAddress,
    DeleteNeighbour,
    DeleteRoute,
    Hop,
)
from core.ops.base import Operation, undo_of
from core.ops.connections import DeleteConnection, is_final
from core.ops.docker import DockerConnect, DockerCreateNetwork, DockerDisconnect, DockerRemoveNetwork
from core.ops.links import (
    AddVlan,
    CreateBridge,
    CreateVeth,
    DeleteLink,
    DeleteVlan,
    SetBridge,
    SetLink,
    SetPort,
)
from core.ops.namespaces import CreateNamespace, DeleteNamespace, JoinNamespace, LeaveNamespace
from core.ops.place import HOST, Place
from core.ops.settings import SetDockerDns, SetRules, SetSysctl
from core.ops.tuning import SetOffloads, SetSizes, SetSteering
from core.ops.wanted import Unwant, Want

__all__ = [
    "HOST",
    "AddAddress",
    "AddNeighbour",
    "AddRoute",
    "AddVlan",
    "CreateBridge",
    "CreateNamespace",
    "CreateVeth",
    "DeleteAddress",
    "DeleteConnection",
    "DeleteLink",
    "DeleteNamespace",
    "DeleteNeighbour",
    "DeleteRoute",
    "DeleteVlan",
    "DockerConnect",
    "DockerCreateNetwork",
    "DockerDisconnect",
    "DockerRemoveNetwork",
    "Hop",
    "JoinNamespace",
    "LeaveNamespace",
    "Operation",
    "Place",
    "SetBridge",
    "SetDockerDns",
    "SetLink",
    "SetOffloads",
    "SetPort",
    "SetRules",
    "SetSizes",
    "SetSteering",
    "SetSysctl",
    "Unwant",
    "Want",
    "is_final",
    "undo_of",
]
