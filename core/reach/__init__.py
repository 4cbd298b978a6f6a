"""Answer "why can't A reach B?" from a snapshot."""

from core.reach.answer import Answer, Endpoint, Hop, Question
from core.reach.question import UnknownEndpoint, ask, resolve
from core.reach.why import why

__all__ = ["Answer", "Endpoint", "Hop", "Question", "UnknownEndpoint", "ask", "resolve", "why"]
