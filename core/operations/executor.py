"""Execute operations: one netlink socket per namespace, and the Docker client."""

from __future__ import annotations

import errno
import fcntl
import os
import socket as sockets
import struct
import subprocess
import threading
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self

from core.collect.nft import STATELESS, Context, NftError, library
from core.collect.nft_netlink import read_tables
from core.model import Engine
from core.netlink.client import Netlink, attributes, text
from core.netlink.netns import HOST_PATH, THREAD_PATH, NamespaceGone, entered, inode_of, open_namespace
from core.operations.values import HOST, NetnsTarget
from core.text import TABLE


class Nft:
    """Load rules in the network namespace of the thread that makes it.

    Close it soon: other processes wait for a socket that waits to be closed (Context).
    """

    def __init__(self) -> None:
        found = library()
        self._context = Context(found) if found else None

    def load(self, text: str) -> None:
        """Load rules in one transaction. Raises OSError with the message of nft."""
        try:
            if self._context:
                self._context.run(text)
            else:
                _run_tool(text)
        except NftError as error:
            raise OSError(errno.EIO, f"nft: {error}") from error

    def close(self, aside: bool = False) -> None:
        """Close the socket; with `aside` don't wait for that."""
        if self._context:
            closing = threading.Thread(target=self._context.close, daemon=True)
            closing.start()
            if not aside:
                closing.join()


def _run_tool(text: str) -> None:
    done = run_holding_lock(["nft", "-f", "-"], text)
    if done.returncode:
        raise NftError((done.stderr or f"it ended with {done.returncode}").strip())


_TOOL_SECONDS = 20.0


def run_holding_lock(
    words: Sequence[str], text: str = "", environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a tool with `text` as its input.

    The tool inherits the writers' lock, the only inheritable descriptor: if this process is killed, the lock
    is held until the tool has ended, and no undo can overtake it. Raises OSError if the tool can't be run or
    does not end in time.
    """
    try:
        return subprocess.run(
            words,
            input=text,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_TOOL_SECONDS,
            check=False,
            close_fds=False,
        )
    except FileNotFoundError as error:
        raise OSError(errno.ENOPKG, f"{words[0]} isn't installed") from error
    except subprocess.TimeoutExpired as error:
        raise OSError(errno.ETIMEDOUT, f"{words[0]} didn't end within {_TOOL_SECONDS:.0f} s") from error


_NFT_SECONDS = 20.0

# Each line with the blocks around it, and how often it occurs; without counters.
Lines = Counter[str]


def present_lines() -> Lines:
    """Return the rules of vnet's tables in the thread's namespace.

    Raises OSError if nft can't be run.
    """
    names = [("table", table.family, table.name) for table in read_tables() if table.name == TABLE]
    return Counter(line for name in names for line in _placed(_listed(" ".join(("list", *name)))))


def expected_lines(text: str) -> Lines:
    """Return the rules that vnet's tables have after `text` is loaded. Raises OSError.

    They are read back from a new network namespace: others may have changed the tables of the host.
    """
    with _empty_namespace():
        nft = Nft()
        try:
            nft.load(text)
        finally:
            nft.close()
        return present_lines()


def _listed(command: str) -> str:
    """Return what nft prints, "" if the table no longer exists."""
    if found := library():
        context = Context(found)
        try:
            return context.run(command, STATELESS)
        except NftError:
            return ""
        finally:
            context.close()
    words = ["nft", "-s", *command.split()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=_NFT_SECONDS, check=False)
    return done.stdout if done.returncode == 0 else ""


def _placed(printed: str) -> Iterator[str]:
    return _with_blocks(line.strip() for line in printed.splitlines())


def _with_blocks(lines: Iterable[str]) -> Iterator[str]:
    blocks: list[str] = []
    for line in lines:
        if line == "}":
            blocks = blocks[:-1]
        else:
            yield "\n".join((*blocks, line))
            blocks += [line] if line.endswith("{") else []


@contextmanager
def _empty_namespace() -> Iterator[None]:
    """Run the body with this thread in a new network namespace; other threads stay."""
    home = os.open(THREAD_PATH, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.unshare(os.CLONE_NEWNET)
        try:
            yield
        finally:
            os.setns(home, os.CLONE_NEWNET)
    finally:
        os.close(home)


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
        raise EngineError(_reason(error.engine)) from error
    from docker.api import APIClient
    from docker.errors import DockerException

    try:
        return APIClient(f"unix://{path}", timeout=_SECONDS)
    except (DockerException, OSError) as error:
        raise EngineError(f"Docker's answer can't be used: {error}"[:_LONGEST]) from error


def post(client: Any, path: str, body: Any) -> None:
    """Post a request that the SDK has no function for.

    Raises the exceptions of the SDK's client.
    """
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
        text = "Docker didn't finish its answer. Try: systemctl status docker"
        raise EngineError(text, uncertain=True) from error


def _reason(engine: Engine) -> str:
    if not engine.problems:
        return "Docker isn't installed on this host"
    problem = engine.problems[0]
    return f"{problem.why}. Try: {problem.try_}" if problem.try_ else problem.why


_SIOCGIFINDEX = 0x8933  # linux/sockios.h
_IFNAMSIZ = 16
_IFREQ = struct.Struct("16si20x")  # struct ifreq of linux/if.h, its name and index
_RTM_GETLINK, _IFLA_IFALIAS = 18, 20  # linux/rtnetlink.h, if_link.h
_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg


def path_of(place: NetnsTarget) -> str:
    """Return a path of the namespace: that of its first process that is still in it."""
    pids = (place.pid, *place.others) if place.inode is not None and not place.name else ()
    for path in (f"/proc/{pid}/ns/net" for pid in pids):
        with suppress(OSError):
            if inode_of(path) == place.inode:
                return path
    return place.path or HOST_PATH


def inside(place: NetnsTarget) -> AbstractContextManager[None]:
    """Enter the namespace, as netns.entered does."""
    return entered(path_of(place), place.inode)


class Executor:
    """The sockets and clients that the operations of one change share.

    They are opened when first needed. Use it as a context manager: an open socket keeps its namespace alive.
    """

    def __init__(self) -> None:
        self._iproutes: dict[NetnsTarget, Any] = {}
        self._loop: Any = None
        self._descriptors: dict[NetnsTarget, int] = {}
        self._ioctl_sockets: dict[NetnsTarget, sockets.socket] = {}
        self._rules: dict[NetnsTarget, Nft] = {}
        self._docker: Any = None
        self.notes: list[str] = []  # what the user should know although nothing failed

    def note(self, sentence: str) -> None:
        """Add a sentence about something that was left undone, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for place in self._open():
            self.forget(place)
        if self._loop is not None:
            from core.operations.rtnetlink import close_loop

            close_loop(self._loop)
        if self._docker is not None:
            self._docker.close()

    def _open(self) -> set[NetnsTarget]:
        return {*self._iproutes, *self._ioctl_sockets, *self._descriptors, *self._rules}

    def require_namespaces(self, more: Iterable[NetnsTarget] = ()) -> None:
        """Raise NamespaceGone if a target namespace exists only because it is open here.

        Its container has ended meanwhile. Checks those of `more` as well.
        """
        for place in {*self._open(), *more} - {HOST}:
            with suppress(OSError):
                if inode_of(path_of(place)) == place.inode or place.inode is None:
                    continue
            raise NamespaceGone(f"{place} disappeared meanwhile")

    def docker(self) -> Any:
        """Return the low-level client of the Docker SDK. Raises EngineError."""
        if self._docker is None:
            self._docker = open_docker()
        return self._docker

    @contextmanager
    def rtnetlink(self, place: NetnsTarget) -> Iterator[Any]:
        """Give pyroute2's IPRoute in that namespace.

        Raises OSError with the kernel's errno if a request in the body is refused, and NamespaceGone.
        """
        from asyncio import new_event_loop  # imported late, like pyroute2: only changes need them

        from core.operations.rtnetlink import open_iproute, os_errors

        if self._loop is None:
            self._loop = new_event_loop()
        if place not in self._iproutes:
            with inside(place):
                self._iproutes[place] = open_iproute(self._loop)
        with os_errors(self._loop):
            yield self._iproutes[place]

    def load_rules(self, place: NetnsTarget, text: str) -> None:
        """Load rules as `nft -f` does. Raises OSError and NamespaceGone."""
        with inside(place):
            if place not in self._rules:
                self._rules[place] = Nft()
            self._rules[place].load(text)

    def descriptor(self, place: NetnsTarget) -> int:
        """Return a file descriptor of the namespace, for IFLA_NET_NS_FD.

        Raises NamespaceGone.
        """
        if place not in self._descriptors:
            try:
                self._descriptors[place] = open_namespace(path_of(place), place.inode)
            except (FileNotFoundError, ProcessLookupError) as error:
                raise NamespaceGone(f"there is no namespace at {place.path}") from error
        return self._descriptors[place]

    def forget(self, place: NetnsTarget) -> None:
        """Close everything that keeps a namespace alive, before its name is deleted."""
        if place in self._ioctl_sockets:
            self._ioctl_sockets.pop(place).close()
        if place in self._iproutes:
            from core.operations.rtnetlink import close_iproute

            close_iproute(self._iproutes.pop(place), self._loop)
        if place in self._descriptors:
            os.close(self._descriptors.pop(place))
        if place in self._rules:
            self._rules.pop(place).close(aside=place == HOST)

    def index(self, place: NetnsTarget, link: str) -> int:
        """Return the ifindex of a link (netdevice(7), SIOCGIFINDEX).

        Raises LookupError if the link is missing.
        """
        if place not in self._ioctl_sockets:
            with inside(place):
                self._ioctl_sockets[place] = sockets.socket(sockets.AF_INET, sockets.SOCK_DGRAM)
        name = os.fsencode(link)
        try:
            if len(name) > _IFNAMSIZ - 1:
                raise OSError
            answer = fcntl.ioctl(self._ioctl_sockets[place], _SIOCGIFINDEX, _IFREQ.pack(name, 0))
        except OSError:
            raise LookupError(f"there is no link {link} in {place}") from None
        return int(_IFREQ.unpack(answer)[1])

    def alias(self, place: NetnsTarget, link: str) -> str:
        """Return the alias of a link, "" if it has none.

        Raises LookupError if the link is missing.
        """
        index = self.index(place, link)
        try:
            with inside(place), Netlink() as sock:
                return alias_of(sock, index)
        except OSError as error:
            if error.errno == errno.ENODEV:
                raise LookupError(f"there is no link {link} in {place}") from None
            raise


def alias_of(sock: Netlink, index: int) -> str:
    """Return the alias of a link, "" if it has none. Raises OSError."""
    (answer,) = sock.request(_RTM_GETLINK, _LINK.pack(0, 0, index, 0, 0))
    return text(attributes(answer.payload, _LINK.size).get(_IFLA_IFALIAS, b""))
