"""Which colour, marker and line a recipe has: one each while colours last; then only baseline and leader stand out."""

from comparison.analysis import RecipeResult, StudyResult
from monitoring.style import MARKERS, Theme


class Palette:
    """The look of a study's recipes in one theme."""

    def __init__(self, part: StudyResult, theme: Theme) -> None:
        self.theme = theme
        names = list(part.record.recipes)
        self.crowded = len(names) > len(theme.lines)
        leader = part.leader.recipe if part.recipes else names[0]
        self._prominent = list(dict.fromkeys([names[0], leader])) if self.crowded else names
        self.width = 2.0 if part.single_seed else 1.1
        """Of a line of a single trial."""

    def is_prominent(self, recipe: str) -> bool:
        """Whether the recipe has a colour and a label of its own."""
        return recipe in self._prominent

    def colour(self, recipe: str) -> str:
        if recipe not in self._prominent:
            return self.theme.muted
        return self.theme.lines[self._prominent.index(recipe) % len(self.theme.lines)]

    def marker(self, recipe: str) -> str:
        return MARKERS[self._prominent.index(recipe) % len(MARKERS)] if recipe in self._prominent else "."

    def alpha(self, recipe: str) -> float:
        return 1.0 if recipe in self._prominent else 0.45


def in_order(part: StudyResult) -> list[RecipeResult]:
    """A study's recipes as tables and pictures have them: in the study's order, or by loss where they are many."""
    recipes = list(part.recipes.values())
    if len(recipes) <= len(MARKERS):
        return recipes
    return sorted(recipes, key=lambda recipe: recipe.best_loss.mean)
