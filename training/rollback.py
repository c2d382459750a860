"""Going back to a checkpoint from before a spike and skipping the batches around it, for all ranks together.

The order is such that a kill at any point leaves a run that goes on: `rollbacks.json` says what is meant before any
checkpoint is deleted, and that it is complete once the journal has been told; the next start completes what it says.
"""

from configs.schema import Config
from parallel.topology import Topology
from stability.policy import Decision
from stability.rewind import Rewinds, Rollback
from training.checkpoint.saver import Checkpoints, Resumed
from training.reductions import from_logging_rank


def begin(config: Config, topology: Topology, checkpoints: Checkpoints) -> tuple[Rewinds, Resumed | None]:
    """Where a run goes on: the batches it skips, and its newest good checkpoint, now loaded. Collective.

    If the last rollback is unfinished, the journal is yet to be told of it, and then `complete` to be called.

    Raises: CheckpointError as `Checkpoints.resume`; DataError for a damaged `rollbacks.json`.
    """
    rewinds = from_logging_rank(topology, lambda: Rewinds.read(config.run_dir))
    if rewinds.unfinished is not None:
        resumed: Resumed | None = checkpoints.roll_back(rewinds.unfinished.to)
    else:
        resumed = checkpoints.resume()
    known = rewinds.known_to(resumed.step if resumed else 0)
    if len(known) < len(rewinds):  # the run comes by without the others, and must not find them behind it later
        known = _written(known, config, topology)
    return known, resumed


def roll_back(
    decision: Decision, step: int, rewinds: Rewinds, config: Config, topology: Topology, checkpoints: Checkpoints
) -> tuple[Rewinds, Resumed | None]:
    """Load the newest good checkpoint from before the batches to be skipped. Collective.

    `step`, from 0, is the one with the trouble. None where there is no such checkpoint: nothing is changed then. Else
    the journal is yet to be told, and then `complete` to be called.
    """
    rules = config.stability.policy
    skip_from = max(0, step - rules.rollback_before)
    to = checkpoints.reach_back(skip_from)
    if to is None:
        return rewinds, None
    skipped = step + rules.rollback_after + 1 - skip_from
    rewinds = _written(rewinds.plus(Rollback(to, step, skip_from, skipped, decision.reason)), config, topology)
    return rewinds, checkpoints.roll_back(to)


def complete(rewinds: Rewinds, config: Config, topology: Topology) -> Rewinds:
    """Write down that the last rollback is done, and the journal told of it. Collective."""
    return _written(rewinds.completed(), config, topology)


def _written(rewinds: Rewinds, config: Config, topology: Topology) -> Rewinds:
    from_logging_rank(topology, lambda: rewinds.write(config.run_dir))
    return rewinds
