"""The silver tier: dialogue, player support and look-ups, with the hub's tools, down to an earlier answer and a fixed text."""
