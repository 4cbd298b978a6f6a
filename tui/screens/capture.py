"""Show the packets of a capture live: lines, pause, filter, and a pcapng file."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from textual import events
from textual.app import ComposeResult
from textual.strip import Strip

from core.capture import CaptureError
from core.capture.lines import PacketLine
from core.capture.targets import Target, target_of
from core.model import Ref
from core.text import safe
from core.topology import Topology
from tui import keys
from tui.command import CommandError, display_path, free_path, span_of
from tui.presenter import Presenter
from tui.screens.dialogs import Dialog, Overlay, lay_out
from tui.screens.layout import Layout
from tui.services import CaptureState
from tui.views.formatting import cut, fit, width_of, wrapped
from tui.widgets.bars import FooterBar
from tui.widgets.form import Prompt
from tui.widgets.lines import LinesPane, Painted, Span, strip_of

if TYPE_CHECKING:
    from tui.services import CaptureService, PacketSource

_TICK = 0.2  # seconds between two paints
_NOTICE = 8.0
_HINT = "host 10.0.0.2 and port 80 (man pcap-filter)      Enter: apply  Esc: leave as it is"
_SHORT_CLOCK, _CLOCK = 12, 15  # cells: milliseconds, microseconds
_ROOMY = 100
_MOST_LINK = 20


def open_capture(
    screen: Layout,
    presenter: Presenter,
    ref: Ref | None,
    make_service: Callable[[], CaptureService] | None,
) -> None:
    """Open the capture of the selected item, or say why there is none."""
    try:
        if make_service is None or not presenter.source.live:
            raise CommandError("can't capture packets of a file: it doesn't hold any")
        if ref is None:
            raise CommandError("can't capture: no item is selected. Try: a link, container, network or flow")
        topology = presenter.context.topology
        target = target_of(topology, ref, entry=flow_entry(presenter, ref))
    except (CommandError, CaptureError) as error:
        screen.notify(safe(str(error)), severity="warning", markup=False, timeout=_NOTICE)
        return
    screen.app.push_screen(CaptureScreen(target, topology, make_service, presenter.hostname))


def flow_entry(presenter: Presenter, ref: Ref) -> Any:
    """Return the conntrack row of a flow on screen, None if there is none."""
    if ref.kind != "flow":
        return None
    view = presenter.context.flow_view
    row = view.row_of(int(ref.key[0]), int(ref.key[1]))
    if row is None:
        return None
    table, place = view.index.columns.place(row)
    return table.entries[place]


class CaptureHeader(Painted):
    """One line about the capture: what, filter, packets, drops, file."""

    def __init__(self, title: str) -> None:
        super().__init__()
        self.title, self.filter = title, ""
        self.state, self.held = CaptureState(), False

    def paint(self, width: int, height: int) -> list[Strip]:
        state = self.state
        spans: list[Span] = [
            (" Capture ", self.style_of("badge")),
            (f" {safe(self.title)}", self.style_of("title")),
        ]
        spans += [(f"  /{safe(self.filter)}", self.style_of("accent"))] if self.filter else []
        spans.append((f"  {state.last:,} packets", self.style_of("")))
        spans += [(f", {state.dropped:,} dropped", self.style_of("bad"))] if state.dropped else []
        spans.append((f"  {span_of(state.seconds)}", self.style_of("dim")))
        spans += [(" PAUSED ", self.style_of("badge-warn"))] if self.held else []
        spans += [(f"  saving {state.file}", self.style_of("ok"))] if state.file else []
        spans += [(" ENDED ", self.style_of("badge-bad"))] if state.ended else []
        return [strip_of(spans, width)]


class PacketsPane(LinesPane):
    """The packets in memory as lines.

    The cursor follows the newest packet while it is on the last line."""

    header_height = 1

    def __init__(self, interfaces: tuple[str, ...]) -> None:
        super().__init__()
        self.source: PacketSource | None = None
        self.message = "Starting the capture …"
        self.first = self.last = 0
        prefixes = {name.rpartition("/")[0] for name in interfaces}
        self._prefix = f"{prefixes.pop()}/" if len(prefixes) == 1 else ""  # the title says it
        self._link_width = 0
        if len(interfaces) > 1:
            widths = (width_of(safe(self._link(name))) for name in interfaces)
            self._link_width = min(_MOST_LINK, max(4, *widths))

    def _link(self, name: str) -> str:
        return name.removeprefix(self._prefix)

    def take(self, state: CaptureState, held: bool) -> None:
        """Show the packets in memory; while the display is held, only forget old ones."""
        follows = self.cursor >= self.line_count() - 1
        gone = state.first - self.first
        self.first = state.first
        self.last = max(self.first, self.last if held else state.last)
        self.top, self.cursor = max(0, self.top - gone), max(0, self.cursor - gone)
        if follows and not held:
            self.cursor = max(0, self.line_count() - 1)
            self.scroll_to_cursor()

    def line_count(self) -> int:
        return self.last - self.first

    def selected(self) -> PacketLine | None:
        """Return the packet under the cursor."""
        number = self.first + self.cursor
        found = self.source.lines(number, number + 1) if self.source and self.line_count() else []
        return found[0] if found else None

    def moved(self) -> None:
        screen = self.screen
        if isinstance(screen, CaptureScreen):
            screen.show_selected()

    def _widths(self, width: int) -> tuple[int, int, int]:
        """Return the widths of the clock, of an end, and of the protocol."""
        clock = _CLOCK if width >= _ROOMY else _SHORT_CLOCK
        link = self._link_width + 2 if self._link_width else 0
        left = width - clock - link - 5 - 10
        return clock, max(8, min(28, left * 3 // 8)), 5

    def paint_header(self, width: int) -> list[Strip]:
        head = PacketLine("TIME", "LINK", "SOURCE", "DESTINATION", "PROTO", "INFO", "")
        return [strip_of([(self._text(head, width), self.style_of("heading"))], width)]

    def paint_empty(self, width: int, height: int) -> list[Strip]:
        return [
            strip_of([(f" {line}", self.style_of("dim"))], width) for line in wrapped(self.message, width - 2)
        ]

    def paint_lines(self, first: int, last: int, width: int) -> list[Strip]:
        lines = self.source.lines(self.first + first, self.first + last) if self.source else []
        return [self._strip(first + place, line, width) for place, line in enumerate(lines)]

    def _strip(self, place: int, line: PacketLine, width: int) -> Strip:
        over = self.cursor_style() if place == self.cursor else ""
        style = self.style_of(_tone(line), over)
        return strip_of([(self._text(line, width), style)], width, self.style_of("", over) if over else None)

    def _text(self, line: PacketLine, width: int) -> str:
        clock, end, proto = self._widths(width)
        link = f"{fit(safe(self._link(line.interface)), self._link_width)}  " if self._link_width else ""
        ends = "  ".join(fit(cut(safe(one), end), end) for one in (line.source, line.destination))
        head = f" {fit(line.clock[:clock], clock)}  {link}{ends}  {fit(safe(line.protocol), proto)}  "
        return f"{head}{safe(line.info)}"


def _tone(line: PacketLine) -> str:
    if "RST" in line.info[:16] or "unreachable" in line.info or "exceeded" in line.info:
        return "bad"
    if any(word in line.info for word in ("NXDOMAIN", "SERVFAIL", "REFUSED", "too-big")):
        return "warn"
    return "dim" if line.protocol in ("ARP", "STP", "LLDP") else ""


class PacketBar(Painted):
    """Two lines about the selected packet: the summary, and its comment."""

    line: PacketLine | None = None

    def paint(self, width: int, height: int) -> list[Strip]:
        if self.line is None:
            return []
        text = f" {self.line.protocol} {self.line.info}"
        return [
            strip_of([(safe(self.line.comment and f" {self.line.comment}"), self.style_of("accent"))], width),
            strip_of([(safe(text), self.style_of("dim"))], width),
        ]


class CaptureScreen(Dialog[None]):
    """Packets of one item over the whole terminal; the capture ends with the screen."""

    BINDINGS = keys.bindings("capture")

    def __init__(
        self,
        target: Target,
        topology: Topology,
        make_service: Callable[[], CaptureService],
        hostname: str,
    ) -> None:
        super().__init__()
        self._target, self._topology, self._hostname = target, topology, hostname
        self._make_service = make_service
        self._source: PacketSource | None = None
        self._held = self._closed = False
        self._notice = ""
        self.header, self.bar, self.footer = CaptureHeader(target.title), PacketBar(), FooterBar()
        self.pane = PacketsPane(tuple(link.name for link in target.links))
        self.prompt = Prompt(lambda text: text, _HINT)

    def compose(self) -> ComposeResult:
        yield self.header
        yield self.pane
        yield self.bar
        yield self.prompt
        yield self.footer

    def on_mount(self) -> None:
        self.footer.show(keys.footer({"capture"}))
        self.pane.focus()
        self.run_worker(self._start())
        self.set_interval(_TICK, self._tick)
        if self._target.note:
            self._say(f"{self._target.note[0].upper()}{self._target.note[1:]}.")

    def on_unmount(self) -> None:
        """End the capture; its thread completes the file."""
        self._closed = True
        if self._source is not None:
            self._source.stop()

    async def _start(self) -> None:
        try:
            source = await asyncio.to_thread(self._open)
        except CommandError as error:
            self.pane.message = safe(str(error))
            self.pane.repaint()
            return
        if self._closed:
            source.stop()
            return
        self._source = self.pane.source = source
        self.pane.message = "No packets yet."
        self.pane.repaint()

    def _open(self) -> PacketSource:
        """Start the capture, on a thread that may block. Raises CommandError."""
        service = self._make_service()
        if why := service.missing_rights():
            raise CommandError(why)
        return service.start(self._target, self._topology, "")

    # ---- painting

    def _tick(self) -> None:
        if self._source is None:
            return
        state = self._source.state
        self.header.state, self.header.held = state, self._held
        self.header.repaint()
        self.pane.take(state, self._held)
        if state.ended and not state.last:
            self.pane.message = safe(state.error) or f"The capture ended: {state.ended}."
        self.pane.repaint()
        self.show_selected()
        ended = (state.error or f"The capture ended: {state.ended}.") if state.ended else ""
        for words in (state.notice, ended):
            if words and words not in self._notice:
                self._notice += words
                self._say(words)

    def show_selected(self) -> None:
        """Show the packet under the cursor in full."""
        self.bar.line = self.pane.selected()
        self.bar.repaint()

    def _say(self, words: str, tone: str = "accent") -> None:
        self.footer.show_notice(safe(words), tone)
        self.set_timer(_NOTICE, partial(self.footer.show_notice, ""))

    # ---- keys

    async def feed_prompt(self, event: events.Key) -> bool:
        """Give a key to the filter's prompt while it is open; False where it is not."""
        if not self.prompt.display:
            return False
        outcome = self.prompt.feed_key(event)
        if outcome == "given up" or (
            outcome == "accepted" and await self._apply_filter(self.prompt.text.strip())
        ):
            self.prompt.close()
        return True

    def on_paste(self, event: events.Paste) -> None:
        if self.prompt.display:
            self.prompt.insert(event.text)
            self.prompt.repaint()

    async def _apply_filter(self, text: str) -> bool:
        """Filter packets; False if the text has a mistake, which a notice names."""
        if self._source is None:
            return True
        try:
            await asyncio.to_thread(self._source.set_filter, text)
        except CommandError as error:
            self._say(str(error), "bad")
            return False
        self.header.filter = text
        self.header.repaint()
        return True

    def action_filter_packets(self) -> None:
        self.prompt.open("/", self.header.filter)

    def action_hold_packets(self) -> None:
        """Stop or resume the display; the capture goes on."""
        self._held = not self._held
        self._tick()

    async def action_save_packets(self) -> None:
        """Begin a file with the packets in memory, or complete it."""
        source = self._source
        if source is None:
            return
        if source.state.file:
            await asyncio.to_thread(source.end_file)
            self._tick()
            return
        path = free_path("capture", self._hostname, ".pcapng")
        try:
            await asyncio.to_thread(source.save, path)
        except CommandError as error:
            self._say(str(error), "bad")
            return
        if source.state.file:
            self._say(f"Writing to {display_path(path)} until w or Esc.")
        self._tick()

    def action_copy_packet(self) -> None:
        line = self.pane.selected()
        if line is not None:
            self.app.copy_to_clipboard(safe(f"{line}  {line.comment}".rstrip()))
            self._say("Copied the line", "ok")

    def action_capture_help(self) -> None:
        sections = [
            (title, [(action.label, action.help) for action in actions if action.name != "open"])
            for title, actions in keys.grouped({"capture", "lines"})
        ]
        self.app.push_screen(
            Overlay(" Capture: keys ", lambda width: lay_out(sections, width), 80, "question_mark")
        )

    def action_end_capture(self) -> None:
        self.dismiss(None)
