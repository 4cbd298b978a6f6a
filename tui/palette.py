"""The command palette's entries in their own order, before anything is typed."""

from __future__ import annotations

from textual.command import DiscoveryHit, Hits
from textual.system_commands import SystemCommandsProvider


class InOrder(SystemCommandsProvider):
    """Lists entries as the app gives them, where Textual sorts them by name."""

    async def discover(self) -> Hits:
        """Every entry."""
        for title, words, run, listed in self.app.get_system_commands(self.screen):
            if listed:
                yield DiscoveryHit(title, run, help=words)
