"""The demo lab: a small, busy container host in namespaces of its own.

It is used for demos, tests and screenshots.
"""

from core.lab.blueprint import LabSettings
from core.lab.lab import Lab, LabError, check_rights

__all__ = ["Lab", "LabError", "LabSettings", "check_rights"]
