"""Define the themes. Colour marks state and focus, nothing else."""

from __future__ import annotations

from textual.theme import Theme

DARK = Theme(
    name="vnet-dark",
    primary="#6cb6ff",
    secondary="#8ddb8c",
    accent="#6cb6ff",
    warning="#f0c05a",
    error="#ff7b72",
    success="#6fd08c",
    foreground="#dce3ea",
    background="#0e1318",
    surface="#141b22",
    panel="#1d2731",
    variables={
        "dim": "#8b98a6",
        "faint": "#33414e",
        "cursor-background": "#1f4467",
        "cursor-blurred": "#1c2936",
        "bar": "#18212a",
    },
)

LIGHT = Theme(
    name="vnet-light",
    primary="#0757b0",
    secondary="#1a7f37",
    accent="#0757b0",
    warning="#875400",
    error="#b8141f",
    success="#11692c",
    foreground="#1a232c",
    background="#fcfcfa",
    surface="#f3f4f1",
    panel="#e6e9e5",
    dark=False,
    variables={
        "dim": "#5b6670",
        "faint": "#c3cac9",
        "cursor-background": "#c4ddf7",
        "cursor-blurred": "#e3eaf0",
        "bar": "#e9ece8",
    },
)

ANSI = Theme(
    name="vnet-ansi",
    ansi=True,
    primary="ansi_blue",
    secondary="ansi_green",
    accent="ansi_cyan",
    warning="ansi_yellow",
    error="ansi_red",
    success="ansi_green",
    foreground="ansi_default",
    background="ansi_default",
    surface="ansi_default",
    panel="ansi_default",
    boost="ansi_default",
    variables={
        "dim": "ansi_default",
        "faint": "ansi_bright_black",
        "cursor-background": "ansi_default",
        "cursor-blurred": "ansi_default",
        "bar": "ansi_default",
        "ansi-background": "ansi_black",
        "ansi-foreground": "ansi_white",
        "input-cursor-background": "ansi_black",
        "input-cursor-foreground": "ansi_bright_white",
        "input-selection-background": "ansi_bright_blue",
        "input-selection-foreground": "ansi_black",
        "screen-selection-background": "ansi_bright_blue",
        "screen-selection-foreground": "ansi_black",
        "block-cursor-foreground": "ansi_black",
        "block-cursor-background": "ansi_white",
        "input-cursor-text-style": "reverse",
    },
)

THEMES = (DARK, LIGHT, ANSI)


def after(name: str) -> str:
    """Return the theme that follows the named one in the cycle."""
    names = [theme.name for theme in THEMES]
    return names[(names.index(name) + 1) % len(names)] if name in names else names[0]
