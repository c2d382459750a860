"""Configuration: typed sections, loading, checks, and the errors every room raises. Imports nothing of ours."""
