"""Operations on named network namespaces (ip-netns(8))."""

from __future__ import annotations

import shlex
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CreateNamespace:
    """Make a network namespace and mount it under /run/netns."""

    name: str

    def command(self) -> str:
        return f"ip netns add {shlex.quote(self.name)}"

    def inverse(self) -> tuple[DeleteNamespace, ...]:
        return (DeleteNamespace(self.name),)

    def describe(self) -> str:
        return f"make the namespace {self.name}"


@dataclass(frozen=True, slots=True)
class DeleteNamespace:
    """Take a namespace's name away; the kernel removes it once no process is in it. What was inside is
    taken out by operations before this one, so that its undo is to make it empty."""

    name: str

    def command(self) -> str:
        return f"ip netns del {shlex.quote(self.name)}"

    def inverse(self) -> tuple[CreateNamespace, ...]:
        return (CreateNamespace(self.name),)

    def describe(self) -> str:
        return f"delete the namespace {self.name}"


@dataclass(frozen=True, slots=True)
class JoinNamespace:
    """Give the namespace `of` the further name `name`: a container joined with another, or, where `of` is "",
    with the host."""

    name: str
    of: str

    def command(self) -> str:
        name = shlex.quote(f"/run/netns/{self.name}")
        of = shlex.quote(f"/run/netns/{self.of}") if self.of else "/proc/self/ns/net"
        return f"touch {name} && mount --bind {of} {name}"

    def inverse(self) -> tuple[LeaveNamespace, ...]:
        return (LeaveNamespace(self.name, self.of),)

    def describe(self) -> str:
        return f"make {self.name} share the namespace of {self.of or 'the host'}"


@dataclass(frozen=True, slots=True)
class LeaveNamespace:
    """Take the further name `name` of the namespace `of`, or of the host's (""), away."""

    name: str
    of: str

    def command(self) -> str:
        return f"ip netns del {shlex.quote(self.name)}"

    def inverse(self) -> tuple[JoinNamespace, ...]:
        return (JoinNamespace(self.name, self.of),)

    def describe(self) -> str:
        return f"let {self.name} leave the namespace of {self.of or 'the host'}"
