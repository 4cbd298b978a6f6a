"""Names from a hosts file; the resolver is asked only on request."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from core.collect import host
from core.collect.host import PeerNames, read_hosts
from core.flows import address_bytes

TEXT = """
127.0.0.1 localhost
10.0.0.5  files.example files # the store
10.0.0.5  later
2001:db8::5 six
nonsense here
"""


def test_the_first_name_counts(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text(TEXT)
    assert read_hosts(path) == {
        address_bytes("10.0.0.5"): "files.example",
        address_bytes("2001:db8::5"): "six",
    }
    assert read_hosts(tmp_path / "there is none") == {}


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("10.0.0.5 one")
    names = PeerNames(path)
    assert list(names.all_names().values()) == ["one"]
    path.write_text("10.0.0.5 another")

    os.utime(path, ns=(1, 1))
    assert list(names.all_names().values()) == ["another"]


def test_the_resolver_is_asked_only_on_demand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answer(address: str) -> tuple[str, list[str], list[str]]:
        asked.append(address)
        return f"host-{address}", [], []

    monkeypatch.setattr(host.socket, "gethostbyaddr", answer)
    monkeypatch.delenv(host.REVERSE_DNS, raising=False)
    raw = address_bytes("198.51.100.9")
    quiet = PeerNames(tmp_path / "none")
    quiet.query([raw])
    asking = PeerNames(tmp_path / "none", reverse=True)
    for _ in range(3):
        asking.query([raw])
    assert asking._thread
    asking._thread.join(10)
    assert asked == ["198.51.100.9"]
    assert asking.all_names() == {raw: "host-198.51.100.9"}
    assert quiet.all_names() == {}
