"""Durable work: what must survive a kill. A row is a promise, a worker keeps it, a fence holds off whoever was replaced."""
