"""Lines that protect data, each broken in turn: some test must notice. `./run mutants`."""
