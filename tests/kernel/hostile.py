"""Set traps, as an unprivileged user, for a program that reads the machine.

`python hostile.py KIND FOLDER`, as any user: creates user, mount and network namespaces, puts a FIFO where a
namespace is expected, prints "ready" and stays. It needs only the standard library and no privileges.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import stat
import struct
import sys
import threading
import time
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 1 << 18
_MNT_DETACH = 2
_RENAME_EXCHANGE = 2
_PR_SET_PDEATHSIG = 1
_AT_FDCWD = -100
_LAYERS = (("lower", "fuse"), ("upper", "upper"), ("work", "work"))
_LOOKUP, _FORGET, _GETATTR, _STATFS, _INIT = 1, 2, 3, 17, 26  # fuse_opcode


def _checked(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def mount(source: str, target: Path, kind: str = "none", flags: int = 0, options: str = "") -> None:
    """mount(2)."""
    arguments = source.encode(), os.fsencode(target), kind.encode()
    _checked(_libc.mount(*arguments, ctypes.c_ulong(flags), options.encode()))


def become_root_inside() -> None:
    """Become root in a new user namespace, with new mount and network namespaces."""
    user, group = os.getuid(), os.getgid()
    os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNS | os.CLONE_NEWNET)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    mount("", Path("/"), flags=_MS_REC | _MS_PRIVATE)


def leave_behind(path: Path) -> None:
    """Mount our network namespace at `path`, its only reference; enter another."""
    mount("/proc/self/ns/net", path, flags=_MS_BIND)
    os.unshare(os.CLONE_NEWNET)


def behind_descriptor(folder: Path, other: str = "") -> int:
    """Hold an unopened FIFO whose link text is a mounted namespace's path.

    With `other`, hold that file.
    """
    trap = folder / "trap"
    if other:
        trap.touch()
        mount(other, trap, flags=_MS_BIND)
    descriptor = os.open(trap if other else folder / "fifo", os.O_PATH)
    path = trap if other else folder / "fifo"
    mount("/proc/self/ns/net", path, flags=_MS_BIND)
    return descriptor


def behind_lost_mount(folder: Path) -> int:
    """Hold an unopened FIFO whose link text is "/": the root of a mount that is gone."""
    trap = folder / "trap"
    trap.touch()
    mount(str(folder / "fifo"), trap, flags=_MS_BIND)
    descriptor = os.open(trap, os.O_PATH)
    _checked(_libc.umount2(os.fsencode(trap), _MNT_DETACH))
    assert os.readlink(f"/proc/self/fd/{descriptor}") == "/"
    return descriptor


def swapped(folder: Path) -> None:
    """Mount our namespace in `here`, and keep swapping that folder with another.

    There the same name is the FIFO, or a symlink to it.
    """
    for name in ("here", "there", "linked"):
        (folder / name).mkdir()
    (folder / "here" / "ns").touch()
    leave_behind(folder / "here" / "ns")
    (folder / "there" / "ns").hardlink_to(folder / "fifo")
    (folder / "linked" / "ns").symlink_to(folder / "fifo")
    print("ready", flush=True)
    while True:
        for name in ("there", "linked"):
            for _ in range(2):
                here, other = (os.fsencode(folder / each) for each in ("here", name))
                _checked(_libc.renameat2(_AT_FDCWD, here, _AT_FDCWD, other, _RENAME_EXCHANGE))


def silent_file_system(folder: Path) -> None:
    """Mount our namespace on a file of a FUSE file system that stops answering.

    An overlay on top makes requests with our credentials; those of the reader would be refused.
    """
    for name in ("fuse", "upper", "work", "merged"):
        (folder / name).mkdir()
    device = _open_fuse(folder)
    mount("fuse", folder / "fuse", "fuse", options=f"fd={device},rootmode=40000,user_id=0,group_id=0")
    server = os.fork()
    if not server:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        _serve(device)
    os.close(device)  # the file system ends with its server
    layers = ",".join(f"{layer}dir={folder / name}" for layer, name in _LAYERS)
    mount("overlay", folder / "merged", "overlay", options=f"{layers},userxattr")
    leave_behind(folder / "merged" / "file")
    os.kill(server, signal.SIGSTOP)


def _open_fuse(folder: Path) -> int:
    """Open /dev/fuse, or the copy in the folder where the device belongs to root alone."""
    try:
        return os.open("/dev/fuse", os.O_RDWR)
    except PermissionError:
        return os.open(folder / "device", os.O_RDWR)


def _serve(device: int) -> None:
    """Serve a FUSE file system (linux/fuse.h) with only a folder and a file."""
    attributes = {1: (1, stat.S_IFDIR | 0o755), 2: (2, stat.S_IFREG | 0o644)}
    while True:
        request = os.read(device, 1 << 18)
        _, opcode, unique, node = struct.unpack_from("=IIQQ", request)
        inode, mode = attributes[1 if node <= 1 and opcode != _LOOKUP else 2]
        attr = struct.pack("=6Q10I", inode, 4096, 8, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)
        answer = {
            _INIT: struct.pack("=4I2H2I2H8I", 7, 31, 1 << 16, 0, 8, 8, 4096, 1, 0, 0, 0, *[0] * 7),
            _LOOKUP: struct.pack("=4Q2I", inode, 0, 0, 0, 0, 0) + attr,
            _GETATTR: struct.pack("=Q2I", 0, 0, 0) + attr,
            _STATFS: struct.pack("=5Q10I", 0, 0, 0, 0, 0, 4096, 255, 4096, *[0] * 7),
        }.get(opcode, b"")
        if opcode != _FORGET:
            error = 0 if answer else -errno.ENOSYS
            os.write(device, struct.pack("=IiQ", 16 + len(answer), error, unique) + answer)


def many_descriptors(count: int) -> None:
    """Open a file many times."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    one = os.open("/", os.O_PATH)
    for _ in range(count):
        os.dup(one)


def many_processes(count: int, descriptors: int) -> None:
    """Start processes with many descriptors each, which end with this one."""
    many_descriptors(descriptors)
    for _ in range(count):
        if not os.fork():
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            time.sleep(10_000)


def many_threads(count: int) -> None:
    """Start threads that do nothing."""
    threading.stack_size(1 << 16)
    for _ in range(count):
        threading.Thread(target=time.sleep, args=(10_000,), daemon=True).start()


def many_mounts(folder: Path, rows: int, columns: int) -> None:
    """Mount our network namespace rows * columns times."""
    mount("tmpfs", folder, "tmpfs")
    for name in ("one", *map(str, range(rows))):
        (folder / name).mkdir()
    mount("tmpfs", folder / "one", "tmpfs")
    for column in range(columns):
        (folder / "one" / str(column)).touch()
        mount("/proc/self/ns/net", folder / "one" / str(column), flags=_MS_BIND)
    for row in range(rows):
        mount(str(folder / "one"), folder / str(row), flags=_MS_BIND | _MS_REC)


def main(kind: str, folder: Path) -> None:
    """Set the trap and wait."""
    os.mkfifo(folder / "fifo")
    become_root_inside()
    match kind:
        case "name of a mount":
            behind_descriptor(folder)
        case "no name":
            behind_lost_mount(folder)
        case "mount":
            (folder / "ns").touch()
            leave_behind(folder / "ns")
        case "swapped":
            swapped(folder)
        case "file system that never answers":
            silent_file_system(folder)
        case "descriptors":
            many_descriptors(19_000)
        case "processes":
            many_processes(100, 8_000)
        case "threads":
            many_threads(4200)
        case "mounts":
            many_mounts(folder, rows=200, columns=100)
        case device:
            behind_descriptor(folder, device)
    print("ready", flush=True)
    time.sleep(10_000)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
