"""Define all actions; bindings, footer, help and command palette derive from them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from textual.binding import Binding, BindingType

# Where an action is available: "lines" in every pane of lines, "fold" if lines are below others, "list"
# in views that can be filtered, "order" in those that can be sorted, "pane" where there is a second pane,
# "flows" and "drops" in these views, "group" in views whose rows can be grouped,
# "any" everywhere in the dashboard, "change" as well, once changes are allowed, "replay"
# while a recording is open, "capture" in the packets of a capture, "demo" if there is no container, "hosts"
# in a lab of several hosts, "app" also above overlays.
KeyScope = Literal[
    "lines",
    "fold",
    "list",
    "order",
    "pane",
    "any",
    "change",
    "flows",
    "group",
    "drops",
    "replay",
    "demo",
    "hosts",
    "app",
    "capture",
]

READ_ONLY = "can't change networks: the dashboard is read-only. Try: W"

GROUPS: tuple[tuple[str, tuple[KeyScope, ...]], ...] = (
    ("Moving", ("lines", "fold")),
    ("Time line", ("replay",)),
    ("Capture", ("capture",)),
    ("This view", ("flows", "drops", "group", "list", "order", "pane")),
    ("Changing", ("change",)),
    ("Everywhere", ("demo", "hosts", "any", "app")),
)


@dataclass(frozen=True, slots=True)
class Action:
    """One action of keys.

    `name` is Textual's action, `label` the keys as text, `title` the footer's text, `help` the help's; the
    lower `rank`, the longer a narrow footer keeps it (0: never shown there).
    """

    name: str
    keys: tuple[str, ...]
    label: str
    title: str
    help: str
    scope: KeyScope
    rank: int = 0


ACTIONS: tuple[Action, ...] = (
    Action("cursor_down", ("j", "down"), "j ↓", "Down", "next line", "lines"),
    Action("cursor_up", ("k", "up"), "k ↑", "Up", "previous line", "lines"),
    Action("first", ("g", "home"), "g Home", "First", "first line", "lines"),
    Action("last", ("G", "end"), "G End", "Last", "last line", "lines"),
    Action("half_down", ("ctrl+d",), "Ctrl-d", "Half down", "half a page down", "lines"),
    Action("half_up", ("ctrl+u",), "Ctrl-u", "Half up", "half a page up", "lines"),
    Action("page_down", ("pagedown",), "PgDn", "Page down", "a page down", "lines"),
    Action("page_up", ("pageup",), "PgUp", "Page up", "a page up", "lines"),
    Action(
        "left",
        ("h", "left"),
        "h ←",
        "Left",
        "fold, or go to the parent row; left in the overview",
        "fold",
    ),
    Action("right", ("l", "right"), "l →", "Right", "unfold; right in the overview", "fold"),
    Action("open", ("enter",), "Enter", "Follow", "go to the related item", "lines", 2),
    Action("back", ("escape",), "Esc", "Back", "clear the filter, or go back", "any", 6),
    Action("filter", ("slash",), "/", "Filter", "show only matching rows", "list", 3),
    Action("sort", ("s",), "s", "Sort", "sort by the next column", "order", 7),
    Action("reverse", ("S",), "S", "Reverse", "reverse the order", "order", 11),
    Action("next_pane", ("tab",), "Tab", "Pane", "go to the other pane", "pane", 9),
    Action("zoom", ("plus",), "+", "Zoom", "show only this pane, or both again", "pane", 12),
    Action("window", ("z",), "z", "Interval", "show curves of 1 minute, 5 minutes or 1 hour", "pane", 16),
    Action("why", ("w",), "w", "Why", "can the selected item reach another one, and why not", "any", 2),
    Action("fix", ("F",), "F", "Fix", "preview the repair of the selected item's finding", "any", 3),
    Action("mute", ("I",), "I", "Ignore", "mute the selected finding, or show it again", "any"),
    Action("copy", ("y",), "y", "Copy", "copy the selected line to the clipboard", "any", 10),
    Action("command", ("colon",), ":", "Jump", "jump to a view, or to an item, by name", "any", 4),
    Action("previous", ("minus",), "-", "Previous", "go to the previous view", "any"),
    Action("pause", ("p",), "p", "Pause", "pause or resume the display", "any", 8),
    Action("refresh", ("r",), "r", "Refresh", "read everything again", "any", 13),
    Action("play", ("space",), "Space", "Play", "play or pause the recording", "replay", 1),
    Action("later", ("right",), "→", "Later", "go to the next moment", "replay", 2),
    Action("earlier", ("left",), "←", "Earlier", "go to the previous moment", "replay", 2),
    Action(
        "next_change", ("right_square_bracket",), "]", "Next change", "go to the next change", "replay", 5
    ),
    Action(
        "last_change", ("left_square_bracket",), "[", "Prev change", "go to the previous change", "replay", 5
    ),
    Action("faster", ("greater_than_sign",), ">", "Faster", "play faster", "replay", 6),
    Action("slower", ("less_than_sign",), "<", "Slower", "play slower", "replay", 6),
    Action("to_start", ("0",), "0", "Start", "go to the first moment", "replay", 8),
    Action("to_end", ("dollar_sign",), "$", "End", "go to the last moment", "replay", 8),
    Action("record", ("R",), "R", "Record", "start or stop recording to a file", "any", 16),
    Action("capture", ("C",), "C", "Capture", "capture packets of the selected item", "any", 15),
    Action("bundle", ("B",), "B", "Bundle", "write a bundle for a bug report", "any"),
    Action("mark", ("M",), "M", "Mark", "mark this moment: :diff lists what changed since", "any"),
    Action(
        "problems",
        ("exclamation_mark",),
        "!",
        "Findings",
        "findings, and what couldn't be read",
        "any",
        14,
    ),
    Action("theme", ("t",), "t", "Theme", "next theme: dark, light, the terminal's colours", "any"),
    Action("write", ("W",), "W", "Write", "allow or forbid changes", "any", 15),
    Action(
        "group",
        ("b",),
        "b",
        "Group",
        "group by container and others; flows: matrix",
        "group",
        3,
    ),
    Action("inspect", ("i",), "i", "Inspect", "list each dropped packet for 10 seconds", "drops", 3),
    Action("hops", ("o",), "o", "Hops", "show a connection once, or its entry in each namespace", "flows", 6),
    Action("pin", ("asterisk",), "*", "Pin", "keep the selected flow on top, or stop that", "flows", 8),
    Action("count", ("A",), "A", "Accounting", "turn on the kernel's traffic accounting", "flows"),
    Action(
        "shell",
        ("x",),
        "x",
        "Shell",
        "open a shell in a container; trace a flow; OVS flows",
        "any",
    ),
    Action("log", ("L",), "L", "Log", "commands that this session has run", "any"),
    Action("make_network", ("n",), "n", "Network", "create a network", "change", 2),
    Action("attach", ("a",), "a", "Attach", "attach a container to a network", "change", 2),
    Action("detach", ("D",), "D", "Detach", "detach the selected container from a network", "change", 8),
    Action("move", ("m",), "m", "Move", "move the selected container to another network", "change", 8),
    Action("join", ("J",), "J", "Join", "join two networks, or separate them", "change", 8),
    Action("edit", ("e",), "e", "Edit", "settings of the selected link, bridge or port", "change", 4),
    Action("delete", ("d",), "d", "Delete", "delete, unpublish or detach the selected item", "change", 3),
    Action("publish", ("P",), "P", "Publish", "publish a port of the selected container", "change", 3),
    Action(
        "make_container", ("c",), "c", "Container", "create a plain container (named namespace)", "change", 8
    ),
    Action(
        "accelerate",
        ("f",),
        "f",
        "Fast",
        "turn the fast path on or off",
        "change",
        4,
    ),
    Action(
        "tune",
        ("T",),
        "T",
        "Tune",
        "tune a bridge: BIG TCP, offloads, br_netfilter, RPS",
        "change",
        8,
    ),
    Action("undo", ("u",), "u", "Undo", "undo an earlier change", "change", 3),
    Action("demo", ("E",), "E", "Demo", "open the demo lab: containers, networks, traffic", "demo", 1),
    Action("next_host", ("H",), "H", "Host", "go to the next host of the demo lab", "hosts", 2),
    Action("help", ("question_mark",), "?", "Help", "this help", "any", 1),
    Action("palette", ("ctrl+p",), "Ctrl-p", "Palette", "find an action by name", "any"),
    Action("quit", ("q",), "q", "Quit", "quit, or close a panel", "any", 5),
    Action("quit", ("ctrl+c", "ctrl+q"), "Ctrl-c Ctrl-q", "Quit", "quit at once, from anywhere", "app"),
)

# Those of a capture's screen, which covers the dashboard: some keys have another meaning there.
CAPTURE_ACTIONS: tuple[Action, ...] = (
    Action("end_capture", ("escape", "q"), "Esc", "End", "end the capture", "capture", 1),
    Action("save_packets", ("w",), "w", "Save", "write packets to a pcapng file, or end it", "capture", 2),
    Action("filter_packets", ("slash",), "/", "Filter", "capture only matching packets", "capture", 3),
    Action("hold_packets", ("p",), "p", "Pause", "pause or resume the display", "capture", 4),
    Action("copy_packet", ("y",), "y", "Copy", "copy the selected packet's line", "capture", 5),
    Action("capture_help", ("question_mark",), "?", "Help", "this help", "capture", 6),
)

# Actions that move the cursor of a pane of lines, by key.
MOVES = {
    key: action.name
    for action in ACTIONS
    if action.scope == "lines" and action.name != "open"
    for key in action.keys
}


def bindings(*scopes: KeyScope) -> list[BindingType]:
    """Return the Textual bindings of the actions of `scopes`.

    They have priority, so that keys take effect in the order in which they were typed, even if one changes
    the focus.
    """
    return [
        Binding(",".join(action.keys), action.name, action.title, show=False, priority=True)
        for action in (*ACTIONS, *CAPTURE_ACTIONS)
        if action.scope in scopes
    ]


def view_bindings(count: int) -> list[BindingType]:
    """Return the number keys of the first nine views."""
    numbers = range(1, min(count, 9) + 1)
    return [
        Binding(str(number), f"view({number})", f"View {number}", show=False, priority=True)
        for number in numbers
    ]


def actions_in(scopes: Collection[KeyScope]) -> Iterator[Action]:
    """Yield the actions available there, in order.

    With a time line, arrows move on it.
    """
    for action in (*ACTIONS, *CAPTURE_ACTIONS):
        if action.scope in scopes:
            along_time = "replay" in scopes and action.scope == "fold"
            yield replace(action, label=action.keys[0]) if along_time else action


def has_action(name: str, scope: KeyScope) -> bool:
    """Return whether an action of that name is available there."""
    return any(action.name == name and action.scope == scope for action in ACTIONS)


def footer(scopes: Collection[KeyScope]) -> list[Action]:
    """Return the actions that a footer shows, the most important first."""
    return sorted((action for action in actions_in(scopes) if action.rank), key=lambda action: action.rank)


def grouped(scopes: Collection[KeyScope]) -> Iterable[tuple[str, list[Action]]]:
    """Yield the actions available there, under the help's headings."""
    for title, group in GROUPS:
        actions = [action for action in actions_in(scopes) if action.scope in group]
        if actions:
            yield title, actions
