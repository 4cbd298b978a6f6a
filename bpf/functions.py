"""Report the kernel functions that the packets of a flow or probe pass.

The program (program/functions.c) runs at the beginning of each function of FUNCTIONS that this kernel has.
Links and maps are descriptors: they end with this process.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import numpy as np

from bpf import syscall
from bpf.build import CACHE, CompiledProgram, CompileError, compiled_program
from core.model.probe import FunctionCall, FunctionFilter, PacketTuple
from core.text import failure_sentence

# Functions of the IP path, in about the order of a packet through a host, with the place of the packet among
# their arguments; 0 stands for a pointer to the pointer, in the first one.
FUNCTIONS: Mapping[str, int] = MappingProxyType({
    "ip_local_out": 3, "__ip_local_out": 3, "ip6_local_out": 3, "ip_output": 3, "ip6_output": 3,
    "ip_mc_output": 3, "nf_hook_slow": 1, "nf_conntrack_in": 1, "nf_nat_inet_fn": 2,
    "nf_nat_manip_pkt": 1, "ip_finish_output": 3, "ip_finish_output2": 3, "ip6_finish_output2": 3,
    "ip_do_fragment": 3, "ip6_fragment": 3, "neigh_resolve_output": 2, "__dev_queue_xmit": 1,
    "dev_hard_start_xmit": 1, "veth_xmit": 1, "netif_rx": 1, "__netif_receive_skb_core": 0,
    "br_handle_frame": 0, "br_handle_frame_finish": 3, "br_pass_frame_up": 1, "br_forward": 2,
    "__br_forward": 2, "br_forward_finish": 3, "br_dev_queue_push_xmit": 3, "br_dev_xmit": 1,
    "br_nf_pre_routing": 2, "br_nf_forward_ip": 2, "ip_rcv": 1, "ip_rcv_core": 1, "ip_rcv_finish": 3,
    "ipv6_rcv": 1, "ip6_rcv_finish": 3, "ip_route_input_noref": 1, "ip_route_input_slow": 1,
    "fib_validate_source": 1, "ip_forward": 1, "ip_forward_finish": 3, "ip6_forward": 1,
    "ip_local_deliver": 1, "ip6_input": 1, "tcp_v4_rcv": 1, "tcp_v6_rcv": 1, "tcp_v4_do_rcv": 2,
    "tcp_v6_do_rcv": 2, "udp_rcv": 1, "udpv6_rcv": 1, "udp_queue_rcv_skb": 2, "icmp_rcv": 1,
    "icmpv6_rcv": 1, "__icmp_send": 1, "icmp6_send": 1, "vxlan_xmit": 1, "vxlan_rcv": 2, "ip_tunnel_xmit": 1,
    "macvlan_start_xmit": 1, "macvlan_handle_frame": 0, "tun_net_xmit": 1, "nf_reject_verify_csum": 1,
    "sk_skb_reason_drop": 2, "kfree_skb_reason": 1,
})  # fmt: skip
_REASONS = {"sk_skb_reason_drop": 3, "kfree_skb_reason": 2}  # the arguments with a drop reason
_INDIRECT, _REASON_SHIFT, _NUMBER_SHIFT = 8, 4, 8  # program/functions.c
_KEY = struct.Struct("=IHH16s16s")
_MARK = struct.Struct("=IIIHxx")
_CALL = np.dtype(
    [("at", "u8"), ("function", "u4"), ("ns", "u4"), ("ifindex", "u4"), ("linear", "u4"),
     ("headers", "u1", (96,))]
)  # fmt: skip
_RING_BYTES = 1 << 21
_WANTED = 256
_FIRST = struct.pack("=I", 0)
_NUMBERS = {("tcp", 4): 6, ("tcp", 6): 6, ("udp", 4): 17, ("udp", 6): 17, ("icmp", 4): 1, ("icmp", 6): 58}
_SYMBOLS = Path("/proc/kallsyms")
_FPROBE = r" [tT] register_fprobe_ips$"
_SYMBOL = re.compile(r"^([0-9a-f]+) [tTwW] (\S+)(?:\t\[\w+\])?$", re.MULTILINE)


class FunctionsUnavailable(Exception):
    """Calls of functions can't be traced here; the text is a sentence for users."""


def _unavailable(reason: str, remedy: str) -> FunctionsUnavailable:
    return FunctionsUnavailable(failure_sentence("can't trace kernel functions", reason, remedy))


def _without_fprobes() -> FunctionsUnavailable:
    reason = f"Linux {os.uname().release} was built without CONFIG_FPROBE"
    return _unavailable(reason, "a kernel with it, as Debian 13's")


@contextmanager
def observe_functions(wanted: FunctionFilter) -> Iterator[Callable[[], Sequence[FunctionCall]]]:
    """Report calls in the body; yields what reads them. Raises FunctionsUnavailable."""
    tracer = FunctionTracer(wanted)
    try:
        yield tracer.read
    finally:
        tracer.close()


class FunctionTracer:
    """Report calls with the packets of a filter until it is closed.

    Raises FunctionsUnavailable if that isn't possible here. Call all methods from one thread.
    """

    def __init__(self, wanted: FunctionFilter, cache: Path = CACHE) -> None:
        addresses = function_addresses()
        program = _compiled(cache)
        self._names = list(addresses)
        self._maps: dict[str, int] = {}
        self._links: list[int] = []
        self._ring: syscall.RingBuffer | None = None
        try:
            self._create_maps(wanted)
            self._attach(program, addresses)
        except OSError as error:
            self.close()
            raise _refused(error) from error
        except syscall.Rejected as error:
            self.close()
            raise _unavailable("the kernel's verifier refuses the program", "the same without it") from error

    def _create_maps(self, wanted: FunctionFilter) -> None:
        for name, arguments in {
            "wanted": (syscall.MAP_HASH, _KEY.size, 4, _WANTED),
            "probe": (syscall.MAP_ARRAY, 4, _MARK.size, 1),
            "calls": (syscall.MAP_RINGBUF, 0, 0, _RING_BYTES),
        }.items():
            self._maps[name] = syscall.create_map(*arguments, f"vnet_{name}")
        for one in wanted.tuples:
            syscall.update(self._maps["wanted"], _key(one), _FIRST)
        if wanted.protocol:
            syscall.update(self._maps["probe"], _FIRST, _mark(wanted))
        self._ring = syscall.RingBuffer(self._maps["calls"], _RING_BYTES)

    def _attach(self, program: CompiledProgram, addresses: Mapping[str, int]) -> None:
        """Attach to all functions at once, or else to each one that permits it."""
        code = program.with_maps(self._maps)
        loaded = syscall.load_program(
            syscall.PROG_KPROBE, code, "vnet_functions", attach_type=syscall.KPROBE_MULTI
        )
        try:
            cookies = {
                address: _cookie(number, name) for number, (name, address) in enumerate(addresses.items())
            }
            try:
                self._links.append(syscall.attach_kprobes(loaded, cookies))
            except OSError as error:
                if error.errno in (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP):
                    raise
                self._attach_each(loaded, cookies)
        finally:
            os.close(loaded)

    def _attach_each(self, loaded: int, cookies: Mapping[int, int]) -> None:
        """Attach to each function that permits it. Raises OSError if none does."""
        failure: OSError | None = None
        for address, cookie in cookies.items():
            try:
                self._links.append(syscall.attach_kprobes(loaded, {address: cookie}))
            except OSError as error:
                failure = error
        if not self._links and failure is not None:
            raise failure

    def read(self) -> list[FunctionCall]:
        """Return the calls since the last call, in their order; never waits."""
        assert self._ring is not None
        booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        records = (np.frombuffer(one, _CALL, 1)[0] for one in self._ring.read())
        return sorted((self._call(one, booted) for one in records), key=lambda one: one.at)

    def _call(self, record: np.void, booted: float) -> FunctionCall:
        return FunctionCall(
            booted + int(record["at"]) / 1e9,
            self._names[int(record["function"])],
            int(record["ns"]),
            int(record["ifindex"]),
            record["headers"].tobytes()[: int(record["linear"])],
        )

    def close(self) -> None:
        """End reporting."""
        if self._ring is not None:
            self._ring.close()
        for descriptor in (*self._links, *self._maps.values()):
            os.close(descriptor)
        self._links, self._maps, self._ring = [], {}, None


def _cookie(number: int, name: str) -> int:
    packet = FUNCTIONS[name] or 1 | _INDIRECT
    return number << _NUMBER_SHIFT | _REASONS.get(name, 0) << _REASON_SHIFT | packet


def _key(wanted: PacketTuple) -> bytes:
    """Return the key of a tuple in the map `wanted`."""
    src, dst = (ipaddress.ip_address(one) for one in (wanted.src, wanted.dst))
    ports = struct.unpack("=HH", struct.pack("!HH", wanted.sport, wanted.dport))
    return _KEY.pack(_NUMBERS[wanted.protocol, src.version], *ports, src.packed, dst.packed)


def _mark(wanted: FunctionFilter) -> bytes:
    """Return the value of the map `probe`."""
    mark, acknowledged = (struct.unpack("=I", one)[0] for one in (wanted.mark, wanted.acknowledged))
    (port,) = struct.unpack("=H", struct.pack("!H", wanted.port))
    return _MARK.pack(wanted.protocol, mark, acknowledged, port)


def function_addresses(names: Iterable[str] = FUNCTIONS, path: Path = _SYMBOLS) -> dict[str, int]:
    """Return the addresses of the functions that this kernel has.

    Those with a name that several functions have are left out. Raises FunctionsUnavailable without any.
    """
    wanted, found, twice = set(names), dict[str, int](), set[str]()
    try:
        text = path.read_text()
    except OSError as error:
        raise _unavailable(f"{error.strerror} ({path})", "run it as root") from error
    if not re.search(_FPROBE, text, re.MULTILINE):
        raise _without_fprobes()
    for address, name in _SYMBOL.findall(text):
        if name in wanted:
            twice |= {name} & found.keys()
            found[name] = int(address, 16)
    chosen = {name: found[name] for name in names if found.get(name) and name not in twice}
    if not chosen:
        raise _unavailable("the kernel hides the addresses of its functions", "sysctl kernel.kptr_restrict=1")
    return chosen


def _compiled(cache: Path) -> CompiledProgram:
    try:
        return compiled_program(cache, "functions")
    except CompileError as error:
        raise _unavailable(str(error), "vnet-tui fastpath check") from error


def _refused(error: OSError) -> FunctionsUnavailable:
    if error.errno in (errno.EPERM, errno.EACCES):
        return _unavailable("the kernel doesn't permit it", "run it as root, on the host itself")
    if error.errno == errno.EOPNOTSUPP:
        return _without_fprobes()
    return _unavailable(f"the kernel refuses it ({error.strerror})", "the same without it")
