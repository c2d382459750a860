"""`python -m launcher` is `steadytrain`."""

from launcher.cli import main

main()
