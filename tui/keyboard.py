"""What a terminal sends: a driver that no byte of it ends."""

from __future__ import annotations

import codecs
from functools import partial

from textual.driver import Driver
from textual.drivers import linux_driver


def _patient_decoder(encoding: str) -> partial[codecs.IncrementalDecoder]:
    """Decodes what is text and drops the rest, as `codecs.getincrementaldecoder` with another default."""
    return partial(codecs.getincrementaldecoder(encoding), errors="ignore")


def forgiving(driver: type[Driver]) -> type[Driver]:
    """The driver, which then reads bytes that are not UTF-8 (a terminal of another encoding, noise on a
    line) as nothing: by itself it decodes strictly, and the error ends the program (Textual's
    `LinuxDriver.run_input_thread`)."""
    vars(linux_driver)["getincrementaldecoder"] = _patient_decoder
    return driver
