"""Namespaces that appear, go, or get another name."""

from __future__ import annotations

from core.diff.told import Told, missing_in
from core.model import namespace_ref


def tell_namespaces(told: Told) -> None:
    """Tell which namespaces are new, gone or renamed."""
    old, new = told.old.snapshot.namespaces, told.new.snapshot.namespaces
    if old is new:
        return
    for inode in missing_in(old, new):
        told.tell("added", namespace_ref(inode), f"namespace {told.place(inode)} appeared")
    for inode in missing_in(new, old):
        told.tell("removed", namespace_ref(inode), f"namespace {told.place(inode)} is gone")
    for inode in (inode for inode in new if inode in old):
        for name in missing_in(old[inode].names, new[inode].names):
            told.tell(
                "changed", namespace_ref(inode), f"namespace {told.old.label(inode)} got the name {name}"
            )
        for name in missing_in(new[inode].names, old[inode].names):
            told.tell("changed", namespace_ref(inode), f"namespace {told.place(inode)} lost the name {name}")
