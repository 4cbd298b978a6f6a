"""What `vnet-tui show --json` prints: the model with what follows from it joined in (docs/json.md)."""

from core.export.document import SCHEMA, TOPICS, document

__all__ = ["SCHEMA", "TOPICS", "document"]
