"""Whether NetLabel labels peers, by CIPSO, CALIPSO or their addresses (netlabelctl(8)): SELinux then judges
forwarded packets one by one, see selinux_ip_forward of security/selinux/hooks.c."""

from __future__ import annotations

from core.netlink.client import GENERIC, Netlink, attribute, attributes, u16

_CTRL, _GETFAMILY, _FAMILY_ID, _FAMILY_NAME = 0x10, 3, 1, 2
# Families of generic netlink, each with the commands that list what counts (net/netlabel/netlabel_*.h).
_LISTS = {"NLBL_CIPSOv4": (4,), "NLBL_CALIPSO": (4,), "NLBL_UNLBL": (5, 8)}


def may_label() -> bool:
    """Whether anything is labelled, or that can't be excluded: the kernel answers in its first network
    namespace alone."""
    try:
        with Netlink(GENERIC) as kernel:
            return any(
                kernel.dump(_family(kernel, name), _header(command))
                for name, commands in _LISTS.items()
                for command in commands
            )
    except OSError:
        return True


def _family(kernel: Netlink, name: str) -> int:
    body = _header(_GETFAMILY) + attribute(_FAMILY_NAME, name.encode() + b"\0")
    return u16(attributes(kernel.request(_CTRL, body)[0].payload, 4)[_FAMILY_ID])


def _header(command: int) -> bytes:
    """struct genlmsghdr."""
    return bytes((command, 1, 0, 0))
