"""Questions to a container engine over its unix socket: HTTP/1.1, many of them at once on one connection."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from types import TracebackType
from typing import Any, NamedTuple, Self

_LONGEST, _LONGEST_LINE, _MOST_FIELDS = 200, 65536, 100
_PIECE = 1 << 18
# Questions sent before the first answer is read: few enough that neither side waits for the other to read.
_AT_ONCE = 32


class RefusedByEngine(Exception):
    """The engine answered with an HTTP `status` other than 200."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status


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
        self._read_ahead = b""
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
                yield json.loads(answer.body) if answer.status == HTTPStatus.OK else _refusal(answer)

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
            self._read_ahead, self._answered = b"", False
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
        try:
            first = self._line()
        except ConnectionError:
            return None
        if not first:
            return None
        words = first.split(maxsplit=2)
        if not first.startswith(b"HTTP/1.") or len(words) < 2:
            raise ValueError("an answer that is no HTTP")
        fields = self._fields()
        return _Answer(int(words[1]), fields, self._body(fields))

    def _fields(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for _ in range(_MOST_FIELDS):
            line = self._line()
            if line in (b"\r\n", b"\n"):
                return found
            name, colon, value = line.decode("latin-1").partition(":")
            if not colon:
                break
            found[name.lower()] = value.strip()
        raise ValueError("an answer with a head that is no HTTP")

    def _body(self, fields: Mapping[str, str]) -> bytes:
        if fields.get("transfer-encoding", "").lower() == "chunked":
            return b"".join(self._chunks())
        if "content-length" in fields:
            return self._whole(int(fields["content-length"]))
        while self._more():
            pass
        return self._taken(len(self._read_ahead))

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self._line().partition(b";")[0], 16):
            yield self._whole(size)
            self._line()
        while self._line().strip():
            pass  # fields may follow the last chunk

    def _line(self) -> bytes:
        """The next line with its end, without where the engine hung up."""
        while (end := self._read_ahead.find(b"\n")) < 0 and len(self._read_ahead) < _LONGEST_LINE:
            if not self._more():
                break
        return self._taken(end + 1 or len(self._read_ahead))

    def _whole(self, size: int) -> bytes:
        if size < 0:
            raise ValueError("an answer of negative length")
        parts, missing = [self._taken(size)], size
        while missing := missing - len(parts[-1]):
            if not self._more():
                raise ValueError("half an answer")
            parts.append(self._taken(missing))
        return b"".join(parts)

    def _taken(self, size: int) -> bytes:
        found, self._read_ahead = self._read_ahead[:size], self._read_ahead[size:]
        return found

    def _more(self) -> bool:
        """Wait for more bytes; whether there will be any."""
        assert self._socket is not None
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(min(left, self._timeout))
        found = self._socket.recv(_PIECE)
        self._read_ahead += found
        return bool(found)


def _refusal(answer: _Answer) -> RefusedByEngine:
    return RefusedByEngine(answer.status, answer.body[:_LONGEST].decode(errors="replace").strip())
