"""What an operation changes, so that of two changes it can be told whether one stands on the other."""

from __future__ import annotations

from collections.abc import Iterable

from core.operations import (
    addresses,
    attachments,
    connections,
    docker,
    links,
    namespaces,
    settings,
    tuning,
)
from core.operations.base import Operation
from core.operations.target import NetnsTarget


def touched(steps: Iterable[Operation]) -> frozenset[str]:
    """Names of all that these steps change: links, namespaces, rules, settings, Docker's networks."""
    return frozenset(name for step in steps for name in _names(step))


def _names(step: Operation) -> tuple[str, ...]:
    match step:
        case links.CreateVeth() | links.DeleteLink(again=links.CreateVeth()):
            made = step if isinstance(step, links.CreateVeth) else step.again
            assert isinstance(made, links.CreateVeth)
            return _link(made.name, made.place), _link(made.peer, made.peer_place)
        case links.SetLink(attribute="name"):
            return _link(step.name, step.place), _link(step.value, step.place)
        case links.SetLink(attribute="master"):
            ends = (step.name, step.value, step.before)
            return tuple(_link(name, step.place) for name in ends if name)
        case (
            links.CreateBridge() | links.DeleteLink() | links.SetLink() | links.SetBridge() | links.SetPort()
        ):
            return (_link(step.name, step.place),)
        case links.AddVlan():
            return (_link(step.name, step.place),)
        case tuning.SetSizes() | tuning.SetOffloads() | tuning.SetSteering():
            return (_link(step.name, step.place),)
        case links.DeleteVlan():
            return _names(step.vlan)
        case addresses.AddAddress() | addresses.DeleteAddress():
            return (_link(step.link, step.place),)
        case addresses.AddRoute():
            return tuple(_link(way.link, step.place) for way in step.ways)
        case addresses.DeleteRoute():
            return _names(step.route)
        case addresses.AddNeighbour():
            return (_link(step.link, step.place),)
        case addresses.DeleteNeighbour():
            return _names(step.neighbour)
        case namespaces.CreateNamespace() | namespaces.DeleteNamespace():
            return (_place(NetnsTarget(step.name)),)
        case namespaces.JoinNamespace() | namespaces.LeaveNamespace():
            return _place(NetnsTarget(step.name)), _place(NetnsTarget(step.of))
        case settings.SetRules() | settings.SetDockerDns():
            return (f"rules of {_place(step.place)}",)
        case settings.SetSysctl():
            return (f"{step.key} in {_place(step.place)}",)
        case _:
            return _others(step)


def changed_link(step: Operation) -> tuple[str, NetnsTarget | None]:
    """The one link whose own state a step changes, and where it is; ("", None) where it is about none."""
    match step:
        case links.CreateBridge() | links.CreateVeth() | links.DeleteLink() | links.SetLink():
            return step.name, step.place
        case links.SetBridge() | links.SetPort():
            return step.name, step.place
        case tuning.SetSizes() | tuning.SetOffloads() | tuning.SetSteering():
            return step.name, step.place
        case addresses.AddAddress() | addresses.DeleteAddress() | addresses.AddRoute():
            return step.link, step.place
        case addresses.AddNeighbour():
            return step.link, step.place
        case addresses.DeleteRoute():
            return changed_link(step.route)
        case addresses.DeleteNeighbour():
            return changed_link(step.neighbour)
        case _:
            return "", None


def _others(step: Operation) -> tuple[str, ...]:
    match step:
        case docker.DockerCreateNetwork():
            return (f"Docker's network {step.name}",)
        case docker.DockerRemoveNetwork():
            return _others(step.network)
        case docker.DockerConnect():
            return f"Docker's network {step.network}", f"Docker's container {step.container}"
        case docker.DockerDisconnect():
            return _others(step.connection)
        case attachments.PersistAttachment():
            return (f"{step.container} on {step.network}",)
        case attachments.ForgetAttachment():
            return _others(step.want)
        case connections.DeleteConnection():
            return ()  # nothing stands on a connection, and nothing brings it back
        case _:
            raise TypeError(f"not known what {step!r} changes")


def _link(name: str, place: NetnsTarget) -> str:
    return f"{name} in {_place(place)}"


def _place(place: NetnsTarget) -> str:
    return str(place)
