"""The game_state server: reads of the world and changes queued for its engine."""
