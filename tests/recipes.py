"""The recipes of configs/recipes, as the tests put them over a configuration of their own."""

import json
from pathlib import Path
from typing import Any

from configs.files import read
from configs.flatten import flatten

FOLDER = Path(__file__).parents[1] / "configs" / "recipes"
RECIPES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def recipe(name: str) -> dict[str, dict[str, Any]]:
    """What a recipe changes, by section."""
    return read(FOLDER / f"{name}.yaml").values


def overrides(name: str) -> list[str]:
    """The same as `key.sub=value`."""
    return [f"{key}={json.dumps(value)}" for key, value in flatten(recipe(name))]
