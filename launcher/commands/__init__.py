"""The subcommands of `steadytrain`, by subject. Nothing heavy is imported before a command needs it."""
