"""Bronze: jobs of expert models, on durable work: never lost, never paid for twice."""
