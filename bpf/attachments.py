"""The tcx links that hold the program on its interfaces: they end with this process, in whatever way it ends."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection

from bpf import syscall


class Attachments:
    """Which interfaces carry the program."""

    def __init__(self, program: int) -> None:
        self._program = program
        self._links: dict[int, int] = {}
        self._ids = {syscall.id_of(program)}

    def keep(self, wanted: Collection[int]) -> dict[int, str]:
        """Have the program on exactly these interfaces; those that refuse it, with the reason."""
        for gone in [ifindex for ifindex in self._links if ifindex not in wanted]:
            os.close(self._links.pop(gone))
        refused = {}
        for ifindex in wanted:
            if ifindex in self._links:
                continue
            try:
                self._links[ifindex] = syscall.attach_tcx(self._program, ifindex)
            except OSError as error:
                if error.errno != errno.ENODEV:
                    refused[ifindex] = f"the kernel refuses the program: {error.strerror}"
        return refused

    def foreign(self, ifindexes: Collection[int]) -> frozenset[int]:
        """Those interfaces at whose ingress other programs sit."""
        return frozenset(each for each in ifindexes if self._has_other(each))

    def _has_other(self, ifindex: int) -> bool:
        try:
            return bool(set(syscall.attached(ifindex)) - self._ids)
        except OSError:
            return False  # gone, or without tcx

    def replace(self, program: int) -> None:
        """Another program in the place of the present one, without a packet passing in between."""
        for link in self._links.values():
            syscall.replace_program(link, program)
        os.close(self._program)
        self._program = program
        self._ids = {syscall.id_of(program)}

    @property
    def program(self) -> int:
        """The descriptor of the program."""
        return self._program

    def close(self) -> None:
        """Take the program off every interface."""
        for link in self._links.values():
            os.close(link)
        self._links = {}
