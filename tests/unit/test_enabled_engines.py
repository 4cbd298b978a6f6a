"""VNET_ENGINES lists the engines that are read."""

from __future__ import annotations

import pytest

from core import tools
from core.collect import engines, ovs


@pytest.mark.parametrize(
    ("variable", "enabled"),
    [
        ("", ["docker", "podman", "ovs"]),
        ("none", []),
        ("podman", ["podman"]),
        (" Docker, ovs ", ["docker", "ovs"]),
    ],
)
def test_engines_not_listed_are_disabled(
    monkeypatch: pytest.MonkeyPatch, variable: str, enabled: list[str]
) -> None:
    monkeypatch.setenv(tools.ENGINES, variable)
    assert [name for name in ("docker", "podman", "ovs") if tools.is_engine_enabled(name)] == enabled


def test_a_disabled_engine_is_absent_without_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere")
    monkeypatch.setenv("CONTAINER_HOST", "unix:///nowhere")
    assert "docker" in {problem.part for problem in engines.read_docker().problems}
    monkeypatch.setenv(tools.ENGINES, "none")
    for engine in (engines.read_docker(), engines.read_podman()):
        assert (engine.state, engine.problems) == ("absent", ())
    assert ovs.read_ovs() == ((), ())
