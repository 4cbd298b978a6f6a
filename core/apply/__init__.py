"""Change the system.

Operations are executed under one lock, journaled first, and undone on failure.
"""
