"""What a person asks for, as one call each. The rooms below do the work."""
