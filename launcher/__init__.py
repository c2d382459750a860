"""The command line, and the processes it starts. Imports heavy packages only where they are used."""
