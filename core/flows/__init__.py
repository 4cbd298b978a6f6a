"""What conntrack entries mean: who talks to whom through which translation, entry by entry or as columns."""

from core.flows.columns import FlowColumns
from core.flows.meaning import End, Entry, Flow, entry_of, flow_of, sentence
from core.flows.rules import translators
from core.flows.words import (
    PROTOCOLS,
    STATES,
    TRANSLATIONS,
    address_bytes,
    address_text,
    end_text,
    icmp_text,
    protocol_name,
    state_text,
    status_words,
)

__all__ = [
    "PROTOCOLS",
    "STATES",
    "TRANSLATIONS",
    "End",
    "Entry",
    "Flow",
    "FlowColumns",
    "address_bytes",
    "address_text",
    "end_text",
    "entry_of",
    "flow_of",
    "icmp_text",
    "protocol_name",
    "sentence",
    "state_text",
    "status_words",
    "translators",
]
