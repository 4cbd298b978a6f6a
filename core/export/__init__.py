"""Export snapshots as JSON for `vnet-tui show --json` (docs/json.md)."""

from core.export.objects import SCHEMA, TOPICS, document_lines

__all__ = ["SCHEMA", "TOPICS", "document_lines"]
