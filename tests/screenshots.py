"""`make screenshots`: pictures of the running dashboard on the demo lab, as SVG, into screenshots/."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from core.lab import Lab

HERE = Path(__file__).parent.parent
SHOTS = (
    ("overview", "1", (130, 40)),
    ("overview-80x24", "1", (80, 24)),
    ("overview-200x60", "1", (200, 60)),
    ("bridges", "2", (130, 40)),
    ("veths", "3", (130, 40)),
    ("namespaces", "4", (130, 40)),
    ("containers", "5", (130, 40)),
    ("nat", "6", (130, 40)),
    ("conntrack", "7", (130, 40)),
    ("routes", "8", (130, 40)),
    ("events", "9", (130, 40)),
    ("help", "3 ?", (130, 40)),
)
_SETTLE = 4.0  # seconds of traffic, so that rates have something to say


async def shoot(folder: Path, names: set[str]) -> None:
    """Take the pictures; runs inside the lab."""
    from tui.app import VnetApp
    from tui.live import LiveSource

    for name, keys, size in SHOTS:
        if names and name not in names:
            continue
        app = VnetApp(LiveSource())
        async with app.run_test(size=size) as pilot:
            for key in keys.split():
                await pilot.press("question_mark" if key == "?" else key)
            await pilot.pause(_SETTLE)
            (folder / f"{name}.svg").write_text(app.export_screenshot(title="vnet-tui"))
            print(f"{name}.svg", flush=True)


def main(arguments: list[str]) -> int:
    """Without a lab around: make one and run this again inside it."""
    if os.environ.get("VNET_SCREENSHOTS"):
        asyncio.run(shoot(Path(os.environ["VNET_SCREENSHOTS"]), set(arguments)))
        return 0
    folder = HERE / "screenshots"
    folder.mkdir(exist_ok=True)
    with Lab() as lab:
        environment = {**os.environ, "VNET_SCREENSHOTS": str(folder), "PYTHONPATH": str(HERE)}
        return lab.run_inside([sys.executable, "-m", "tests.screenshots", *arguments], env=environment)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
