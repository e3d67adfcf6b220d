"""The engine protocol (docs/engine-protocol.md): messages, the relay that is the hub's side, a client that is an engine's, the check."""
