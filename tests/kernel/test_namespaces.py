"""Check that every kind of namespace reference is found, and stale ones reported."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.collect.links import read_nets
from core.collect.namespaces import merge_scans, read_namespaces
from core.model import Namespace
from core.netlink.netns import inode_of
from tests.kernel.holders import as_nobody, holder, shell, thread_outside
from tests.kernel.reading import read_net
from tests.support.host import ThrowawayHost

pytestmark = pytest.mark.root


def names_of(namespace: Namespace) -> list[str]:
    """Read the links inside by the namespace's entry."""
    return [link.name for link in read_net(namespace).links.values()]


@pytest.fixture
def file_in_run(host: ThrowawayHost) -> Iterator[Path]:
    """Yield a path in /run/netns, and remove it after the test."""
    path = Path(f"/run/netns/{host.full('file')}")
    yield path
    path.unlink(missing_ok=True)


def test_names_are_those_of_ip_netns(host: ThrowawayHost) -> None:
    host.namespace("a")
    listed = {line.split()[0] for line in host.run("ip netns list").splitlines() if host.prefix in line}
    found, _ = read_namespaces(deep=False)
    assert {name for ns in found.values() for name in ns.names if host.prefix in name} == listed
    a = found[host.inode_of("a")]
    assert (a.names, a.pids, a.mounts) == ((host.full("a"),), (), (f"/run/netns/{host.full('a')}",))
    assert names_of(a) == ["lo"]


def test_a_name_full_of_escapes_stays_verbatim(host: ThrowawayHost) -> None:
    name = host.namespace("[red]\x1b[31m \\n\n\u202ex")
    found, _ = read_namespaces(deep=False)
    assert found[inode_of(f"/run/netns/{name}")].names == (name,)


def test_the_host_comes_first_with_its_processes(inside_host: ThrowawayHost) -> None:
    first = next(iter(read_namespaces()[0].values()))
    assert (first.inode, first.is_host) == (inside_host.inode, True)
    assert os.getpid() in first.pids


def test_a_process_in_a_nameless_namespace(host: ThrowawayHost) -> None:
    with holder("unshare", "--net", *shell("")) as (process, _):
        found, _ = read_namespaces(deep=False)
        namespace = found[inode_of(f"/proc/{process.pid}/ns/net")]
        assert (namespace.pids, namespace.names) == ((process.pid,), ())
        assert namespace.command in ("sh", "sleep"), "the shell becomes a sleep"
        assert namespace.entry == f"/proc/{process.pid}/ns/net"
        assert names_of(namespace) == ["lo"]


def test_held_only_by_a_mount(host: ThrowawayHost, tmp_path: Path) -> None:
    path = tmp_path / "a mount\\of"
    path.touch()
    subprocess.run(["unshare", f"--net={path}", "true"], check=True)
    try:
        found, _ = read_namespaces(deep=False)
        namespace = found[inode_of(str(path))]
        assert (namespace.names, namespace.pids, namespace.mounts) == ((), (), (str(path),))
        assert names_of(namespace) == ["lo"]
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def test_held_by_a_mount_in_another_mount_namespace(tmp_path: Path) -> None:
    path = tmp_path / "hidden"
    path.touch()
    script = f"unshare --net={path} true"
    with holder("unshare", "--mount", "--propagation=private", *shell(script)) as (process, _):
        seen_by_it = f"/proc/{process.pid}/root{path}"
        inode = inode_of(seen_by_it)
        shallow, _ = read_namespaces(deep=False)
        deep, _ = read_namespaces(deep=True)
        assert inode not in shallow
        assert deep[inode].mounts == (seen_by_it,)
        assert names_of(deep[inode]) == ["lo"]


def test_mounts_copied_into_other_mount_namespaces_are_reported_once(host: ThrowawayHost) -> None:
    with holder("unshare", "--mount", "--propagation=private", *shell("")):
        deep, _ = read_namespaces(deep=True)
    assert deep[host.inode].mounts == (f"/run/netns/{host.name}",)


def test_held_only_by_a_descriptor(host: ThrowawayHost) -> None:
    name = host.namespace("a")
    inode = host.inode_of("a")
    with holder(*shell(f"exec 7</run/netns/{name}")) as (process, _):
        subprocess.run(["ip", "netns", "del", name], check=True)
        shallow, _ = read_namespaces(deep=False)
        deep, _ = read_namespaces(deep=True)
        assert inode not in shallow
        assert (process.pid, 7) in deep[inode].held_fds
        assert process.pid not in deep[inode].pids
        assert names_of(deep[inode]) == ["lo"]
        assert (process.pid, 7) in merge_scans(deep, shallow)[inode].held_fds
    assert inode not in merge_scans(deep, read_namespaces(deep=False)[0])


def test_descriptors_of_this_process_do_not_count(host: ThrowawayHost) -> None:
    name = host.namespace("a")
    with open(f"/run/netns/{name}") as held:
        inode = os.fstat(held.fileno()).st_ino
        subprocess.run(["ip", "netns", "del", name], check=True)
        assert inode not in read_namespaces(deep=True)[0]


def test_a_thread_in_its_own_namespace() -> None:
    with holder(*thread_outside()) as (_, thread):
        inode = inode_of(f"/proc/{thread}/ns/net")
        shallow, _ = read_namespaces(deep=False)
        deep, _ = read_namespaces(deep=True)
        assert inode not in shallow
        assert deep[inode].pids == (int(thread),)
        assert names_of(deep[inode]) == ["lo"]


def test_ids_are_those_that_ip_netns_lists(inside_host: ThrowawayHost) -> None:
    name = inside_host.namespace("a")
    inside_host.namespace("b")
    inside_host.run(["ip", "netns", "set", name, "77"])
    listed = inside_host.run("ip netns list").splitlines()
    found, _ = read_namespaces(deep=False)
    assert found[inside_host.inode_of("a")].nsid == 77
    assert f"{name} (id: 77)" in listed
    assert found[inside_host.inode_of("b")].nsid is None
    assert inside_host.full("b") in listed


def test_a_name_that_links_to_a_process(host: ThrowawayHost, file_in_run: Path) -> None:
    with holder("unshare", "--net", *shell("")) as (process, _):
        file_in_run.symlink_to(f"/proc/{process.pid}/ns/net")
        found, _ = read_namespaces(deep=False)
        assert found[inode_of(f"/proc/{process.pid}/ns/net")].names == (file_in_run.name,)
    problems = read_namespaces(deep=False)[1]
    assert [p.why for p in problems if str(file_in_run) in p.what] == [
        f"it links to /proc/{process.pid}/ns/net"
    ]


def test_a_name_without_a_mount_is_a_problem(host: ThrowawayHost, file_in_run: Path) -> None:
    file_in_run.touch()
    assert not [p for p in read_namespaces(deep=False)[1] if str(file_in_run) in p.what], (
        "it may be in the making"
    )
    os.utime(file_in_run, (1, 1))
    (problem,) = [p for p in read_namespaces(deep=False)[1] if str(file_in_run) in p.what]
    assert "plain file" in problem.why
    assert str(file_in_run) in problem.try_


def test_a_namespace_that_vanished_cannot_be_read(host: ThrowawayHost) -> None:
    name = host.namespace("a")
    namespace = read_namespaces(deep=False)[0][host.inode_of("a")]
    subprocess.run(["ip", "netns", "del", name], check=True)
    other = Namespace(namespace.inode, entry=f"/run/netns/{host.name}")
    assert read_nets([namespace]) == {} == read_nets([other])


def test_without_rights_the_own_namespace_is_read_and_the_rest_is_a_problem(
    inside_host: ThrowawayHost,
) -> None:
    inside_host.namespace("a")
    other = inside_host.inode_of("a")

    def read_all() -> dict[str, object]:
        found, problems = read_namespaces()
        own, closed = read_net(found[inside_host.inode]), read_net(found[other])
        return {
            "problems": [problem.why for problem in problems],
            "own": [[link.name for link in own.links.values()], len(own.problems)],
            "closed": [len(closed.links), [problem.why for problem in closed.problems]],
        }

    seen = as_nobody(read_all)
    assert any("CAP_SYS_PTRACE" in why for why in seen["problems"])
    assert seen["own"] == [["lo"], 0]
    assert seen["closed"][0] == 0
    assert "CAP_SYS_ADMIN" in seen["closed"][1][0]
