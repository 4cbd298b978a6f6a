"""Turning the fast path on and off: the command line, and what the dashboard asks for."""
