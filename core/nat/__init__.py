"""Turn firewall rules into NAT entries, and decide what they drop of forwarded packets."""

from core.nat.entries import nat_entries

__all__ = ["nat_entries"]
