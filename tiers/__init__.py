"""Inference tiers, MCP clients of the hub: gold, silver, bronze, cloud. Empty until they are built."""
