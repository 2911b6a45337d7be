"""The parts of a selection, one module each: facts asked of the source, images wanted of it."""
