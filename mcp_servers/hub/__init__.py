"""The hub: composes the servers behind one gate and serves them over HTTP and stdio; nothing else reads the environment."""
