"""Operations on named network namespaces (ip-netns(8))."""

from __future__ import annotations

from dataclasses import dataclass, field

from core.text import quoted


@dataclass(frozen=True, slots=True)
class CreateNamespace:
    """Make a network namespace and mount it under /run/netns; with `left`, as for DeleteNamespace, give the
    name back to the one that processes kept, where it still lives."""

    name: str
    left: str = ""
    pid: int = field(default=0, compare=False)

    def command(self) -> str:
        name = quoted(self.name)
        return f"ip netns attach {name} {self.pid}" if self.left else f"ip netns add {name}"

    def inverse(self) -> tuple[DeleteNamespace, ...]:
        return (DeleteNamespace(self.name, self.left, self.pid),)

    def describe(self) -> str:
        again = f"make {self.name} the name of its namespace again, a new one where it has ended"
        return again if self.left else f"make the namespace {self.name}"


@dataclass(frozen=True, slots=True)
class DeleteNamespace:
    """Take a namespace's name away; the kernel removes it once no process is in it. What was inside is
    taken out by operations before this one, so that its undo is to make it empty.

    Where processes stay in it, `left` is the alias of its loopback link by then, by which an undo knows it,
    and `pid` one of them."""

    name: str
    left: str = ""
    pid: int = field(default=0, compare=False)

    def command(self) -> str:
        return f"ip netns del {quoted(self.name)}"

    def inverse(self) -> tuple[CreateNamespace, ...]:
        return (CreateNamespace(self.name, self.left, self.pid),)

    def describe(self) -> str:
        return f"delete the namespace {self.name}"


@dataclass(frozen=True, slots=True)
class JoinNamespace:
    """Give the namespace `of` the further name `name`: a container joined with another, or, where `of` is "",
    with the host."""

    name: str
    of: str

    def command(self) -> str:
        name = quoted(f"/run/netns/{self.name}")
        of = quoted(f"/run/netns/{self.of}") if self.of else "/proc/self/ns/net"
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
        return f"ip netns del {quoted(self.name)}"

    def inverse(self) -> tuple[JoinNamespace, ...]:
        return (JoinNamespace(self.name, self.of),)

    def describe(self) -> str:
        return f"let {self.name} leave the namespace of {self.of or 'the host'}"
