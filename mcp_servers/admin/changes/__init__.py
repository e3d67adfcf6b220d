"""The kinds of change that approve_change makes: each foreseen, done under a key, and verified."""
