"""Works of others that run here in a minute or two, each with the project's own parts (`README.md`)."""
