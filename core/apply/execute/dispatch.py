"""The one function that does an operation; the modules beside this one register each kind with it."""

from __future__ import annotations

from functools import singledispatch

from core.apply.kernel import Kernel
from core.operations import Operation


@singledispatch
def execute(operation: Operation, kernel: Kernel) -> None:
    """Do one operation. Raises OSError, LookupError, NamespaceGone, EngineError."""
    raise TypeError(f"no way to do {operation!r}")
