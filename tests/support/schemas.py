"""The one import of `jsonschema`, which has no types."""

import jsonschema  # type: ignore[import-untyped]

__all__ = ["jsonschema"]
