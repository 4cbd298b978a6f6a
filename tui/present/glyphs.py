"""The drawing characters, and the ASCII ones that stand for them, each one cell wide like the one it replaces."""

from __future__ import annotations

SPARKS = "▁▂▃▄▅▆▇█"
ELLIPSIS = "…"
ARROW = "→"
BOTH_WAYS = "↔"
NOT_EQUAL = "≠"

_ASCII = {
    "─": "-", "━": "=", "═": "=", "│": "|", "┃": "|", "║": "|", "╌": "-", "┄": "-", "┆": ":",
    "┌": "+", "┐": "+", "└": "+", "┘": "+", "├": "+", "┤": "+", "┬": "+", "┴": "+", "┼": "+",
    "╭": "+", "╮": "+", "╰": "+", "╯": "+", "┏": "+", "┓": "+", "┗": "+", "┛": "+", "┣": "+", "┫": "+",
    "┯": "+", "┷": "+", "╤": "+", "╧": "+", "╪": "+", "╞": "+", "╡": "+", "╥": "+", "╨": "+",
    "┠": "+", "┨": "+", "╺": "=", "╸": "=", "╶": "-", "╴": "-", "╵": "|", "╷": "|",
    "▏": "|", "▎": "|", "▍": "|", "▌": "|", "▐": "|", "▕": "|", "█": "#", "▓": "#", "▒": "#", "░": ".",
    "▁": "_", "▂": ".", "▃": ":", "▄": "-", "▅": "=", "▆": "+", "▇": "*",
    "●": "*", "○": "o", "◐": "%", "◆": "#", "◇": "#", "■": "#", "□": "o", "▪": "*", "▸": ">", "▾": "v",
    "▶": ">", "◀": "<", "▲": "^", "▼": "v", "→": ">", "←": "<", "↔": "-", "↑": "^", "↓": "v", "⇄": "=",
    "≠": "!", "…": "~", "·": ".", "•": "*", "×": "x", "✓": "+", "✗": "x", "⚠": "!", "–": "-", "—": "-", "›": ">", "‹": "<",
}  # fmt: skip

ASCII = str.maketrans(_ASCII)


def ascii_only(text: str) -> str:
    """The text with every drawing character replaced, cell for cell; what is left that is not ASCII is a letter
    of somebody's name and stays."""
    return text if text.isascii() else text.translate(ASCII)
