"""The person's own remote session: where it comes from, so that no change cuts it off unguarded."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator
from pathlib import Path

# sshd(8) sets these; the first word is the other end's address.
_VARIABLES = (b"SSH_CONNECTION=", b"SSH_CLIENT=")
_INIT = 1


def remote_session() -> str:
    """The address of the other end of the SSH session that this process belongs to, "" for none.

    sudo(8) takes SSH_CONNECTION away, so the environments of the parents are looked at too
    (proc_pid_environ(5)).
    """
    return next((found for pid in _ancestry() if (found := _told(pid))), "")


def _ancestry() -> Iterator[int]:
    pid = os.getpid()
    while pid > _INIT:
        yield pid
        try:
            # The command's name, in parentheses, may hold anything: what follows it is plain.
            pid = int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            return


def _told(pid: int) -> str:
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    for variable in variables:
        if variable.startswith(_VARIABLES):
            address = variable.partition(b"=")[2].split(b" ")[0].decode(errors="replace")
            try:
                return str(ipaddress.ip_address(address.partition("%")[0]))
            except ValueError:
                continue
    return ""
