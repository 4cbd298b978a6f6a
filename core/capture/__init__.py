"""Capture packets of links in any namespace, as lines and as pcapng files."""


class CaptureError(Exception):
    """A capture can't be made or continued; the text is for the user."""
