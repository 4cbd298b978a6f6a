"""Containers without an engine: named namespaces, and processes in their own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.collect.processes import init_processes, namespaces_of, read_unmanaged
from core.model import NAMESPACE_KINDS, Container, Namespace
from tests.support.host import ThrowawayHost
from tests.support.skipping import leave_out

pytestmark = pytest.mark.root

_SLEEP = (
    'printf %s "$1" >/proc/sys/kernel/hostname && echo ready && '
    'exec ${2:+setpriv --reuid="$2" --pdeathsig KILL} sleep 100000 $3'
)

# Declares 256 MiB of its memory as its command line, and as much as its environment (prctl(2)).
_DECLARE = """
import ctypes, signal
PR_SET_MM, PR_SET_MM_MAP, SIZE = 35, 14, 256 << 20
libc = ctypes.CDLL(None)
libc.mmap.restype = libc.sbrk.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
area = libc.mmap(None, 2 * SIZE, 3, 0x4022, -1, 0)  # private, anonymous, not reserved
stat = [0, 0, 0, *open("/proc/self/stat").read().rpartition(")")[2].split()]
code_and_data, stack = [int(stat[field]) for field in (26, 27, 45, 46, 47)], int(stat[28])
words = [*code_and_data, libc.sbrk(0), stack, area, area + SIZE, area + SIZE, area + 2 * SIZE, 0]
sizes = 0xFFFFFFFF << 32  # no auxiliary vector, no executable
declared = (ctypes.c_uint64 * 13)(*words, sizes)
print(libc.prctl(PR_SET_MM, PR_SET_MM_MAP, declared, ctypes.sizeof(declared), 0), flush=True)
signal.pause()
"""


class Processes:
    """Start containers like unshare(1)."""

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[str]] = []

    def start(
        self,
        hostname: str,
        netns: str = "",
        mode: str = "",
        flags: str = "--pid --mount --uts --ipc",
        user: int | str = "",
        more: str = "",
    ) -> int:
        """Start one inside that named namespace; return the pid of its first process."""
        enter = ["nsenter", f"--net=/run/netns/{netns}"] if netns else []
        sleeping = ["sh", "-c", _SLEEP, "sh", hostname, str(user), more]
        words = ["unshare", *flags.split(), "--fork", "--kill-child", *sleeping]
        env = os.environ | ({"VNET_NETWORK_MODE": mode} if mode else {})
        process = subprocess.Popen([*enter, *words], stdout=subprocess.PIPE, text=True, env=env)
        self.started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        wait_for_exec(int(children[0]))
        return int(children[0])

    def close(self) -> None:
        """End all of them."""
        for process in self.started:
            process.kill()
            process.communicate()


def wait_for_exec(pid: int) -> None:
    """Wait until the shell has executed sleep.

    In between, the kernel shows an empty environment.
    """
    for _ in range(1000):
        if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep\0"):
            return
        time.sleep(0.01)
    raise AssertionError("the shell has not become a sleep")


@pytest.fixture
def processes() -> Iterator[Processes]:
    made = Processes()
    yield made
    made.close()


def plain(host: ThrowawayHost, *shorts: str, claimed: frozenset[int] = frozenset()) -> dict[str, Container]:
    """Return the collector's containers by name.

    It gets these namespaces of the test and the host's.
    """
    names: dict[int, list[str]] = {}
    for short in shorts:
        names.setdefault(host.inode_of(short), []).append(host.full(short))
    namespaces = {inode: Namespace(inode, names=tuple(each)) for inode, each in names.items()}
    namespaces[host.inode] = Namespace(host.inode, is_host=True, names=(host.name,))
    return {container.name: container for container in read_unmanaged(namespaces, claimed).containers}


def readlinks(pid: int) -> dict[str, int]:
    """Return the six namespaces as readlink(1) prints them."""
    words = ["readlink", *(f"/proc/{pid}/ns/{kind}" for kind in NAMESPACE_KINDS)]
    lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    return {
        kind: int(line.split("[")[1].rstrip("]")) for kind, line in zip(NAMESPACE_KINDS, lines, strict=True)
    }


def test_named_namespaces_are_containers(host: ThrowawayHost) -> None:
    host.namespace("a")
    found = plain(host, "a")
    assert host.name not in found, "the host is no container"
    a = found[host.full("a")]
    assert (a.runtime, a.id, a.state, a.pid) == ("netns", a.name, "running", None)
    assert a.namespaces == {"net": host.inode_of("a")}
    assert a.network_mode == ""


def test_a_process_is_the_container_of_its_namespaces_name(host: ThrowawayHost, processes: Processes) -> None:
    host.namespace("a")
    pid = processes.start("whatever", host.full("a"), mode="none")
    found = plain(host, "a")
    a = found[host.full("a")]
    assert "whatever" not in found
    assert (a.runtime, a.id, a.pid, a.network_mode) == ("netns", a.name, pid, "none")
    assert dict(a.namespaces) == readlinks(pid)
    assert a.command == "sleep 100000"


def test_the_hostname_decides_among_several(host: ThrowawayHost, processes: Processes) -> None:
    host.namespace("a")
    other = processes.start("other", host.full("a"))
    own = processes.start(host.full("a"), host.full("a"))
    found = plain(host, "a")
    assert (found[host.full("a")].pid, found["other"].pid) == (own, other)
    assert found["other"].runtime == "process"
    assert found["other"].id == str(readlinks(other)["pid"])
    assert found["other"].netns == host.inode_of("a")


def test_a_process_that_joined_is_not_the_owner(host: ThrowawayHost, processes: Processes) -> None:
    host.namespace("a")
    processes.start("guest", host.full("a"), mode=f"container:{host.full('a')}")
    found = plain(host, "a")
    assert found[host.full("a")].pid is None
    assert found["guest"].network_mode == f"container:{host.full('a')}"


def test_two_names_for_one_namespace(host: ThrowawayHost, processes: Processes) -> None:
    host.namespace("a")
    link = host.full("b")
    subprocess.run(["ip", "netns", "attach", link, str(processes.start("x", host.full("a")))], check=True)
    host.names.append(link)
    found = plain(host, "a", "b")
    assert found[host.full("a")].namespaces["net"] == found[link].namespaces["net"] == host.inode_of("a")
    assert found["x"].runtime == "process", "it may be either one's"


def test_a_process_in_the_hosts_network(host: ThrowawayHost, processes: Processes) -> None:
    pid = processes.start("opened", host.name, mode="host")
    opened = plain(host)["opened"]
    assert (opened.runtime, opened.pid, opened.network_mode) == ("process", pid, "host")
    assert opened.netns == host.inode


@pytest.mark.parametrize(
    "flags", ["--pid --mount", "--pid --uts", "--uts --mount", "--net --pid --user --map-root-user --mount"]
)
def test_sandboxes_are_not_containers(host: ThrowawayHost, processes: Processes, flags: str) -> None:
    before = {init.pid for init in init_processes()}
    script = [
        "unshare",
        *flags.split(),
        "--fork",
        "--kill-child",
        "sh",
        "-c",
        "echo ready; exec sleep 100000",
    ]
    process = subprocess.Popen(script, stdout=subprocess.PIPE, text=True)
    processes.started.append(process)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert {init.pid for init in init_processes()} - before & {int(child) for child in children} == set()


@pytest.mark.kernel_has("user_namespaces")
def test_a_users_process_cannot_pose_as_another_container(host: ThrowawayHost, processes: Processes) -> None:
    host.namespace("a")
    flags = "--user --map-root-user --pid --mount --uts --net"
    pid = processes.start(host.full("a"), mode="container:cache", flags=flags)
    found = plain(host, "a")
    assert found[host.full("a")].pid is None
    users = found[f"pid {pid} ({host.full('a')})"]
    assert (users.runtime, users.network_mode, users.command) == ("process", "", "sleep")


def test_in_the_hosts_user_namespace_only_root_is_trusted(host: ThrowawayHost, processes: Processes) -> None:
    pid = processes.start("web", host.name, mode="container:cache", user=1234)
    assert "web" not in plain(host)
    assert plain(host)[f"pid {pid} (web)"].network_mode == ""


def test_only_the_beginning_of_a_long_command_line_is_read(host: ThrowawayHost, processes: Processes) -> None:
    pid = processes.start("long", host.name, more="0 " * 50_000)
    assert plain(host)["long"].pid == pid
    assert 1000 < len(plain(host)["long"].command) < 10_000


def test_a_huge_command_line_is_not_read_completely(processes: Processes) -> None:
    words = ["unshare", *["--pid", "--mount", "--uts", "--ipc", "--fork", "--kill-child"]]
    process = subprocess.Popen([*words, sys.executable, "-c", _DECLARE], stdout=subprocess.PIPE, text=True)
    processes.started.append(process)
    assert process.stdout is not None
    if process.stdout.readline() != "0\n":
        leave_out("a process that may move its command line (CONFIG_CHECKPOINT_RESTORE)")
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    tracemalloc.start()
    found = {init.pid: init for init in init_processes()}
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found[int(child)].trusted
    assert most < 32 << 20


def test_processes_of_engines_and_nested_containers(host: ThrowawayHost, processes: Processes) -> None:
    host.namespace("e")
    outer = processes.start("engines", host.full("e"))
    enter = ["nsenter", "-t", str(outer), "--pid", "--mount", "--uts", "--net"]
    words = [
        "unshare",
        "--pid",
        "--mount",
        "--uts",
        "--fork",
        "--kill-child",
        "sh",
        "-c",
        _SLEEP,
        "sh",
        "nested",
    ]
    nested = subprocess.Popen([*enter, *words], stdout=subprocess.PIPE, text=True)
    processes.started.append(nested)
    assert nested.stdout is not None and nested.stdout.readline() == "ready\n"
    assert {"nested"} <= plain(host, "e").keys()
    found = plain(host, "e", claimed=frozenset({outer}))
    assert not {"nested", "engines", host.full("e")} & found.keys()


def test_an_engines_container_in_the_hosts_namespaces_hides_no_other(
    host: ThrowawayHost, processes: Processes
) -> None:
    processes.start("mine", host.name)
    assert "mine" in plain(host, claimed=frozenset({os.getpid()}))


def test_hostnames_are_verbatim_and_the_own_one_stays(host: ThrowawayHost, processes: Processes) -> None:
    name = "[bold]\x1b[31m\u202e\t"
    processes.start(name, host.name)
    processes.start("no UTF-8: \udcff", host.name)
    ours = os.uname().nodename
    assert {name, "no UTF-8: \ufffd"} <= plain(host).keys()
    assert os.uname().nodename == ours
    assert not [thread for thread in threading.enumerate() if thread.name == "hostnames"]


def test_processes_that_vanish_meanwhile(host: ThrowawayHost) -> None:
    def churn() -> None:
        for _ in range(100):
            subprocess.run(["unshare", "--pid", "--mount", "--uts", "--fork", "true"], check=True)

    thread = threading.Thread(target=churn)
    thread.start()
    while thread.is_alive():
        for init in init_processes():
            assert init.namespaces.keys() == set(NAMESPACE_KINDS)


def test_a_process_that_is_gone_has_no_namespaces() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    assert namespaces_of(process.pid) == {}
