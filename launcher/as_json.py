"""JSON of the commands that scripts read: numbers that are not finite are null, which every parser takes."""

import json
import math
from typing import Any


def as_json(value: Any) -> str:
    """Dictionaries, lists, numbers and text, two columns to a level."""
    return json.dumps(_finite(value), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
