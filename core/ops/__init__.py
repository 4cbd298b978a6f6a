"""Operations: changes as values, each of which prints itself as a command and names its undo."""

from core.ops.addressing import (
    AddAddress,
    AddNeighbour,
    AddRoute,
    DeleteAddress,
    DeleteNeighbour,
    DeleteRoute,
)
from core.ops.base import Operation, undo_of
from core.ops.docker import DockerConnect, DockerCreateNetwork, DockerDisconnect, DockerRemoveNetwork
from core.ops.links import CreateBridge, CreateVeth, DeleteLink, SetBridge, SetLink, SetPort
from core.ops.namespaces import CreateNamespace, DeleteNamespace, JoinNamespace, LeaveNamespace
from core.ops.place import HOST, Place
from core.ops.settings import SetRules, SetSysctl
from core.ops.wanted import Unwant, Want

__all__ = [
    "HOST",
    "AddAddress",
    "AddNeighbour",
    "AddRoute",
    "CreateBridge",
    "CreateNamespace",
    "CreateVeth",
    "DeleteAddress",
    "DeleteLink",
    "DeleteNamespace",
    "DeleteNeighbour",
    "DeleteRoute",
    "DockerConnect",
    "DockerCreateNetwork",
    "DockerDisconnect",
    "DockerRemoveNetwork",
    "JoinNamespace",
    "LeaveNamespace",
    "Operation",
    "Place",
    "SetBridge",
    "SetLink",
    "SetPort",
    "SetRules",
    "SetSysctl",
    "Unwant",
    "Want",
    "undo_of",
]
