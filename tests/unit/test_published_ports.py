"""Published ports: from an engine's answer to the model."""

from __future__ import annotations

import pytest

from core.collect.engine_decode import container_of

BOTH = ("0.0.0.0", "::")
# (addresses, host port) that forward to port 80, and the expected model.
CASES = {
    "both families": ([(one, 8080) for one in BOTH], [("", 8080)]),
    "IPv4 alone": ([("0.0.0.0", 8080)], [("0.0.0.0", 8080)]),
    "IPv6 alone": ([("::", 8091)], [("::", 8091)]),
    "another port of each": ([("0.0.0.0", 32768), ("::", 32769)], [("0.0.0.0", 32768), ("::", 32769)]),
    "routed IPv4, a proxy for IPv6": ([("0.0.0.0", 0), ("::", 8102)], [("::", 8102)]),
    "one address beside all": (
        [("0.0.0.0", 80), ("::", 80), ("192.0.2.1", 80)],
        [("", 80), ("192.0.2.1", 80)],
    ),
    "only exposed": ([("", 0)], []),
}


@pytest.mark.parametrize("case", CASES)
def test_ports_of_dockers_keep_their_family(case: str) -> None:
    given, expected = CASES[case]
    given_ports = [{"IP": ip, "PrivatePort": 80, "PublicPort": port, "Type": "tcp"} for ip, port in given]
    listed = {"Id": "ab" * 32, "Names": ["/web"], "State": "exited", "Created": 1, "Ports": given_ports}
    found = container_of("docker", listed, None).ports
    assert [(port.host_ip, port.host_port) for port in found] == expected


def test_podman_means_both_families() -> None:
    given_ports = [{"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"}]
    listed = {"Id": "ab" * 32, "Names": ["/web"], "State": "exited", "Created": 1, "Ports": given_ports}
    assert [port.host_ip for port in container_of("podman", listed, None).ports] == [""]
