"""Answers of etcd that are malformed, too large or not etcd's are errors as text."""

from __future__ import annotations

import json
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from core.collect import etcd
from core.collect.etcd import EtcdError
from core.model.etcd import Definition, definition_key, is_host, normal_endpoints, parse_definition, prefix_of
from core.state import boot_id

GOOD = Definition(77, ("10.9.0.0/24", "fd09::/64"), ("10.9.0.1", "fd09::1"), 1400, True, 65001)


class _Handler(BaseHTTPRequestHandler):
    status, content = 200, b"{}"
    pause = 0.0  # seconds, between bytes
    count = 0  # of requests

    def do_POST(self) -> None:
        _Handler.count += 1
        self.rfile.read(int(self.headers["Content-Length"]))  # unread, it would reset the connection
        self.send_response(_Handler.status)
        self.send_header("Location", "http://192.0.2.9/")
        self.end_headers()
        if not _Handler.pause:
            self.wfile.write(_Handler.content)
            return
        with suppress(OSError):  # the client has closed the connection
            for byte in _Handler.content:
                self.wfile.write(bytes([byte]))
                time.sleep(_Handler.pause)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Print nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    _Handler.status, _Handler.content, _Handler.pause, _Handler.count = 200, b"{}", 0.0, 0
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "content", "reason"),
    [
        (200, b"", "isn't etcd"), (200, b"<html>", "isn't etcd"), (200, b"[1]", "isn't etcd"),
        (200, b"[" * 100_000, "isn't etcd"), (404, b"not found", "isn't etcd"), (302, b"", "isn't etcd"),
        (200, b"\xff\xfe\x00", "isn't etcd"), (503, b'{"message":"\x1b[31mno leader"}', "isn't etcd"),
        (503, rb'{"message":"\u001b[31mno leader"}', r"refused: \x1b[31mno leader"),
        (400, b'{"error":{"deep":1}}', "refused: {'deep': 1}"), (500, b"{}", "refused: 500"),
        (200, b'{"kvs":[{"key":1}]}', "can't be read"), (200, b'{"kvs":7}', "can't be read"),
        (200, b'{"kvs":[{}]}', "can't be read"),
        (200, b'{"kvs":[{"key":"YQ==","lease":"x"}]}', "can't be read"),
    ],
)  # fmt: skip
def test_malformed_answers(url: str, status: int, content: bytes, reason: str) -> None:
    _Handler.status, _Handler.content = status, content
    with pytest.raises(EtcdError) as caught:
        etcd.read_prefix(url, "/x/")
    assert reason in str(caught.value) and "\x1b" not in str(caught.value)


@pytest.mark.parametrize(("status", "uncertain"), [(400, False), (503, True), (504, True)])
def test_a_failure_of_the_server_leaves_open_what_it_did(url: str, status: int, uncertain: bool) -> None:
    _Handler.status, _Handler.content = status, b'{"message":"etcdserver: request timed out"}'
    with pytest.raises(EtcdError) as caught:
        etcd.transaction(url, [], [etcd.put("/x/", "1")])
    assert caught.value.uncertain == uncertain


def test_a_slow_answer_is_cut_off(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd, "_LONGEST", 0.1)
    _Handler.content, _Handler.pause = b" " * 200, 0.05
    started = time.monotonic()
    with pytest.raises(EtcdError, match="took too long"):
        etcd.read_prefix(url, "/x/")
    assert time.monotonic() - started < 5


def test_a_server_that_fails_is_asked_once(url: str) -> None:
    _Handler.status = 503
    found = etcd.read_networks({"blue": url, "green": url, "red": url})
    assert [one.problem for one in found.values()] == [f"etcd at {url} refused: 503"] * 3
    assert _Handler.count == 1


def test_bytes_that_are_no_text_are_sent_back(url: str) -> None:
    value = b64encode(b'{"x":"\xff"}').decode()
    _Handler.content = json.dumps({"kvs": [{"key": "YQ==", "value": value}]}).encode()
    (found,) = etcd.read_prefix(url, "/x/")
    assert etcd.has_value(found.key, found.value)["value"] == value


def test_a_large_answer_is_cut_off(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd, "_MOST_BYTES", 1 << 16)
    _Handler.content = b" " * (1 << 20)
    with pytest.raises(EtcdError, match="too large") as caught:
        etcd.grant(url, 10)
    assert caught.value.uncertain


def test_the_next_server_is_asked(url: str) -> None:
    assert etcd.read_prefix(f"http://127.0.0.1:1,{url}", "/x/") == []
    with pytest.raises(EtcdError, match="Connection refused") as caught:
        etcd.read_prefix("http://127.0.0.1:1", "/x/")
    assert not caught.value.uncertain


def test_a_server_without_a_valid_certificate_is_refused(url: str) -> None:
    with pytest.raises(EtcdError, match=r"doesn't answer \(.*SSL"):
        etcd.read_prefix(url.replace("http:", "https:"), "/x/")


def test_a_definition_that_is_missing_or_of_another_network(url: str) -> None:
    def encoded(text: str) -> str:
        return b64encode(text.encode()).decode()

    key, value = encoded(definition_key("blue")), encoded(GOOD.to_json())
    _Handler.content = json.dumps({"kvs": [{"key": key, "value": value}]}).encode()
    found = etcd.read_networks({"blue": url})["blue"]
    assert (found.definition, found.problem, found.stored) == (GOOD, "", GOOD.to_json())
    assert etcd.read_networks({"green": url})["green"].definition is None
    _Handler.content = json.dumps({"kvs": [{"key": key, "value": "!"}]}).encode()
    assert etcd.read_networks({"blue": url})["blue"].problem


def test_definitions_are_read_back() -> None:
    assert parse_definition(GOOD.to_json()) == GOOD
    assert prefix_of("blue").endswith("/blue/")


@pytest.mark.parametrize("key", ["vni", "mtu", "subnets", "gateways"])
def test_a_definition_needs_these_keys(key: str) -> None:
    values = json.loads(GOOD.to_json())
    assert parse_definition(json.dumps({**values, "asn": 0, "evpn": False}))
    del values[key]
    with pytest.raises(ValueError, match=f'"{key}" must be'):
        parse_definition(json.dumps(values))


@pytest.mark.parametrize(
    "text", ["", "ftp://a", "http://", "http://a/b", "http://a?b", "http://u@a", "http://a:x", "http://a b",
             "http://a:2379,", "http://[::1", "http://\x1b"],
)  # fmt: skip
def test_endpoints_that_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        normal_endpoints(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [("http://a:1 http://b:1", "separated by commas"), ("http://a:70000", "port"), ("http://a:1;x", "port")],
)
def test_mistyped_endpoints_say_what_is_wrong(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        normal_endpoints(text)


def test_endpoints_in_their_usual_form() -> None:
    assert normal_endpoints("http://A/, https://[2001:db8::1]:1") == "http://a:2379,https://[2001:db8::1]:1"


def test_addresses_of_hosts() -> None:
    assert is_host("192.0.2.1") and is_host("2001:db8::1")
    for text in ("", "x", "0.0.0.0", "127.0.0.1", "224.0.0.1", "192.0.2.01", "fe80::1%up0", "2001:DB8::1"):
        assert not is_host(text)


@pytest.mark.parametrize("content", ["", "7", "[]", '{"boot":1}', '{"networks":{"a":{}}}', "[" * 100_000])
def test_malformed_state_counts_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setenv("VNET_STATE", str(tmp_path))
    (tmp_path / etcd.SAVED).write_text(content)
    assert etcd.joined_networks() == {}


def test_what_was_joined_before_a_reboot_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VNET_STATE", str(tmp_path))
    joined = {"blue": {"endpoints": "http://a:2379", "host": "192.0.2.1", "hostname": "a", "seconds": 9}}
    for boot, count in ((boot_id(), 1), ("x", 0)):
        (tmp_path / etcd.SAVED).write_text(json.dumps({"boot": boot, "networks": joined}))
        assert len(etcd.joined_networks()) == count
