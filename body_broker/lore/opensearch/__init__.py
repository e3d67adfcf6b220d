"""The copy of the lore in an OpenSearch: searched first, kept by durable work, never the truth. Imports opensearchpy where one is used."""

from body_broker.lore.opensearch.ledger import REBUILD, Ledger
from body_broker.lore.opensearch.opening import Copy, open_copy

__all__ = ["REBUILD", "Copy", "Ledger", "open_copy"]
