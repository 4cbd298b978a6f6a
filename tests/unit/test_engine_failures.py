"""Absent, stopped, denied, slow or broken engines have a state with a reason.

None makes a command hang.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core.collect import engine_http, engines
from core.collect.engine_http import EngineKind, Unreachable, find_socket
from core.collect.engines import DOCKER, read_docker, read_podman, watch_docker
from core.model import Engine
from tests.docker.bad_engine import BadEngine, http
from tests.support.waiting import PATIENCE, wait_until

Read = Callable[[str], Engine]
VERSION = {"Version": "26.1.5", "ApiVersion": "1.45"}
LISTED = {"Id": "ab" * 32, "Names": ["/web"], "State": "exited", "Created": 1700000000}
NETWORK = {"Id": "cd" * 32, "Name": "net", "Driver": "bridge"}
LIBPOD_NETWORK = {"id": "cd" * 32, "name": "net", "driver": "bridge", "network_interface": "podman0"}
GOOD = {
    "_ping": "OK",
    "version": VERSION,
    "containers/json": [LISTED],
    "networks": [NETWORK],
    "libpod/networks/json": [LIBPOD_NETWORK],
}


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    return tmp_path / "engine.sock"


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for each response, however busy the machine is."""
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    _wait(monkeypatch, PATIENCE, PATIENCE)


@pytest.fixture
def impatient(patient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use short time limits, for engines that never respond."""
    _wait(monkeypatch, 0.5, 1.5)


def _wait(monkeypatch: pytest.MonkeyPatch, request: float, total: float) -> None:
    monkeypatch.setattr(engine_http, "REQUEST_SECONDS", request)
    monkeypatch.setattr(engine_http, "TOTAL_SECONDS", total)


@pytest.fixture(params=[read_docker, read_podman], ids=["docker", "podman"])
def read(request: pytest.FixtureRequest) -> Read:
    return request.param


def good(path: str) -> bytes:
    """Return what a working engine responds."""
    key = max((key for key in GOOD if path.partition("?")[0].endswith(f"/{key}")), key=len)
    return http(json.dumps(GOOD[key]).encode())


def instead(part: str, answer: bytes) -> Callable[[str], Iterator[bytes]]:
    """Return the responses of a working engine, except for one path."""
    return lambda path: iter([answer if path.partition("?")[0].endswith(part) else good(path)])


def assert_broken(engine: Engine, word: str) -> None:
    assert engine.state == "error"
    assert not engine.containers and not engine.networks
    [problem] = engine.problems
    assert problem.part == engine.name
    assert word in problem.what
    assert problem.why and problem.try_


def test_a_working_engine_is_read(socket_path: Path, read: Read) -> None:
    with BadEngine(socket_path, lambda path: iter([good(path)])):
        engine = read(str(socket_path))
    assert (engine.state, engine.version, engine.problems) == ("ok", "26.1.5", ())
    assert [(c.name, c.state, c.pid, c.created) for c in engine.containers] == [
        ("web", "exited", None, "2023-11-14T22:13:20+00:00")
    ]
    assert [(n.name, n.id) for n in engine.networks] == [("net", "cd" * 32)]


def test_the_order_of_dockers_answers_does_not_matter(socket_path: Path) -> None:
    ports = [
        {"Type": "tcp", "PublicPort": n, "PrivatePort": n, "IP": ip}
        for n in (8, 2, 5)
        for ip in ("::", "10.0.0.1")
    ]
    nets = [{**NETWORK, "Name": name, "Id": name} for name in ("front", "back", "mid")]
    read = []
    for turn in (1, -1):
        documents = {"containers/json": [{**LISTED, "Ports": ports[::turn]}], "networks": nets[::turn]}
        answers = {f"/{part}": http(json.dumps(what).encode()) for part, what in documents.items()}

        def answer(path: str, answers: dict[str, bytes] = answers) -> Iterator[bytes]:
            asked = path.partition("?")[0]
            return iter([next((said for end, said in answers.items() if asked.endswith(end)), good(path))])

        with BadEngine(socket_path.with_suffix(f".{turn}"), answer):
            read.append(read_docker(str(socket_path.with_suffix(f".{turn}"))))
    assert read[0] == read[1] and read[0].state == "ok"
    assert [port.host_port for port in read[0].containers[0].ports] == [2, 2, 5, 5, 8, 8]
    assert [network.name for network in read[0].networks] == ["back", "front", "mid"]


GREETING = b"HTTP/1.1 200 OK\r\nApi-Version: 1.45\r\nServer: %s (linux)\r\nContent-Length: 2\r\n\r\nOK"


@pytest.mark.parametrize(
    ("server", "state"), [(b"Docker/26.1.5+dfsg1", "ok"), (b"Libpod/5.4.2", "absent"), (b"Proxy/1.0", "ok")]
)
def test_the_version_is_read_from_any_response(socket_path: Path, server: bytes, state: str) -> None:
    with BadEngine(socket_path, instead("_ping", GREETING % server)) as engine:
        found = read_docker(str(socket_path))
    assert found.state == state
    assert ("/version" in engine.asked) == (server == b"Proxy/1.0")
    if server.startswith(b"Docker"):
        assert found.version == "26.1.5+dfsg1"
        assert engine.asked == ["/_ping", "/v1.45/containers/json?all=1", "/v1.45/networks"]


def test_an_engine_behind_a_proxy_without_ping(socket_path: Path) -> None:
    with BadEngine(socket_path, instead("_ping", GARBAGE["status 404"])):
        assert read_docker(str(socket_path)).version == "26.1.5"


def test_the_socket_of_the_environment_variable(socket_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{socket_path}")
    with BadEngine(socket_path, lambda path: iter([good(path)])):
        assert read_docker().state == "ok"


def test_an_engine_of_another_machine_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kind = EngineKind("docker", "Docker", "dockerd", "DOCKER_HOST", str(tmp_path / "s"), "start it")
    (tmp_path / "s").touch()
    monkeypatch.setenv("DOCKER_HOST", "tcp://192.0.2.1:2376")
    assert find_socket(kind, None) == str(tmp_path / "s")


def test_an_absent_engine_is_not_a_problem(tmp_path: Path) -> None:
    kind = EngineKind("docker", "Docker", "no-such-program", "NO_SUCH", str(tmp_path / "s"), "start it")
    with pytest.raises(Unreachable) as caught:
        find_socket(kind, None)
    assert caught.value.engine == Engine("docker", "absent")


def test_an_installed_engine_without_a_socket_is_stopped(tmp_path: Path) -> None:
    kind = EngineKind("docker", "Docker", "sh", "NO_SUCH", str(tmp_path / "s"), "start it")
    with pytest.raises(Unreachable) as caught:
        find_socket(kind, None)
    [problem] = caught.value.engine.problems
    assert caught.value.engine.state == "stopped"
    assert (problem.what, problem.try_) == ("can't connect to Docker", "start it")


def test_a_socket_without_a_server(socket_path: Path, read: Read) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(socket_path))
        engine = read(str(socket_path))
    assert engine.state == "stopped"
    assert engine.problems[0].what.startswith("can't connect to ")
    assert str(socket_path) in engine.problems[0].why and "isn't running" in engine.problems[0].why


@pytest.mark.root
@pytest.mark.parametrize("hidden", ["socket", "folder"])
def test_a_socket_without_permission(socket_path: Path, hidden: str) -> None:
    with BadEngine(socket_path, lambda path: iter([good(path)])) as server:
        socket_path.parent.chmod(0o755 if hidden == "socket" else 0o700)
        socket_path.chmod(0o600)
        program = "from core.collect.engines import *; e = read_docker(__import__('sys').argv[1]); print(e)"
        reach = f"mount --bind {socket_path.parent} /mnt && exec setpriv --reuid=65534 --clear-groups "
        script = f'{reach} "$0" -c "$1" /mnt/{socket_path.name}'
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", script, sys.executable, program],
            capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
        )  # fmt: skip
    assert "state='denied'" in done.stdout and "sudo" in done.stdout
    assert server.asked == []


def test_an_engine_that_never_answers(socket_path: Path, read: Read, impatient: None) -> None:
    with BadEngine(socket_path, lambda path: iter(lambda: server.over.wait() and b"", b"")) as server:
        assert_broken(read(str(socket_path)), "in time")


def test_an_endless_answer(socket_path: Path, read: Read, impatient: None) -> None:
    def drip(path: str) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"
        while not server.over.wait(0.1):
            yield b" "

    with BadEngine(socket_path, drip) as server:
        assert_broken(read(str(socket_path)), "in time")


def test_a_slow_answer_in_time(socket_path: Path, read: Read) -> None:
    def slowly(path: str) -> Iterator[bytes]:
        server.over.wait(0.1)
        yield good(path)

    with BadEngine(socket_path, slowly) as server:
        assert [container.name for container in read(str(socket_path)).containers] == ["web"]


GARBAGE = {
    "no HTTP": b"\x00\xff\x1b[31m garbage \r\n\r\n",
    "no JSON": http(b"<html>hello</html>"),
    "half JSON": http(b'[{"Id": "ab'),
    "empty": http(b""),
    "null": http(b"null"),
    "a number": http(b"17"),
    "a list of text": http(b'["web", "db"]'),
    "a list of null": http(b"[null]"),
    "other keys": http(b'[{"a": 1}]'),
    "wrong kinds": http(b'[{"Id": 1, "id": 1, "State": [], "Names": 5, "IPAM": 7, "subnets": 7}]'),
    "not UTF-8": http(b'[{"Id": "\xff\xfe"}]'),
    "closed": b"",
    "half an answer": http(b"x" * 100)[:-50],
    "status 500": http(b'{"message": "database is locked"}', "500 Internal Server Error"),
    "status 404": http(b'{"message": "page not found"}', "404 Not Found"),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
@pytest.mark.parametrize("part", ["version", "containers/json", "networks"])
def test_a_garbage_answer(socket_path: Path, read: Read, part: str, garbage: bytes) -> None:
    part = "libpod/networks/json" if part == "networks" and read is read_podman else part

    def answers(path: str) -> Iterator[bytes]:
        yield from instead(part, garbage)(path)
        if garbage in (GARBAGE["closed"], GARBAGE["half an answer"], GARBAGE["no HTTP"]):
            raise OSError("hang up")

    with BadEngine(socket_path, answers):
        assert_broken(read(str(socket_path)), "")


def running(path: str) -> bytes:
    """Yield an engine that lists one running container."""
    listed = path.partition("?")[0].endswith("containers/json")
    return http(json.dumps([LISTED | {"State": "running"}]).encode()) if listed else good(path)


def test_a_container_that_vanished_meanwhile(socket_path: Path) -> None:
    gone = http(b'{"message": "No such container"}', "404 Not Found")
    with BadEngine(socket_path, lambda path: iter([gone if "abab" in path else running(path)])):
        engine = read_docker(str(socket_path))
    assert (engine.state, engine.containers) == ("ok", ())


def test_a_container_that_causes_an_engine_error(socket_path: Path) -> None:
    stumble = http(b'{"message": "layer not known"}', "500 Internal Server Error")
    with BadEngine(socket_path, lambda path: iter([stumble if "abab" in path else running(path)])):
        engine = read_docker(str(socket_path))
    assert [(c.name, c.pid, dict(c.namespaces)) for c in engine.containers] == [("web", None, {})]


@pytest.mark.parametrize("service", ["inactive", "failed", "active"])
def test_reading_does_not_start_a_stopped_engine(
    socket_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service: str
) -> None:
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(f"#!/bin/sh\necho active\necho {service}\n")
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(engine_http, "_SYSTEMD", tmp_path)
    kind = EngineKind(
        "x", "X", "sh", "NO_SUCH", str(socket_path), "start", "x.service", str(tmp_path / "pid")
    )
    with BadEngine(socket_path, lambda path: iter([good(path)])):
        if service == "active":
            assert find_socket(kind, None) == str(socket_path)
            return
        with pytest.raises(Unreachable) as caught:
            find_socket(kind, None)
        assert caught.value.engine.state == "stopped"
        (tmp_path / "pid").write_text(str(os.getpid()))
        assert find_socket(kind, None) == str(socket_path), "its pid file says that it runs"


def watched(socket_path: Path) -> tuple[threading.Thread, threading.Event, list[int]]:
    stop, calls = threading.Event(), []
    thread = threading.Thread(target=watch_docker, args=(stop, lambda: calls.append(1), str(socket_path)))
    thread.start()
    return thread, stop, calls


@pytest.mark.parametrize("garbage", ["no HTTP", "closed", "status 500", "silence"])
def test_watching_a_broken_engine(socket_path: Path, garbage: str, impatient: None) -> None:
    def answers(path: str) -> Iterator[bytes]:
        if garbage == "silence":
            server.over.wait()
        yield GARBAGE.get(garbage, b"")
        raise OSError("hang up")

    with BadEngine(socket_path, answers) as server:
        thread, stop, calls = watched(socket_path)
        wait_until(lambda: len(server.asked) > 1, "a second try")
        stop.set()
        thread.join(PATIENCE)
    assert not thread.is_alive()
    assert calls == []


def test_watching_subscribes_only_to_needed_events(socket_path: Path) -> None:
    def answers(path: str) -> Iterator[bytes]:
        yield b"HTTP/1.0 200 OK\r\n\r\n"
        server.over.wait()

    with BadEngine(socket_path, answers) as server:
        thread, stop, calls = watched(socket_path)
        wait_until(lambda: calls, "the first call")
        stop.set()
        thread.join(PATIENCE)
    assert not thread.is_alive()
    assert server.asked[0].startswith("/events?filters=") and "exec" not in server.asked[0]


def test_each_failure_is_a_problem_of_its_own() -> None:
    """An event follows when `what` changes: if Docker stops while it denies access, say both."""
    broken = [engines._slow(DOCKER, "/s"), engines._malformed(DOCKER, ValueError("no JSON"))]
    engine_list = [
        engine_http._stopped(DOCKER, "no process listens"),
        engine_http._denied(DOCKER, "/s"),
        *broken,
    ]
    problems = [problem for engine in engine_list for problem in engine.problems]
    assert len({problem.what for problem in problems}) == len(engine_list) == 4
    assert all(one.what.startswith("can't ") and one.why and one.try_ for one in problems)
    assert problems[0].sentence == (
        "can't connect to Docker: no process listens, so Docker isn't running. Try: systemctl start docker"
    )
