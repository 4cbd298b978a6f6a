"""The command line and the Textual dashboard."""

__version__ = "0.1.0"
