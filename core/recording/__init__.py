"""Record the host's state over time to a file of limited size (docs/recording.md)."""

from core.recording.frames import Moment, Recording
from core.recording.recorder import Limits, Progress, Recorder

__all__ = ["Limits", "Moment", "Progress", "Recorder", "Recording"]
