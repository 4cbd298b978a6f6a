"""Open so many new UDP connections a second over loopback.

One socket in the caller's network namespace sends to ever other addresses, all of which one sink receives.
Prints how many there were.
"""

from __future__ import annotations

import socket
import struct
import sys
import time

PORT = 9
_FIRST = 0x7F010000  # 127.1.0.0
_EVERY = 0.01


def flood(rate: int, seconds: float) -> int:
    """Send a packet to each of `rate` * `seconds` addresses; return the number sent."""
    count, sent = int(rate * seconds), 0
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        sink.bind(("0.0.0.0", PORT))
        began = time.monotonic()
        while sent < count:
            due = min(count, int((time.monotonic() - began) * rate))
            for number in range(sent, due):
                address = socket.inet_ntoa(struct.pack("!I", _FIRST + number))
                sender.sendto(b"new", (address, PORT))
            sent = due
            time.sleep(_EVERY)
    return sent


if __name__ == "__main__":
    print(flood(int(sys.argv[1]), float(sys.argv[2])))
