"""The configuration of nodes and of the registry's own services, in every mode and between two."""
