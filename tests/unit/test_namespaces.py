"""Check the systemd unit of a cgroup."""

import pytest

from core.collect.namespaces import unit_of

V1 = """\
9:name=systemd:/system.slice/docker.service
8:pids:/system.slice/other.service
0::/
"""
DOCKER = "0::/system.slice/docker-0123abcd.scope\n"


@pytest.mark.parametrize(
    ("cgroups", "unit"),
    [
        ("0::/system.slice/nginx.service\n", "nginx.service"),
        ("0::/user.slice/user-0.slice/session-3.scope\n", "session-3.scope"),
        ("0::/system.slice/podman.service/libpod-payload-1\n", "podman.service"),
        ("0::/user.slice/user-0.slice/user@0.service/app.slice/web.service\n", "web.service"),
        (DOCKER, "docker-0123abcd.scope"),
        (V1, "docker.service"),
        ("0::/\n", ""),
        ("4:memory:/system.slice/x.service\n0::/\n", ""),
        ("", ""),
    ],
)
def test_the_unit_is_the_innermost_one_of_systemds_own_hierarchy(cgroups: str, unit: str) -> None:
    assert unit_of(cgroups) == unit
