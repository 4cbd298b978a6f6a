"""What an operation changes, so that of two changes it can be told whether one stands on the other."""

from __future__ import annotations

from collections.abc import Iterable

from core.ops import addressing, connections, docker, links, namespaces, settings, tuning, wanted
from core.ops.base import Operation
from core.ops.place import Place


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
        case addressing.AddAddress() | addressing.DeleteAddress():
            return (_link(step.link, step.place),)
        case addressing.AddRoute():
            return tuple(_link(way.link, step.place) for way in step.ways)
        case addressing.DeleteRoute():
            return _names(step.route)
        case addressing.AddNeighbour():
            return (_link(step.link, step.place),)
        case addressing.DeleteNeighbour():
            return _names(step.neighbour)
        case namespaces.CreateNamespace() | namespaces.DeleteNamespace():
            return (_place(Place(step.name)),)
        case namespaces.JoinNamespace() | namespaces.LeaveNamespace():
            return _place(Place(step.name)), _place(Place(step.of))
        case settings.SetRules() | settings.SetDockerDns():
            return (f"rules of {_place(step.place)}",)
        case settings.SetSysctl():
            return (f"{step.key} in {_place(step.place)}",)
        case _:
            return _others(step)


def changed_link(step: Operation) -> tuple[str, Place | None]:
    """The one link whose own state a step changes, and where it is; ("", None) where it is about none."""
    match step:
        case links.CreateBridge() | links.CreateVeth() | links.DeleteLink() | links.SetLink():
            return step.name, step.place
        case links.SetBridge() | links.SetPort():
            return step.name, step.place
        case tuning.SetSizes() | tuning.SetOffloads() | tuning.SetSteering():
            return step.name, step.place
        case addressing.AddAddress() | addressing.DeleteAddress() | addressing.AddRoute():
            return step.link, step.place
        case addressing.AddNeighbour():
            return step.link, step.place
        case addressing.DeleteRoute():
            return changed_link(step.route)
        case addressing.DeleteNeighbour():
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
        case wanted.Want():
            return (f"{step.container} on {step.network}",)
        case wanted.Unwant():
            return _others(step.want)
        case connections.DeleteConnection():
            return ()  # nothing stands on a connection, and nothing brings it back
        case _:
            raise TypeError(f"not known what {step!r} changes")


def _link(name: str, place: Place) -> str:
    return f"{name} in {_place(place)}"


def _place(place: Place) -> str:
    return str(place)
