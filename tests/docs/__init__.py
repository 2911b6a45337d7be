"""The documents: a site of them, the commands that they show, and their translations."""
