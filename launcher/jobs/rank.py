"""What each process of a job does: find its place, meet the others, check the nodes, train, leave a record.

submitit starts it (`python -m submitit.core._submit` under srun) and would, at a signal, checkpoint on rank 0 and
requeue by itself; here a signal only sets a flag, the ranks agree on the step to stop after, and
`launcher.jobs.decide` requeues.
"""

import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import NoReturn

from configs.errors import SteadytrainError
from configs.load import load_with_origins
from configs.sites import Preflight
from launcher.jobs.attempt import ATTEMPTS, RankJournal, is_users_mistake, log_banner
from launcher.jobs.decide import note_lost
from launcher.jobs.job import read_job
from launcher.jobs.place import Place
from launcher.jobs.rendezvous import meet
from launcher.jobs.signals import stop_signals
from launcher.outcome import Outcome
from launcher.run_folder import alone, claim
from training.stop import Stop

FINISHED, CRASHED, USER_ERROR = 0, 1, 2
SECONDS_FOR_THE_LAST_ATTEMPT = 60.0
"""How long the processes of a lost node may still hold the run folder."""


@dataclass(frozen=True)
class RankJob:
    """Called in every process of a job; pickled by submitit, so it holds plain values only."""

    job_dir: str
    config: str
    preflight: Preflight
    grace_s: int
    entry: str = "training.run:train"

    def __call__(self) -> str:
        """Train as this rank; returns how it ended if that is for good, leaves the process otherwise."""
        place = Place.here()
        for stream in (sys.stdout, sys.stderr):
            print(log_banner(place.attempt), file=stream, flush=True)
        journal = RankJournal(Path(self.job_dir) / ATTEMPTS / place.attempt, place)
        with stop_signals(self.grace_s, journal.told) as stop:
            try:
                outcome = self._train(place, journal, stop)
            except Exception as error:  # noqa: BLE001 (the boundary of the process: recorded, and the exit code says so)
                journal.failed(error, stop.step)
                _say(place, error)
                _leave(USER_ERROR if is_users_mistake(error) else CRASHED)
            journal.ended(outcome.status, step=stop.step)
        if place.rank == 0:
            print(outcome.line(), flush=True)  # noqa: T201
        if outcome.status == "stopped":
            _leave(FINISHED)  # without the result that would tell submitit's client that the job is done
        return outcome.status

    def _train(self, place: Place, journal: RankJournal, stop: Stop) -> Outcome:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        store = meet(journal.folder, place)
        config = load_with_origins(self.config).resolve(place.world_size)
        from launcher.jobs.preflight import check_nodes

        check_nodes(self.preflight, config, place, journal.folder)
        with ExitStack() as held:
            if place.rank == 0:
                held.enter_context(alone(config, wait_s=SECONDS_FOR_THE_LAST_ATTEMPT))
                note_lost(read_job(Path(self.job_dir).parent), place.attempt)
                claim(config, overwrite=False, again=True)
            summary = resolve_name(self.entry)(config, stop)
        outcome = Outcome.of(summary, config.run_dir)
        if place.rank == 0:
            outcome.write(journal.folder)
        del store  # rank 0's: it served until here
        return outcome


def _say(place: Place, error: Exception) -> None:
    import traceback

    if not isinstance(error, SteadytrainError):
        traceback.print_exception(error)
    print(f"rank {place.rank} on {place.node}: {error}", file=sys.stderr)  # noqa: T201


def _leave(code: int) -> NoReturn:
    """End this process now: collectives that will never finish must not hold it, and submitit writes no result."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
