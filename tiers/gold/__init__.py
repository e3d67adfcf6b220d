"""Gold: real-time intents of a few tokens, which never wait for a model longer than their deadline."""
