"""Results for people: progress while a command works, and its summary as text."""
