"""The agent asks an etcd that doesn't answer once at a poll, and all others."""

from __future__ import annotations

import pytest

from core import etcd_sync
from core.collect import etcd
from core.collect.etcd import EtcdError, Joined
from core.etcd_sync import EtcdSync


def test_each_server_that_fails_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def read_prefix(endpoints: str, prefix: str) -> None:
        asked.append(endpoints)
        raise EtcdError(f"{endpoints} doesn't answer")

    joined = {
        name: Joined(url, "192.0.2.1", "one", 120)
        for name, url in (("blue", "http://a"), ("green", "http://a"), ("red", "http://b"))
    }
    monkeypatch.setattr(etcd_sync, "joined_networks", lambda: joined)
    monkeypatch.setattr(etcd, "read_prefix", read_prefix)
    monkeypatch.setattr(EtcdSync, "_follow_hosts", lambda self, joined: None)
    with pytest.raises(EtcdError, match="http://a doesn't answer"):
        EtcdSync(print).sync()
    assert asked == ["http://a", "http://b"]
