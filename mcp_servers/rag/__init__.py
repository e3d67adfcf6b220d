"""The rag server: lore search and configuration look-ups for agents."""
