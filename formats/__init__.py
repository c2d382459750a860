"""How other systems name, lay out and tokenise the same models. Knows configurations and files, no ranks."""
