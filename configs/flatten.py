"""Nested sections by dotted key."""

from collections.abc import Iterator, Mapping
from typing import Any


def flatten(sections: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested sections as (dotted key, value) pairs."""
    for key, value in sections.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
