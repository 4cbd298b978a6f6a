"""Changing the system: operations executed under one lock, journaled first, undone on failure."""
