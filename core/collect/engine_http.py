"""Questions to a container engine over its unix socket: HTTP/1.1, all of them on one connection."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from http import HTTPStatus
from http.client import HTTPConnection
from types import TracebackType
from typing import Any, Self

_LONGEST = 200


class RefusedByEngine(Exception):
    """The engine answered with an HTTP `status` other than 200."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status


class EngineHttp(HTTPConnection):
    """A connection to the engine's socket at `path`, opened when first asked; each wait for bytes takes
    `timeout` seconds at most. Use it as a context manager."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("engine", timeout=timeout)
        self._path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)

    def ask(self, question: str) -> Any:
        """What `GET question` answers, of JSON's own types. Raises RefusedByEngine, and OSError,
        HTTPException or ValueError where the answer is none."""
        return json.loads(self._get(question)[1])

    def headers_of(self, question: str) -> Mapping[str, str]:
        """The header fields of the answer, their names in small letters. Raises as `ask`."""
        return self._get(question)[0]

    def _get(self, question: str) -> tuple[Mapping[str, str], bytes]:
        self.request("GET", question)
        answer = self.getresponse()
        body = answer.read()
        if answer.status != HTTPStatus.OK:
            raise RefusedByEngine(answer.status, body[:_LONGEST].decode(errors="replace").strip())
        return {name.lower(): value for name, value in answer.getheaders()}, body
