"""Other people's MCP servers behind the gate (ADR 25): joined by a file, served as they were pinned, never trusted."""
