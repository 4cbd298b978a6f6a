"""What `vnet-tui show --json` prints: the model with what follows from it joined in (docs/json.md)."""

from core.export.objects import SCHEMA, TOPICS, document_lines

__all__ = ["SCHEMA", "TOPICS", "document_lines"]
