"""Recordings: the host over time in one bounded file; docs/recording.md has the format."""

from core.recording.frames import Moment
from core.recording.reader import Recording
from core.recording.recorder import Limits, Progress, Recorder

__all__ = ["Limits", "Moment", "Progress", "Recorder", "Recording"]
