"""The fast path's numbers as metrics; whoever runs it gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from core.metrics.samples import SampleSet


@dataclass(frozen=True, slots=True)
class FastPathNumbers:
    """What the fast path counts: `packets` forwarded since it was attached, `left` the packets
    that it saw and left to the kernel, by the reason in a word or two; `by_link` what became of packets on
    each link. `forwarding` is False while it is paused. None where it does not count that."""

    flows: int | None = None
    flows_limit: int | None = None
    links: int | None = None
    packets: int | None = None
    left: Mapping[str, int] = field(default_factory=dict)
    by_link: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    forwarding: bool = True


# Called at each scrape, from any thread; None where the fast path is off.
FastPathSource = Callable[[], FastPathNumbers | None]


def fill_fast_path(sheet: SampleSet, numbers: FastPathNumbers | None) -> None:
    """Add what there is."""
    sheet.add("vnet_fast_path_active", (), numbers is not None and numbers.forwarding)
    sheet.add("vnet_fast_path_running", (), numbers is not None)
    if numbers is None:
        return
    told = {
        "flows": numbers.flows,
        "flows_limit": numbers.flows_limit,
        "links": numbers.links,
        "packets_total": numbers.packets,
    }
    for name, value in told.items():
        if value is not None:
            sheet.add(f"vnet_fast_path_{name}", (), value)
    for reason, count in numbers.left.items():
        sheet.add("vnet_fast_path_kernel_packets_total", (reason,), count)
    for link, verdicts in sheet.bounded("fast path link", numbers.by_link.items()):
        for verdict, count in verdicts.items():
            sheet.add("vnet_fast_path_link_packets_total", (link, verdict), count)
