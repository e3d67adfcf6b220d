"""Lore: documents, the passages they are cut into, and finding them again. What rag, storyteller and tiers share."""

from body_broker.lore.documents import Effect
from body_broker.lore.intake import make_draft, read_paths
from body_broker.lore.model import Passage
from body_broker.lore.retrieval import Lore

__all__ = ["Effect", "Lore", "Passage", "make_draft", "read_paths"]
