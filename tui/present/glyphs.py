"""The drawing characters, and the ASCII ones that stand for them, each one cell wide like those."""

from __future__ import annotations

SPARKS = "▁▂▃▄▅▆▇█"
ELLIPSIS = "…"
ARROW = "→"
BOTH_WAYS = "↔"
NOT_EQUAL = "≠"
PIN = "◆"

_ASCII = {
    **dict.fromkeys("┌┐└┘├┤┬┴┼╭╮╰╯┏┓┗┛┣┫┯┷┑┍╤╧╪╞╡╥╨┠┨✓", "+"),
    **dict.fromkeys("━═╾╼╺╸▅⇄", "="),
    **dict.fromkeys("─╌┄╶╴▄↔–—", "-"),
    **dict.fromkeys("│┃║╵╷▏▎▍▌▐▕", "|"),
    **dict.fromkeys("█▓▒■", "#"),
    **dict.fromkeys("▸▶→›", ">"),
    **dict.fromkeys("◀←‹", "<"),
    **dict.fromkeys("▲↑", "^"),
    **dict.fromkeys("▾▼↓", "v"),
    **dict.fromkeys("●▪•▇◆◇", "*"),
    **dict.fromkeys("○□", "o"),
    **dict.fromkeys("×✗", "x"),
    **dict.fromkeys("≠⚠", "!"),
    **dict.fromkeys("░▂·", "."),
    **dict.fromkeys("┆▃", ":"),
    "▁": "_", "▆": "+", "◐": "%", "…": "~",
}  # fmt: skip

ASCII = str.maketrans(_ASCII)


def ascii_only(text: str) -> str:
    """The text with every drawing character replaced, cell for cell; what is left that is not ASCII is a
    letter of somebody's name and stays."""
    return text if text.isascii() else text.translate(ASCII)
