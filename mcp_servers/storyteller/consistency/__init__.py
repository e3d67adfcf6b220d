"""Whether a text agrees with canon, by rules: sentences, the names in them, what they claim, and what contradicts what is known."""
