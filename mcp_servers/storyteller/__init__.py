"""The storyteller server: lore, facts, plots and consistency with canon."""
