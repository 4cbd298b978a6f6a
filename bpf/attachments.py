"""Where the program sits: tcx links, which end with this process in whatever way it ends, or clsact where
there is no tcx."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterable

from bpf import clsact, syscall

_WITHOUT_TCX = (errno.EINVAL, errno.EOPNOTSUPP)

# Interfaces with programs of others: at ingress, at egress.
Foreign = tuple[frozenset[int], frozenset[int]]
NOTHING_FOREIGN: Foreign = (frozenset(), frozenset())


def foreign(ifindexes: Iterable[int], ours: Collection[int] = ()) -> Foreign:
    """Those interfaces at whose ingress, and at whose egress, tcx programs sit that are not `ours`."""
    looked_at = list(ifindexes)
    return (
        frozenset(each for each in looked_at if _has_other(each, syscall.TCX_INGRESS, ours)),
        frozenset(each for each in looked_at if _has_other(each, syscall.TCX_EGRESS, ours)),
    )


def _has_other(ifindex: int, where: int, ours: Collection[int]) -> bool:
    try:
        return not set(ours).issuperset(syscall.attached(ifindex, where))
    except OSError:
        return False  # gone, or without tcx


class Attachments:
    """Which interfaces carry the program. `tcx` is None until the kernel was asked for it."""

    def __init__(self, program: int, tcx: bool | None = None) -> None:
        self.program = program
        self.tcx = tcx
        self._links: dict[int, int | None] = {}
        self._ids = {syscall.id_of(program)}

    def keep(self, wanted: Collection[int]) -> dict[int, str]:
        """Have the program on exactly these interfaces; those that refuse it, with the reason."""
        for gone in [ifindex for ifindex in self._links if ifindex not in wanted]:
            self._detach(gone)
        refused = {}
        for ifindex in wanted:
            if ifindex in self._links:
                continue
            try:
                self._links[ifindex] = self._attach(ifindex)
            except OSError as error:
                if error.errno != errno.ENODEV:
                    refused[ifindex] = f"the kernel refuses the program: {error.strerror}"
        return refused

    def _attach(self, ifindex: int) -> int | None:
        """A link's descriptor, None at clsact."""
        if self.tcx is not False:
            try:
                link = syscall.attach_tcx(self.program, ifindex)
            except OSError as error:
                if self.tcx or error.errno not in _WITHOUT_TCX:
                    raise
            else:
                self.tcx = True
                return link
        clsact.attach(self.program, ifindex)
        self.tcx = False
        return None

    def _detach(self, ifindex: int) -> None:
        link = self._links.pop(ifindex)
        if link is None:
            clsact.detach(ifindex)
        else:
            os.close(link)

    def foreign(self, ifindexes: Iterable[int]) -> Foreign:
        """Those interfaces where other tcx programs than ours sit."""
        return foreign(ifindexes, self._ids)

    def replace(self, program: int) -> None:
        """Another program in the place of the present one, without a packet passing in between."""
        self._ids.add(syscall.id_of(program))
        for ifindex, link in self._links.items():
            if link is None:
                clsact.attach(program, ifindex)
            else:
                syscall.replace_program(link, program)
        os.close(self.program)
        self.program = program
        self._ids = {syscall.id_of(program)}

    def close(self) -> None:
        """Take the program off every interface."""
        for ifindex in list(self._links):
            self._detach(ifindex)
