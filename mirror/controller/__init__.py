"""The controller: a cluster led to the mode that is wanted, step by step."""
