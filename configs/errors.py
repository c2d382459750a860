"""The errors a user can cause. The command line prints their message on one line and exits 2."""


class SteadytrainError(Exception):
    """Base of every error whose message is meant for the user, without a traceback."""


class ConfigError(SteadytrainError):
    """A configuration value that cannot be used: names the dotted key, the value and what is allowed."""


class DataError(SteadytrainError):
    """A corpus, tokenizer or prepared dataset that is missing, damaged or of the wrong kind."""


class CheckpointError(SteadytrainError):
    """A checkpoint that is damaged, incomplete, or of another model or run."""


class LaunchError(SteadytrainError):
    """Processes could not be started, or one of them failed."""
