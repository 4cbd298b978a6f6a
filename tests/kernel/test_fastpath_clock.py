"""The clock of the fast path on a busy machine."""

from __future__ import annotations

import time

import pytest

from bpf.clock import Clock

pytestmark = pytest.mark.root


class Interrupted(Clock):
    """A clock whose process is interrupted before every second reading."""

    readings = 0

    def now(self) -> int:
        self.readings += 1
        if self.readings % 2 == 0:
            time.sleep(0.05)
        return super().now()


def test_the_rate_is_right_despite_interruptions() -> None:
    plain, interrupted = Clock(), Interrupted()
    try:
        assert interrupted.hz == plain.hz
    finally:
        plain.close()
        interrupted.close()
