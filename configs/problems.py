"""One problem of a configuration, and the line that tells the user about it."""

from dataclasses import dataclass

from configs.describe import shown
from configs.files import COMMAND_LINE, Draft

UNSET = object()


@dataclass(frozen=True)
class Problem:
    """Something wrong with one key. `related` are the other keys the problem depends on."""

    key: str
    message: str
    value: object = UNSET
    related: tuple[str, ...] = ()

    def line(self, draft: Draft | None = None) -> str:
        """`origin: key = value: message`; a default's origin is where the key it disagrees with was set."""
        origin = draft.origin(self.key) if draft else None
        default = ""
        if draft and origin is None:
            elsewhere = [found for key in self.related if (found := draft.origin(key))]
            origin = COMMAND_LINE if COMMAND_LINE in elsewhere else (*elsewhere, draft.path)[0]
            default = " (default)" if self.value is not UNSET else ""
        value = "" if self.value is UNSET else f" = {shown(self.value)}{default}"
        return f"{origin + ': ' if origin else ''}{self.key}{value}: {self.message}"
