"""Questions to a container engine over its unix socket: HTTP/1.1, many of them at once on one connection."""

from __future__ import annotations

import io
import json
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from types import TracebackType
from typing import Any, NamedTuple, Self

from core.files import SizeCounter, TooLarge

_LONGEST = 200
_PIECE = 1 << 16
# Questions sent before the first answer is read: few enough that neither side waits for the other to read.
_AT_ONCE = 32
_MOST_VALUES = 1 << 22
_MOST_BYTES = 1 << 25  # of one answer: a list of ten thousand containers


class RefusedByEngine(Exception):
    """The engine answered with an HTTP `status` other than 200."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status


class Waiting(io.RawIOBase):
    """What a socket receives, for `timeout` seconds a wait at most, and none after the deadline."""

    def __init__(self, connection: socket.socket, timeout: float, deadline: float) -> None:
        self._socket, self._timeout, self._deadline = connection, timeout, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, room: Any) -> int:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(min(left, self._timeout))
        return self._socket.recv_into(room)


class _Shared(io.BufferedReader):
    """One file for many answers: each closes it when it is read, and the next one goes on in it."""

    def makefile(self, mode: str) -> Self:
        return self

    def close(self) -> None:
        return None


class _Answer(NamedTuple):
    """An HTTP answer; the names of its header fields are in small letters."""

    status: int
    fields: Mapping[str, str]
    body: bytes


class EngineHttp:
    """A connection to the engine's socket at `path`, opened when first asked; each wait for bytes takes
    `timeout` seconds at most, all that is done by it `total`. Use it as a context manager.

    All methods raise OSError or ValueError where the answer is none.
    """

    def __init__(self, path: str, timeout: float, total: float) -> None:
        self._path, self._timeout = path, timeout
        self._deadline = time.monotonic() + total
        self._socket: socket.socket | None = None
        self._answered = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def ask(self, question: str) -> Any:
        """What `GET question` answers, of JSON's own types. Raises RefusedByEngine."""
        (answer,) = self.ask_all([question])
        if isinstance(answer, RefusedByEngine):
            raise answer
        return answer

    def ask_all(self, questions: Sequence[str]) -> Iterator[Any]:
        """What each of them answers, or RefusedByEngine, in their order, asked together."""
        for start in range(0, len(questions), _AT_ONCE):
            for answer in self._answers(questions[start : start + _AT_ONCE]):
                yield _parsed(answer.body) if answer.status == HTTPStatus.OK else _refusal(answer)

    def headers_of(self, question: str) -> Mapping[str, str]:
        """The header fields of the answer. Raises RefusedByEngine."""
        (answer,) = self._answers([question])
        if answer.status != HTTPStatus.OK:
            raise _refusal(answer)
        return answer.fields

    def _answers(self, questions: Sequence[str]) -> Iterator[_Answer]:
        self._send(questions)
        for place in range(len(questions)):
            answer = self._read()
            if answer is None and self._answered:
                self._close()
                self._send(questions[place:])
                answer = self._read()
            if answer is None:
                raise ConnectionError("the engine hung up")
            self._answered = True
            yield answer

    def _send(self, questions: Sequence[str]) -> None:
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.settimeout(self._timeout)
            self._socket.connect(self._path)
            self._file = _Shared(Waiting(self._socket, self._timeout, self._deadline), _PIECE)
            self._answered = False
        asked = "".join(f"GET {question} HTTP/1.1\r\nHost: engine\r\n\r\n" for question in questions)
        try:
            self._socket.sendall(asked.encode())
        except ConnectionError:
            if not self._answered:
                raise
            self._close()  # by the engine after an earlier answer, as it may be
            self._send(questions)

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _read(self) -> _Answer | None:
        """The next answer, None where the engine closed the connection before it."""
        answer = HTTPResponse(self._file)  # type: ignore[arg-type]  # of a socket it wants the file alone
        try:
            answer.begin()
            body = _body(answer)
        except ConnectionError:
            return None
        except HTTPException as error:
            raise ValueError(f"an answer that is no HTTP: {error!r}"[:_LONGEST]) from error
        return _Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, body)


def _parsed(body: bytes) -> Any:
    try:
        SizeCounter(_MOST_VALUES).add(body)
        return json.loads(body)
    except (TooLarge, RecursionError) as error:
        raise ValueError(f"an answer that no engine gives ({error})") from error


def _body(answer: HTTPResponse) -> bytes:
    """All of it, in pieces: what a length or a chunk's size says is not believed."""
    body = bytearray()
    while piece := answer.read(_PIECE):
        body += piece
        if len(body) > _MOST_BYTES:
            raise ValueError(f"an answer of more than {_MOST_BYTES >> 20} MiB")
    if answer.length:
        raise ValueError("an answer that ends too early")
    return bytes(body)


def _refusal(answer: _Answer) -> RefusedByEngine:
    return RefusedByEngine(answer.status, answer.body[:_LONGEST].decode(errors="replace").strip())
