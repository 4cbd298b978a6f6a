"""The client of the Docker Engine for changes, and its errors."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from core.model import Engine

_SECONDS = 30.0
_LONGEST = 300


class EngineError(Exception):
    """Docker did not execute a request; the text is the reason.

    `answered`: Docker itself refused it. `already`: the requested state exists already. `uncertain`: the
    request may have been executed, in whole or in part.
    """

    def __init__(
        self, text: str, answered: bool = False, already: bool = False, uncertain: bool = False
    ) -> None:
        super().__init__(text)
        self.answered = answered
        self.already = already
        self.uncertain = uncertain


def open_docker() -> Any:
    """Return the low-level client of the Docker SDK. Raises EngineError.

    It connects to DOCKER_HOST if that is a unix socket, else to Docker's default socket.
    """
    # Imported late, like the SDK: only changes of Docker networks need it.
    from core.collect.engine_http import Unreachable, connected, find_socket
    from core.collect.engines import DOCKER

    try:
        path = find_socket(DOCKER, None)
        with connected(DOCKER, path):
            pass
    except Unreachable as error:
        raise EngineError(_why(error.engine)) from error
    from docker.api import APIClient
    from docker.errors import DockerException

    try:
        return APIClient(f"unix://{path}", timeout=_SECONDS)
    except (DockerException, OSError) as error:
        raise EngineError(f"Docker gives an unexpected answer: {error}"[:_LONGEST]) from error


def post(client: Any, path: str, body: Any) -> None:
    """Post a request that the SDK has no function for. Raises the exceptions of the SDK's client."""
    from docker.errors import create_api_error_from_http_exception
    from requests import HTTPError

    answer = client.post(f"{client.base_url}/v{client.api_version}{path}", json=body, timeout=_SECONDS)
    try:
        answer.raise_for_status()
    except HTTPError as error:
        raise create_api_error_from_http_exception(error) from error


@contextmanager
def engine_errors(already: Collection[int] = ()) -> Iterator[None]:
    """Raise the errors of the client in the body as EngineError.

    HTTP states in `already` mean that the requested state exists already.
    """
    from docker.errors import APIError, DockerException
    from requests.exceptions import RequestException

    try:
        yield
    except APIError as error:
        status = error.response.status_code if error.response is not None else 0
        text = str(error.explanation or error)[:_LONGEST].strip()
        broken = status >= HTTPStatus.INTERNAL_SERVER_ERROR
        raise EngineError(f"Docker says: {text}", True, status in already, broken) from error
    except (RequestException, DockerException, OSError) as error:
        text = "Docker did not finish its answer. Try: systemctl status docker"
        raise EngineError(text, uncertain=True) from error


def _why(engine: Engine) -> str:
    problems = engine.problems
    if not problems:
        return "Docker is not installed here"
    words = "; ".join(
        word for word in (problems[0].why, problems[0].try_ and f"try: {problems[0].try_}") if word
    )
    return f"{problems[0].what} ({words})" if words else problems[0].what
