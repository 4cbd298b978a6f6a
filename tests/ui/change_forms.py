"""Drive the dashboard's forms on the throw-away host."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from core.collect.snapshot import read_snapshot
from core.model import Part
from tests.ui.driver import Person, dashboard
from tui.cli.session import ChangeSession
from tui.services import Services

WIDE = (130, 40)
# Other test hosts on this machine may be visible: names must be unique.
NET = f"w{os.getpid()}"
BRIDGE = f"br-{NET}"
PARTS = (Part.LINKS, Part.CONTAINERS, Part.OVS, Part.HOST_FIREWALL)


@asynccontextmanager
async def host_dashboard(size: tuple[int, int] = WIDE, write: bool = True) -> AsyncIterator[Person]:
    """Run the dashboard on the throw-away host, with changes allowed."""
    async with dashboard(read_snapshot(PARTS), size, services=Services(change=ChangeSession)) as person:
        if write:
            await person.press("W")
        yield person


def dialog_text(person: Person) -> str:
    """Return the text inside the dialog's frame as one line."""
    inside = (re.sub("^.*?│(.*)│.*$", r"\1", line) for line in person.lines)
    return " ".join(re.sub("[^ -~]", " ", "\n".join(inside)).split())


async def dialog_shows(person: Person, text: str) -> None:
    """Wait until the dialog shows a text that may be wrapped."""
    await person.until(lambda: text in dialog_text(person), repr(text))


async def shows(person: Person, *texts: str) -> None:
    for text in texts:
        await person.until(lambda text=text: text in person.text, repr(text))


async def closed(person: Person) -> None:
    await person.until(lambda: len(person.app.screen_stack) == 1, "the form's end")


async def keys(person: Person, *pressed: str) -> None:
    """Press keys, then wait until the preview of their commands is on the screen."""
    await person.press(*pressed)
    screen = person.app.screen
    current = getattr(screen, "_is_current", None)
    if current:
        await person.until(lambda: screen.planned and current(screen.planned), "the preview")  # type: ignore[attr-defined]
        await person.settle()


async def make_network(person: Person, name: str = NET, *more: str) -> None:
    await keys(person, "n")
    await keys(person, *name, *more)
    await shows(person, f"network {name}")
    await person.press("enter")
    await closed(person)


async def attach(person: Person, name: str, network: str = NET) -> None:
    await keys(person, "a")
    await keys(person, *name, "tab", *network)
    await shows(person, f"attach {name} to {network}")
    await person.press("enter")
    await closed(person)


def values(person: Person) -> dict[str, str]:
    """Return the values of the visible fields."""
    form = person.app.screen.form  # type: ignore[attr-defined]
    return {one.name: one.value for one in form.fields if not one.hidden}


async def apply_form(person: Person, key: str = "enter") -> None:
    """Apply the form; if its commands are hidden, show them first."""
    await keys(person)
    preview = getattr(person.app.screen, "preview", None)
    if preview is not None and not preview.shows_commands:
        await person.press(key)
        await person.until(lambda: preview.shows_commands, "the commands")
    await person.press(key)
    await closed(person)


async def select(person: Person, view: str, text: str) -> None:
    """Read the host again, and select the first line of a view that matches."""
    await person.feed(read_snapshot(PARTS))
    await person.type(f":{view}⏎")
    if person.dashboard.nav.current.state.filter:  # of an earlier visit
        await person.press("escape")
    await person.type(f"/{text}⏎")
