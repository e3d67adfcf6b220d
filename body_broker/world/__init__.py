"""The world: what is where, what changed, and who may say so. One engine writes; everybody else proposes."""
