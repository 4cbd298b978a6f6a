"""The way to the Docker Engine for a change, and what it refuses, in words."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from core.collect.engine_http import Unreachable, connected, find_socket
from core.collect.engines import DOCKER

_SECONDS = 30.0
_LONGEST = 300


class EngineError(Exception):
    """Docker did not do it; the text says why. `answered` where Docker itself says so; `already` where what
    was asked for is so already; `doubtful` where it may have been done, in whole or in part, all the same."""

    def __init__(
        self, text: str, answered: bool = False, already: bool = False, doubtful: bool = False
    ) -> None:
        super().__init__(text)
        self.answered = answered
        self.already = already
        self.doubtful = doubtful


def open_docker() -> Any:
    """The Docker SDK's low-level client, at DOCKER_HOST where that is a unix socket, else at the usual
    one. Raises EngineError."""
    try:
        path = find_socket(DOCKER, None)
        with connected(DOCKER, path):
            pass
    except Unreachable as error:
        raise EngineError(_why(error)) from error
    from docker.api import APIClient  # loaded for those alone who change something of Docker's
    from docker.errors import DockerException

    try:
        return APIClient(f"unix://{path}", timeout=_SECONDS)
    except (DockerException, OSError) as error:
        raise EngineError(f"Docker does not answer as it should: {error}"[:_LONGEST]) from error


def post(client: Any, path: str, body: Any) -> None:
    """Ask Docker's API for what the SDK has no words for. Raises what the SDK's client raises."""
    from docker.errors import create_api_error_from_http_exception
    from requests import HTTPError

    answer = client.post(f"{client.base_url}/v{client.api_version}{path}", json=body, timeout=_SECONDS)
    try:
        answer.raise_for_status()
    except HTTPError as error:
        raise create_api_error_from_http_exception(error) from error


@contextmanager
def asked(already: Collection[int] = ()) -> Iterator[None]:
    """Turn what the client raises in the body into EngineError; the HTTP states in `already` mean that what
    was asked for is so already."""
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
        text = "Docker did not answer to the end (it stopped, perhaps): systemctl status docker"
        raise EngineError(text, doubtful=True) from error


def _why(error: Unreachable) -> str:
    problems = error.engine.problems
    if not problems:
        return "Docker is not installed here"
    words = "; ".join(
        word for word in (problems[0].why, problems[0].try_ and f"try: {problems[0].try_}") if word
    )
    return f"{problems[0].what} ({words})" if words else problems[0].what
