"""Name the network namespaces that operations change.

A target is the host's namespace, a named one, or that of a process.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from core.operations.record import recorded
from core.text import quoted


@recorded("Place")
@dataclass(frozen=True, slots=True)
class NetnsTarget:
    """Identify a network namespace.

    It is the host's (nothing set), the namespace `name` under /run/netns, or the one that process `pid` is
    in. `inode` is that of the namespace, if known: when the pid or the name was reused for another namespace,
    the target counts as gone. `others` are more processes in it, for the case that `pid` has ended.
    """

    name: str = ""
    pid: int | None = None
    inode: int | None = None
    others: tuple[int, ...] = field(default=(), compare=False)

    def link(self, name: str) -> str:
        """Return the name of a link with its namespace, as Operation.affects() uses it."""
        return f"{name} in {self}"

    @property
    def path(self) -> str:
        """Return the path of the namespace in nsfs, "" for the host."""
        if self.name:
            return f"/run/netns/{self.name}"
        return f"/proc/{self.pid}/ns/net" if self.pid is not None else ""

    def ip(self, arguments: str) -> str:
        """Return an ip(8) command for that namespace."""
        if self.name:
            return f"ip -n {quoted(self.name)} {arguments}"
        return self.inside(f"ip {arguments}")

    def bridge(self, arguments: str) -> str:
        """Return a bridge(8) command for that namespace."""
        if self.name:
            return f"bridge -n {quoted(self.name)} {arguments}"
        return self.inside(f"bridge {arguments}")

    def inside(self, command: str) -> str:
        """Return any command, run in that namespace."""
        if self.name:
            return f"ip netns exec {quoted(self.name)} {command}"
        return f"nsenter -t {self.pid} -n {command}" if self.pid is not None else command

    @property
    def netns_argument(self) -> str:
        """Return the value of ip(8)'s `netns` argument.

        The host is the namespace of process 1.
        """
        return quoted(self.name) if self.name else str(self.pid if self.pid is not None else 1)

    def __str__(self) -> str:
        return self.name or (f"process {self.pid}" if self.pid is not None else "the host")


HOST = NetnsTarget()
