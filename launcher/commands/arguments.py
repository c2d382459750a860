"""Arguments that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

from launcher import complete

ConfigFile = Annotated[
    Path,
    typer.Argument(
        help="Configuration file.", metavar="CONFIG.yaml", show_default=False, autocompletion=complete.config_files
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Values that replace the file's.", metavar="[key.sub=value]...")
]
RunFolder = Annotated[
    Path, typer.Argument(help="Folder of a run.", metavar="RUN", show_default=False, autocompletion=complete.runs)
]
