"""What may be called by whom: Cedar policies as files, the catalogue that classifies operations, the engine that decides."""
