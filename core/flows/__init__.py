"""Interpret conntrack entries: ends and translation, one by one or in columns."""

from core.flows.columns import FlowColumns
from core.flows.describe import (
    PROTOCOLS,
    STATES,
    TRANSLATIONS,
    address_bytes,
    address_text,
    icmp_text,
    protocol_name,
    state_text,
    status_words,
)
from core.flows.interpretation import (
    ConntrackEntry,
    End,
    Flow,
    entry_of,
    flow_of,
    sentence,
    translation_text,
    translators,
)

__all__ = [
    "PROTOCOLS",
    "STATES",
    "TRANSLATIONS",
    "ConntrackEntry",
    "End",
    "Flow",
    "FlowColumns",
    "address_bytes",
    "address_text",
    "entry_of",
    "flow_of",
    "icmp_text",
    "protocol_name",
    "sentence",
    "state_text",
    "status_words",
    "translation_text",
    "translators",
]
