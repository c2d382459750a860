"""Start the ranks of a run on this machine with torch's elastic agent, and say in one line what failed."""

import logging
import os
import signal
import sys
import uuid
from pathlib import Path

from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from configs.errors import LaunchError, SteadytrainError
from launcher.failure import read_failures, traceback_path
from launcher.outcome import OUTCOME, Outcome

SECONDS_TO_END = 5
ENDED_BY_US = (-signal.SIGTERM, -signal.SIGABRT)
"""How ranks die of another rank's failure: we end them, or gloo aborts on a lost connection."""


class RankLogs(LogsSpecs):
    """Rank 0 keeps the terminal; the others write to `rank-N.out` and `rank-N.err` in the run's log folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.folder = folder

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """Paths by local rank; an empty path is the terminal. torch's own error files are not used."""
        paths = {kind: {rank: str(output_path(self.folder, rank, kind)) for rank in envs} for kind in ("out", "err")}
        for by_rank in paths.values():
            by_rank[0] = ""
        return LogsDest(stdouts=paths["out"], stderrs=paths["err"], error_files=dict.fromkeys(envs, os.devnull))

    @property
    def root_log_dir(self) -> str:
        return str(self.folder)


class AgentLog(logging.FileHandler):
    """A full disk is told once, by the rank that needs the space, and not for every message of the agent."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


def launch(config_path: Path, world_size: int, logs: Path, entry: str) -> Outcome:
    """Run `entry` in `world_size` processes with the configuration at `config_path`; wait for all of them.

    When one fails, the others are ended. Raises SteadytrainError with the message of the user's mistake that a rank
    found, LaunchError naming the rank that failed first, KeyboardInterrupt on Ctrl-C, SystemExit on SIGTERM; no
    process is left in either case.
    """
    logs.mkdir(parents=True, exist_ok=True)
    _clear(logs)
    _log_agent_to(logs / "launcher.log")
    command = ("-m", "launcher.worker", str(config_path.resolve()), str(logs.resolve()), entry)
    print(f"starting {world_size} processes", flush=True)  # noqa: T201 (some seconds of silence follow)
    try:
        elastic_launch(_launch_config(world_size, logs), sys.executable)(*command)
    except ChildFailedError as error:
        raise _explain(error.failures, logs, world_size) from None
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        print(f"ended by {error.sigval.name}: all {world_size} ranks were ended", file=sys.stderr)  # noqa: T201
        raise SystemExit(128 + error.sigval) from None
    return Outcome.read(logs)


def output_path(logs: Path, rank: int, kind: str) -> Path:
    """Where a rank other than 0 writes what it prints; `kind` is `out` or `err`."""
    return logs / f"rank-{rank}.{kind}"


def _launch_config(world_size: int, logs: Path) -> LaunchConfig:
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=world_size,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",  # a free port
        local_addr="127.0.0.1",
        max_restarts=0,
        logs_specs=RankLogs(logs),
        shutdown_timeout=SECONDS_TO_END,
    )


def _explain(failures: dict[int, ProcessFailure], logs: Path, world_size: int) -> SteadytrainError:
    """The one line for the rank that failed first: killed from outside, or the earliest exception."""
    records = read_failures(logs, world_size)
    recorded = {record.rank for record in records}
    silent = {rank: failure for rank, failure in failures.items() if rank not in recorded}
    seen_first = min(failure.timestamp for failure in failures.values())
    killed = [
        rank
        for rank, failure in silent.items()
        # Later ones ignored our SIGTERM until we killed them.
        if failure.exitcode not in ENDED_BY_US and failure.timestamp - seen_first < SECONDS_TO_END
    ]
    if killed:
        rank = killed[0]
        return LaunchError(f"rank {rank} {_death(silent[rank].exitcode)}; all ranks were ended; {_output(logs, rank)}")
    if records and records[0].is_user_error:
        return SteadytrainError(records[0].message)
    if records:
        first = records[0]
        trace = traceback_path(logs, first.rank)
        return LaunchError(f"rank {first.rank} failed: {first.message}; all ranks were ended; traceback in {trace}")
    rank = min(silent)
    return LaunchError(f"rank {rank} {_death(silent[rank].exitcode)}; all ranks were ended; {_output(logs, rank)}")


def _death(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exited with code {exit_code}"
    name = signal.Signals(-exit_code).name
    hint = " (out of memory?)" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"


def _output(logs: Path, rank: int) -> str:
    return "its output is above" if rank == 0 else f"its output is in {output_path(logs, rank, 'err')}"


def _clear(logs: Path) -> None:
    """Forget the last launch."""
    for path in [*logs.glob("rank-*"), logs / OUTCOME]:
        path.unlink(missing_ok=True)


def _log_agent_to(path: Path) -> None:
    """The agent's own messages go to a file: what the user needs is in our one line."""
    logger = logging.getLogger("torch.distributed")
    logger.propagate = False
    logger.handlers = [AgentLog(path, mode="w")]
