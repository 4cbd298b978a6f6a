"""Attach programs to links: by tcx, or by clsact filters before Linux 6.6.

A tcx link ends with this process, however that ends.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterable

from bpf import syscall
from core.netlink.clsact import FAST_PATH, FAST_PATH_OBSERVER, LinkFilter

_WITHOUT_TCX = (errno.EINVAL, errno.EOPNOTSUPP)

# Interfaces with programs of other tools: at ingress, at egress.
Foreign = tuple[frozenset[int], frozenset[int]]
NO_FOREIGN: Foreign = (frozenset(), frozenset())


def foreign_programs(ifindexes: Iterable[int], ours: Collection[int] = ()) -> Foreign:
    """Return the interfaces with tcx programs other than `ours`."""
    interfaces = list(ifindexes)
    return (
        frozenset(each for each in interfaces if _has_other(each, syscall.TCX_INGRESS, ours)),
        frozenset(each for each in interfaces if _has_other(each, syscall.TCX_EGRESS, ours)),
    )


def _has_other(ifindex: int, where: int, ours: Collection[int]) -> bool:
    try:
        return not set(ours).issuperset(syscall.attached(ifindex, where))
    except OSError:
        return False  # deleted, or no tcx


class Attachments:
    """Attach a program to the ingress or egress of interfaces.

    `tcx` is None until the first attachment.
    """

    def __init__(self, program: int, tcx: bool | None = None, egress: bool = False) -> None:
        self.program = program
        self.tcx = tcx
        self._egress = egress
        self._links: dict[int, int | None] = {}
        self.ids = {syscall.object_id(program)}

    def sync(self, wanted: Collection[int]) -> dict[int, str]:
        """Attach the program to exactly these interfaces.

        Returns those that refuse it, with the reason.
        """
        for detached in [ifindex for ifindex in self._links if ifindex not in wanted]:
            self._detach(detached)
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
        """Attach the program; return the link's descriptor, None at clsact."""
        if self.tcx is not False:
            try:
                where = syscall.TCX_EGRESS if self._egress else syscall.TCX_INGRESS
                link = syscall.attach_tcx(self.program, ifindex, where)
            except OSError as error:
                if self.tcx or error.errno not in _WITHOUT_TCX:
                    raise
            else:
                self.tcx = True
                return link
        self._filter.attach(self.program, ifindex, egress=self._egress)
        self.tcx = False
        return None

    @property
    def _filter(self) -> LinkFilter:
        return FAST_PATH_OBSERVER if self._egress else FAST_PATH

    def _detach(self, ifindex: int) -> None:
        link = self._links.pop(ifindex)
        if link is None:
            self._filter.detach(ifindex)
        else:
            os.close(link)

    def replace(self, program: int) -> None:
        """Replace the program everywhere; no packet passes without one."""
        self.ids.add(syscall.object_id(program))
        for ifindex, link in self._links.items():
            if link is None:
                self._filter.attach(program, ifindex, egress=self._egress)
            else:
                syscall.replace_program(link, program)
        os.close(self.program)
        self.program = program
        self.ids = {syscall.object_id(program)}

    def close(self) -> None:
        """Detach the program from every interface."""
        for ifindex in list(self._links):
            self._detach(ifindex)
