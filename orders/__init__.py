"""The vocabulary of the fleet: plain Python, imports nothing of ours and no framework."""
