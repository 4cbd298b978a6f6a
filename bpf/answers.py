"""What the control socket's requests do and are answered."""

from __future__ import annotations

import ipaddress
import os
from typing import TYPE_CHECKING, Any

from bpf import loader, syscall
from bpf.control import Answer
from bpf.status import status

if TYPE_CHECKING:
    from bpf.holder import Holder

_AF = {4: 2, 6: 10}


def answer(holder: Holder, request: dict[str, Any]) -> Answer:
    """Do what is asked; see bpf/control.py."""
    match request.get("do"):
        case "status":
            return status(holder, measure=bool(request.get("measure")), flows=bool(request.get("flows")))
        case "maps":
            maps = {name: syscall.id_of(descriptor) for name, descriptor in holder.loaded.maps.items()}
            return {"ok": True, "pid": os.getpid(), "maps": maps}
        case "targets":
            holder.view.targets = [str(each) for each in request.get("targets", ())]
            _be_strict(holder, bool(request.get("strict", holder.gate.strict)))
            holder.view.note({None})
            holder.view.look()
            return {"ok": True, "unknown": list(holder.view.unknown)}
        case "capture" | "release" as what:
            return _capture(holder, str(request.get("address", "")), what == "capture")
        case "reload":
            return _reload(holder)
        case "off":
            holder.finish()
            return {"ok": True}
    return {"ok": False, "what": "the request was not understood", "why": "", "try": ""}


def _be_strict(holder: Holder, strict: bool) -> None:
    if strict != holder.gate.strict:
        holder.gate.strict = strict
        holder.gate.reasons = ()
        holder.rules_changed()


def _capture(holder: Holder, text: str, on: bool) -> Answer:
    """Have traffic of an address on the kernel's path, where a capture sees it; or no longer."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return {"ok": False, "what": "that is no address", "why": text, "try": "an IPv4 or IPv6 address"}
    holder.tables.capture(_AF[address.version], address.packed, on)
    return {"ok": True, "captured": holder.tables.captured}


def _reload(holder: Holder) -> Answer:
    try:
        program = loader.reload(holder.loaded)
    except (OSError, loader.CannotCompile, syscall.Rejected) as error:
        return {"ok": False, "what": "the program was not replaced", "why": str(error), "try": ""}
    holder.view.attachments.replace(program)
    holder.loaded.program = program
    return {"ok": True, "program": syscall.id_of(program)}
