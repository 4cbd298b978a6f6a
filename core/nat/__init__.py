"""Address translation and forward filters, understood: from firewall rules to entries with names."""

from core.nat.entries import nat_entries

__all__ = ["nat_entries"]
