"""The commands that change networks; loaded when one of them runs."""
