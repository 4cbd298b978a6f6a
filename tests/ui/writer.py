"""A person who changes things in the dashboard, on the throw-away host as it is."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from core.collect.snapshot import read_snapshot
from core.model import Part
from tests.ui.driver import Person, dashboard
from tui.cli.session import ChangeSession

WIDE = (130, 40)
# Other hosts on the same machine may be in sight: what is deleted here must have a name of its own.
NET = f"w{os.getpid()}"
BRIDGE = f"br-{NET}"
PARTS = (Part.LINKS, Part.CONTAINERS, Part.HOST_FIREWALL)


@asynccontextmanager
async def writer(size: tuple[int, int] = WIDE, write: bool = True) -> AsyncIterator[Person]:
    """The dashboard on the throw-away host as it is, with changes allowed."""
    async with dashboard(read_snapshot(PARTS), size, make_change_service=ChangeSession) as person:
        if write:
            await person.press("W")
        yield person


def prose(person: Person) -> str:
    """The screen without what frames it and what lies beside the frame, as one line."""
    inside = (re.sub("^.*?│(.*)│.*$", r"\1", line) for line in person.lines)
    return " ".join(re.sub("[^ -~]", " ", "\n".join(inside)).split())


async def says(person: Person, text: str) -> None:
    """Wait for a text that may be wrapped."""
    await person.until(lambda: text in prose(person), repr(text))


async def shows(person: Person, *texts: str) -> None:
    for text in texts:
        await person.until(lambda text=text: text in person.text, repr(text))


async def closed(person: Person) -> None:
    await person.until(lambda: len(person.app.screen_stack) == 1, "the form's end")


async def keys(person: Person, *pressed: str) -> None:
    """Press keys, then wait until the commands that they lead to are on the screen."""
    await person.press(*pressed)
    screen = person.app.screen
    current = getattr(screen, "_is_current", None)
    if current:
        await person.until(lambda: screen.worked and current(screen.worked), "the preview")  # type: ignore[attr-defined]
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
    """What the fields in sight hold."""
    form = person.app.screen.form  # type: ignore[attr-defined]
    return {one.name: one.value for one in form.fields if not one.hidden}


async def do(person: Person, key: str = "enter") -> None:
    """Do what the form shows; where its commands are out of sight, have them shown first."""
    await keys(person)
    preview = getattr(person.app.screen, "preview", None)
    if preview is not None and not preview.shows_commands:
        await person.press(key)
        await person.until(lambda: preview.shows_commands, "the commands")
    await person.press(key)
    await closed(person)


async def select(person: Person, view: str, text: str) -> None:
    """Put the cursor on the first line of a view that matches, on the host as it is now."""
    await person.feed(read_snapshot(PARTS))
    await person.type(f":{view}⏎/{text}⏎")
