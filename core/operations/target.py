"""Where an operation acts: the host's network namespace, a named one, or that of a process."""

from __future__ import annotations

from dataclasses import dataclass, field

from core.text import quoted


@dataclass(frozen=True, slots=True)
class NetnsTarget:
    """The host (nothing set), the namespace `name` under /run/netns, or the one that process `pid` is in.

    `inode` is the namespace's, where it is known: a pid or a name that leads to another one by then, because
    it was used again, counts as gone. `others` are further processes in it, by which it is found should
    `pid` have ended.
    """

    name: str = ""
    pid: int | None = None
    inode: int | None = None
    others: tuple[int, ...] = field(default=(), compare=False)

    @property
    def path(self) -> str:
        """The nsfs path that leads there, "" for the host."""
        if self.name:
            return f"/run/netns/{self.name}"
        return f"/proc/{self.pid}/ns/net" if self.pid is not None else ""

    def ip(self, arguments: str) -> str:
        """The ip(8) command that acts there."""
        if self.name:
            return f"ip -n {quoted(self.name)} {arguments}"
        return self.inside(f"ip {arguments}")

    def bridge(self, arguments: str) -> str:
        """The bridge(8) command that acts there."""
        if self.name:
            return f"bridge -n {quoted(self.name)} {arguments}"
        return self.inside(f"bridge {arguments}")

    def inside(self, command: str) -> str:
        """Any command, run there."""
        if self.name:
            return f"ip netns exec {quoted(self.name)} {command}"
        return f"nsenter -t {self.pid} -n {command}" if self.pid is not None else command

    @property
    def netns_argument(self) -> str:
        """The place as the value of ip(8)'s `netns` argument; the host is the namespace of process 1."""
        return quoted(self.name) if self.name else str(self.pid if self.pid is not None else 1)

    def __str__(self) -> str:
        return self.name or (f"process {self.pid}" if self.pid is not None else "the host")


HOST = NetnsTarget()
