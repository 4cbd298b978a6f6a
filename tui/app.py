"""The dashboard as a Textual application."""

from __future__ import annotations

import asyncio
import codecs
import os
import signal
import sys
from collections.abc import Callable, Iterable
from functools import partial

from textual import events
from textual._time import get_time
from textual.app import SuspendNotSupported, SystemCommand
from textual.command import DiscoveryHit, Hits, Provider
from textual.driver import Driver
from textual.drivers import linux_driver
from textual.message import Message
from textual.screen import Screen
from textual.system_commands import SystemCommandsProvider

from tui import keys, themes
from tui.screens.dashboard import Dashboard
from tui.services import NO_SERVICES, LabHosts, Services
from tui.sources import Source
from tui.view_model import Navigation
from tui.views import registry
from tui.widgets.lines import TonedApp


class OrderedCommands(SystemCommandsProvider):
    """List entries in the app's order; Textual would sort them by name."""

    async def discover(self) -> Hits:
        """Yield every entry."""
        for title, words, run, listed in self.app.get_system_commands(self.screen):
            if listed:
                yield DiscoveryHit(title, run, help=words)


def _tolerant_decoder(encoding: str) -> partial[codecs.IncrementalDecoder]:
    """Return a decoder that drops invalid bytes."""
    return partial(codecs.getincrementaldecoder(encoding), errors="ignore")


def tolerant(driver: type[Driver]) -> type[Driver]:
    """Make the driver ignore bytes that aren't UTF-8.

    By itself Textual's `LinuxDriver.run_input_thread` decodes strictly, and noise on the line would end the
    program.
    """
    vars(linux_driver)["getincrementaldecoder"] = _tolerant_decoder
    return driver


def _palette() -> type[Provider]:

    return OrderedCommands


_LATE = 3.0  # seconds after which a key that waited is dropped
_SWITCH_EVERY = 0.001  # seconds after which a computing thread releases the GIL


class VnetApp(TonedApp):
    """Run the dashboard on a source.

    `ascii_only` draws with ASCII characters alone; `write` allows changes from the start.
    """

    TITLE = "vnet-tui"
    CSS_PATH = "app.tcss"
    BINDINGS = keys.bindings("app")
    COMMANDS = {_palette}
    CLOSE_TIMEOUT = 1.0
    _dropped_until = 0.0
    wants_demo = False  # whether the user has left for the demo

    def __init__(
        self,
        source: Source,
        ascii_only: bool = False,
        services: Services = NO_SERVICES,
        write: bool = False,
    ) -> None:
        # Without colours: set it before Textual removes the variable, or it paints greys.
        super().__init__(ansi_color=True if "NO_COLOR" in os.environ else None)
        self._source, self._services, self._write = source, services, write
        self.animation_level = "none"
        # Beside a thread that computes, the event loop waits that long after each system call. With Python's
        # 5 ms it stood still for over 100 ms while a bundle was written.
        sys.setswitchinterval(_SWITCH_EVERY)
        for theme in themes.THEMES:
            self.register_theme(theme)
        self.theme = themes.ANSI.name if self.no_color else themes.DARK.name
        if ascii_only:
            from tui.widgets.lines import AsciiFilter

            self._filters.append(AsciiFilter())

    def get_driver_class(self) -> type[Driver]:
        """Return the terminal's driver; it survives bytes that aren't UTF-8."""
        return tolerant(super().get_driver_class())

    def on_mount(self) -> None:
        """Let SIGTERM and SIGHUP restore the terminal, and exit with 128 + signal."""
        if not self.is_headless:
            for number in (signal.SIGTERM, signal.SIGHUP):
                asyncio.get_running_loop().add_signal_handler(number, self.exit, None, 128 + number)

    def get_default_screen(self) -> Screen[None]:
        """Return the dashboard's screen, which lies under all others."""
        screen = Dashboard(self._source, self._services, self._write)
        hosts = self._services.lab_hosts
        if hosts and registry.view_named(hosts.view):
            screen.navigation.state = Navigation(hosts.view)
        return screen

    async def on_event(self, event: events.Event) -> None:
        """Forward keys to the prompt while it is open, before any other handler."""
        if isinstance(event, events.Key) and not event.is_forwarded and event.key not in ("ctrl+c", "ctrl+q"):
            screen = self.screen
            feed = getattr(
                screen, "feed_prompt", None
            )  # of the screen with packets, imported at its first use
            if not isinstance(screen, Dashboard):
                if feed is not None and await feed(event):
                    return
            else:
                if await screen.feed_prompt(event) or self._is_outdated(event):
                    return
                await screen.catch_up()
                await self._merge_repeats(event.key, screen)
        await super().on_event(event)

    def _is_outdated(self, event: events.Key) -> bool:
        """Return whether a key was typed so long ago that another screen was meant.

        All keys that were typed after it until now are dropped as well.
        """
        now = get_time()
        if now - event.time > _LATE:
            self._dropped_until = now
        return event.time <= self._dropped_until

    async def _merge_repeats(self, key: str, screen: Dashboard) -> None:
        """Move by the waiting repeats of a key that moves, without painting every step."""
        action = keys.MOVES.get(key)
        while action and _is_key(self._peek_message(), key):
            await self._get_message()
            screen.focused_pane.move_unpainted(action)

    def on_dashboard_demo_asked(self) -> None:
        """End, for the demo."""
        self.wants_demo = True
        self.exit()

    def on_dashboard_next_host_asked(self) -> None:
        """End, for the dashboard on the next host; elsewhere there is none."""
        if hosts := self._services.lab_hosts:
            self._go_to_host(hosts, (hosts.current + 1) % len(hosts.names))

    def _go_to_host(self, hosts: LabHosts, number: int) -> None:
        screen = self.screen_stack[0]
        assert isinstance(screen, Dashboard)
        hosts.request(number, screen.nav.current.view)
        self.exit()

    def on_dashboard_shell_asked(self, message: Dashboard.ShellAsked) -> None:
        """Give the terminal to a shell, until that ends."""
        from tui.suspended import open_shell

        try:
            with self.suspend():
                open_shell(message.target)
        except SuspendNotSupported:
            words = f"can't open a shell here. Try: vnet-tui shell {message.target}"
            self.notify(words, severity="warning", markup=False)

    async def action_quit(self) -> None:
        """End at once."""
        self.exit()

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """Yield the palette's entries: views, actions, hosts and faults of a lab."""
        if not isinstance(screen, Dashboard):
            return
        for each in registry.VIEWS:
            words = f"show {each.list.title} ({each.number or f':{each.name}'})"
            yield SystemCommand(each.list.title, words, partial(screen.go_to, each.name))
        for action in keys.actions_in(screen.key_scopes() - {"lines", "fold", "app"}):
            if action.name == "palette":
                continue
            yield SystemCommand(
                action.title, f"{action.help} ({action.label})", partial(screen.run_action, action.name)
            )
        hosts = self._services.lab_hosts
        for number, name in enumerate(hosts.names if hosts else ()):
            if hosts and number != hosts.current:
                run = partial(self._go_to_host, hosts, number)
                yield SystemCommand(f"Go to host {name}", "show this host of the demo lab", run)
        if self._services.lab_faults is not None:
            from tui.screens.lab_faults import palette_entries

            yield from palette_entries(screen, self._services.lab_faults())


def _is_key(message: Message | None, key: str) -> bool:
    """Return whether the message is that key, typed."""
    return isinstance(message, events.Key) and message.key == key and not message.is_forwarded


def wants_ascii() -> bool:
    """Return whether the environment wants ASCII, or can't show anything else."""
    asked = os.environ.get("VNET_ASCII", "")
    return asked not in ("", "0") or os.environ.get("TERM") == "linux"


def run(
    source: Source,
    ascii_only: bool = False,
    services: Services = NO_SERVICES,
    write: bool = False,
    open_demo: Callable[[], int] | None = None,
) -> int:
    """Open the dashboard until the user quits; returns the exit status.

    If the user opens the demo, the status is the demo's.
    """
    app = VnetApp(source, ascii_only or wants_ascii(), services, write)
    app.run()
    if app.wants_demo and open_demo is not None:
        return open_demo()
    return app.return_code or 0
