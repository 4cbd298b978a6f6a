"""HTTP with an engine: responses of every length, many at once, early closes."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from core.collect.engine_http import EngineConnection, RefusedByEngine
from tests.docker.bad_engine import BadEngine, http
from tests.support.waiting import PATIENCE

NUMBERED = [f"/{number}" for number in range(100)]
BIG = b'"' + b"x" * 300_000 + b'"'


def chunked(*pieces: bytes, after: bytes = b"") -> bytes:
    chunks = b"".join(b"%x;note=1\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n" + after + b"\r\n"


def own_path(path: str) -> Iterator[bytes]:
    yield http(path.removeprefix("/").encode())


def connection(
    engine: BadEngine, each: float = PATIENCE, total: float = PATIENCE
) -> closing[EngineConnection]:
    return closing(EngineConnection(str(engine.server_address), each, total))


def test_many_questions_are_answered_in_their_order(tmp_path: Path) -> None:
    with BadEngine(tmp_path / "s", own_path) as engine, connection(engine) as http_:
        assert list(http_.get_each(NUMBERED)) == list(range(100))
        assert engine.asked == NUMBERED
        assert http_.get_json("/7") == 7, "on the same connection"


@pytest.mark.parametrize("whole", [
    http(BIG), chunked(BIG[:7], BIG[7:]), chunked(BIG, after=b"Trailer: x\r\n"),
    b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(BIG), BIG),
])  # fmt: skip
@pytest.mark.parametrize("size", [1000, 70_000])
def test_answers_of_any_length_in_any_pieces(tmp_path: Path, whole: bytes, size: int) -> None:
    pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
    with BadEngine(tmp_path / "s", lambda _: iter(pieces)) as engine, connection(engine) as http_:
        assert [len(answer) for answer in http_.get_each(["/a", "/b"])] == [300_000, 300_000]


def test_an_engine_that_closes_after_each_answer(tmp_path: Path) -> None:
    def closing(path: str) -> Iterator[bytes]:
        yield from own_path(path)
        raise OSError("hang up")

    with BadEngine(tmp_path / "s", closing) as engine, connection(engine) as http_:
        assert list(http_.get_each(["/1", "/2", "/3"])) == [1, 2, 3]
        assert http_.get_json("/4") == 4


def test_an_answer_that_ends_with_the_connection(tmp_path: Path) -> None:
    def ending(path: str) -> Iterator[bytes]:
        yield b"HTTP/1.0 200 OK\r\n\r\n[1,"
        yield b" 2]"
        raise OSError("hang up")

    with BadEngine(tmp_path / "s", ending) as engine, connection(engine) as http_:
        assert list(http_.get_each(["/1", "/2"])) == [[1, 2], [1, 2]]


def test_an_engine_that_closes_at_once_is_not_asked_forever(tmp_path: Path) -> None:
    def hanging_up(path: str) -> Iterator[bytes]:
        raise OSError("hang up")

    with BadEngine(tmp_path / "s", hanging_up) as engine, connection(engine) as http_:
        with pytest.raises(ConnectionError, match="closed the connection"):
            list(http_.get_each(["/1", "/2"]))
        assert len(engine.asked) == 1


def test_a_refusal_is_among_the_answers(tmp_path: Path) -> None:
    def one_missing(path: str) -> Iterator[bytes]:
        yield http(b"gone", "404 Not Found") if path == "/2" else http(path[1:].encode())

    with BadEngine(tmp_path / "s", one_missing) as engine, connection(engine) as http_:
        first, second, third = http_.get_each(["/1", "/2", "/3"])
        assert (first, third) == (1, 3)
        assert isinstance(second, RefusedByEngine) and second.status == 404
        with pytest.raises(RefusedByEngine, match="gone"):
            http_.get_json("/2")


def test_the_total_time_is_limited(tmp_path: Path) -> None:
    """Every byte arrives in time, and the last one never."""

    def drip(path: str) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"
        while not engine.over.wait(0.05):
            yield b" "

    with BadEngine(tmp_path / "s", drip) as engine, connection(engine, 0.5, 0.6) as http_:
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            http_.get_json("/1")
        assert time.monotonic() - began >= 0.5, "it was waited for as long as it may take"


@pytest.mark.parametrize("head", [
    b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 101 + b"\r\n",
    b"HTTP/1.1 OK\r\n\r\n", b"HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n", b"x" * 70_000,
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n",
])  # fmt: skip
def test_a_head_that_is_not_http(tmp_path: Path, head: bytes) -> None:
    with (
        BadEngine(tmp_path / "s", lambda _: iter([head])) as engine,
        connection(engine, 0.5) as http_,
        pytest.raises((ValueError, TimeoutError)),
    ):
        http_.get_json("/1")


ENDLESS = {
    "a length": b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n",
    "until it closes": b"HTTP/1.0 200 OK\r\n\r\n",
    "in chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffff\r\n",
    "in a chunk of a negative size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
}


@pytest.mark.parametrize("head", ENDLESS.values(), ids=ENDLESS)
def test_an_endless_answer_takes_little_memory(tmp_path: Path, head: bytes) -> None:
    def endless(path: str) -> Iterator[bytes]:
        yield head
        while not engine.over.is_set():
            yield bytes(1 << 20)

    with BadEngine(tmp_path / "s", endless) as engine, connection(engine) as http_:
        tracemalloc.start()
        with pytest.raises(ValueError, match=r"more than 32 MiB|negative size"):
            http_.get_json("/1")
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert most < 120 << 20


@pytest.mark.parametrize("body", [b"[" * 100_000, b"[" + b"[]," * 2_000_000 + b"1]", b"1" * 10_000])
def test_an_answer_that_no_engine_gives(tmp_path: Path, body: bytes) -> None:
    with (
        BadEngine(tmp_path / "s", lambda _: iter([http(body)])) as engine,
        connection(engine) as http_,
        pytest.raises(ValueError),
    ):
        http_.get_json("/1")


def test_a_truncated_answer(tmp_path: Path) -> None:
    def cut(path: str) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n12"
        raise OSError("hang up")

    with (
        BadEngine(tmp_path / "s", cut) as engine,
        connection(engine) as http_,
        pytest.raises(ValueError, match="truncated"),
    ):
        http_.get_json("/1")
