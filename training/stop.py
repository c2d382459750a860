"""The request to stop early: made by a signal in any rank, agreed on by all ranks where they reduce the loss anyway.

The loop reads `requested` once a step and never in between, so that all ranks leave after the same step.
"""

import time


class Stop:
    """Whether this process was asked to stop, and by when it must have ended. Safe to call from any thread."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.step = 0
        """The update under way, from 1: what a failure is told with; 0 before the first."""
        self._deadline: float | None = None

    @property
    def requested(self) -> bool:
        return self.reason is not None

    def request(self, reason: str, grace_s: float | None = None) -> None:
        """Ask to stop after the step under way; after `grace_s` seconds a save still under way is given up.

        A second request may only bring the end nearer.
        """
        if grace_s is not None:
            deadline = time.monotonic() + grace_s
            self._deadline = deadline if self._deadline is None else min(deadline, self._deadline)
        if self.reason is None:
            self.reason = reason

    def seconds_left(self) -> float | None:
        """Until the deadline, at least 0; None if there is none."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
