"""What tuning changes of a link, and rtnetlink does not tell."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LinkTuning:
    """`changeable` and `wanted` name offloads as the kernel does ("tx-tcp-segmentation", ...): those that can
    be switched, and those that are wanted on, whether they are or wait for another one (ethtool(8), -K).
    `rps_cpus` are the CPUs that take over the packets of each receive queue, as the kernel writes them: a
    hexadecimal mask, "0" for none (Documentation/networking/scaling.rst)."""

    changeable: tuple[str, ...] = ()
    wanted: tuple[str, ...] = ()
    rps_cpus: tuple[str, ...] = ()
