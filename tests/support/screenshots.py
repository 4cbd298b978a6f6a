"""Take screenshots of the dashboard on the demo lab as SVG: `make screenshots`."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from pathlib import Path

from core.lab import Lab
from core.lab.hosts_lab import HostsLab

HERE = Path(__file__).parents[2]
# Each picture's name, its keys ("/word", ":word" and "=word" are typed, "~" waits a while), and its size. The
# selected row is an interesting one.
SHOTS = (
    ("overview", "1 /blog enter j escape", (130, 40)),
    ("overview-80x24", "1", (80, 24)),
    ("overview-200x60", "1 /web2 enter j escape", (200, 60)),
    ("bridges", "2 /br-shop enter escape", (130, 40)),
    ("veths", "3 /mtu:differs enter escape", (130, 40)),
    ("namespaces", ":namespaces enter /web1 enter escape", (130, 40)),
    ("containers", "5 /blog enter escape", (130, 40)),
    ("nat", "6 /port:8080 enter escape", (130, 40)),
    ("conntrack", "7 /ns:web1_proto:tcp enter j", (130, 40)),
    ("routes", ":routes enter", (130, 40)),
    ("events", "9 j", (130, 40)),
    ("findings", "1 !", (130, 40)),
    ("doctor", ":doctor enter j j", (130, 40)),
    ("why", "5 /web2 enter escape w =203.0.113.80_443 enter ~ t ~", (130, 40)),
    ("drops", ":drops enter ~ ~ ~ ~ ~ ~", (130, 40)),
    ("help", "3 ?", (130, 40)),
    ("form-network", "W n s h o p 2", (130, 40)),
    ("delete", "2 W d", (130, 40)),
    ("flows", ":flows enter ~ g j", (130, 40)),
    ("flows-80x24", ":flows enter ~ g j", (80, 24)),
    ("flows-by-container", ":flows enter b", (130, 40)),
    ("form-fastpath", "2 W /br-shop enter escape f", (130, 40)),
    ("fastpath", "2 W /br-shop enter escape f ~ y ~ ~ ~ :fastpath enter ~ g", (130, 40)),
)
# The same, on the first of three hosts.
HOSTS_SHOTS = (("overlay", ":overlay enter j", (130, 40)),)
_NAMED = {
    "?": "question_mark",
    "!": "exclamation_mark",
    "/": "slash",
    ":": "colon",
    "_": "space",
    "-": "minus",
}
_SETTLE = 12.0  # seconds of traffic, which rates and sparklines need


async def shoot(folder: Path, names: set[str]) -> None:
    """Take the pictures of these names; runs inside the lab."""
    from tui.app import VnetApp
    from tui.cli.dashboard import DashboardFastPath, open_drops
    from tui.cli.session import ChangeSession
    from tui.services import Services
    from tui.sources import LiveSource

    for name, keys, size in (*SHOTS, *HOSTS_SHOTS):
        if name not in names:
            continue
        fast = DashboardFastPath()
        services = Services(ChangeSession, fast.fast_path_service)
        app = VnetApp(LiveSource(fast.flows, open_drops), services=services)
        async with app.run_test(size=size) as pilot:
            await pilot.pause(_SETTLE)
            for word in keys.split():
                if word == "~":
                    await pilot.pause(3.0)
                    continue
                typed = word.lstrip("=") if word[0] in "/:=" else [word]
                await pilot.press(*(_NAMED.get(key, key) for key in typed))
            await pilot.pause(2.0)
            (folder / f"{name}.svg").write_text(app.export_screenshot(title="vnet-tui"))
            print(f"{name}.svg", flush=True)


def main(arguments: list[str]) -> int:
    """Outside a lab, start one and run this again inside it."""
    if os.environ.get("VNET_SCREENSHOTS"):
        asyncio.run(shoot(Path(os.environ["VNET_SCREENSHOTS"]), set(arguments)))
        return 0
    folder = HERE / "screenshots"
    folder.mkdir(exist_ok=True)
    wanted, several = ({shot[0] for shot in shots} for shots in (SHOTS, HOSTS_SHOTS))
    if arguments:
        wanted, several = wanted & set(arguments), several & set(arguments)
    code = 0
    if wanted:
        with Lab() as lab:
            code = _shoot_inside(lab, folder, wanted)
    if several:
        with HostsLab(3) as hosts:
            code = code or _shoot_inside(hosts.hosts[0], folder, several)
    return code


def _shoot_inside(lab: Lab, folder: Path, names: set[str]) -> int:
    """Run this module inside a lab; return its exit code."""
    with tempfile.TemporaryDirectory() as state:
        environment = {
            **os.environ, "VNET_SCREENSHOTS": str(folder), "PYTHONPATH": str(HERE), "VNET_STATE": state
        }  # fmt: skip
        command = [sys.executable, "-m", "tests.support.screenshots", *names]
        return lab.run_inside(command, env=environment)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
