"""The agent reattaches containers of a real podman, as it does Docker's."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from core.agent import AttachmentRestorer
from core.netlink.netns import entered
from core.operations import attachments
from tests.docker.podman_engine import PodmanHost
from tests.support.waiting import wait_until
from tui.cli import main

pytestmark = pytest.mark.root


def test_a_restarted_podman_container_is_attached_again(
    podman_host: PodmanHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VNET_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("CONTAINER_HOST", f"unix://{podman_host.socket}")
    monkeypatch.setenv("VNET_ENGINES", "podman")
    name, subnet = f"pod{os.getpid()}", f"10.79.{os.getpid() % 256}"
    podman_host.container(name)

    def addresses() -> list[str]:
        pid = podman_host.run("inspect", "-f", "{{.State.Pid}}", name)
        output = podman_host.host.run(f"nsenter -t {pid} -n ip -j addr show dev shop0", check=False)
        return [one["local"] for link in json.loads(output or "[]") for one in link["addr_info"]]

    said: list[str] = []
    restarted = AttachmentRestorer(said.append)
    with entered(f"/run/netns/{podman_host.host.name}"):
        try:
            assert main(["network", "create", "shop", "--subnet", f"{subnet}.0/24"]) == 0
            assert main(["attach", name, "shop", "--address", f"{subnet}.9", "--link", "shop0"]) == 0
            podman_host.run("restart", "-t", "0", name)
            assert f"{subnet}.9" not in addresses()
            wait_until(lambda: restarted.restore() and f"{subnet}.9" in addresses(), "the attachment")
            assert said == [f"{name} has started: attached to shop again"]
        finally:
            assert main(["cleanup", "--yes"]) == 0
    assert attachments.read_attachments() == ()
