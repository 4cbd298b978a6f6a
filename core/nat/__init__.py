"""Turn firewall rules into NAT entries, and find forwarded packets that they drop."""

from core.nat.entries import nat_entries

__all__ = ["nat_entries"]
