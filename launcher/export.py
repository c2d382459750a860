"""`steadytrain export`: the folder, and the model in MLflow."""

import json
from dataclasses import asdict

from configs.errors import ConfigError
from exchange import mlflow_model
from exchange.export import Exported, Wanted, export, require_free
from exchange.plain import open_run
from launcher.passed_over import tell_passed_over, tell_unchecked


def run_export(wanted: Wanted, *, log_to_mlflow: bool, register: str | None, as_json: bool) -> str:
    """Export, log, and say so: a line for each, or JSON.

    Raises: ConfigError, CheckpointError, DataError.
    """
    if not log_to_mlflow:
        done = _export(wanted)
        return json.dumps(asdict(done), default=str) if as_json else _line(wanted, done)
    if wanted.to != "hf":
        raise ConfigError(f"command line: --log-to-mlflow: needs --to hf, not --to {wanted.to}")
    require_free(wanted.out)
    mlflow_model.require_names(wanted.out.name, register)
    where = mlflow_model.destination(open_run(wanted.run, wanted.step))
    done = _export(wanted)
    logged = mlflow_model.log_model(done, where, register)
    if as_json:
        return json.dumps({**asdict(done), "mlflow": asdict(logged)}, default=str)
    registered = "" if logged.registered is None else f", registered as {logged.registered}"
    return f"{_line(wanted, done)}\nMLflow run {logged.run_id}: {logged.model_uri}{registered}"


def _export(wanted: Wanted) -> Exported:
    done = export(wanted)
    tell_passed_over(done.passed_over)
    tell_unchecked(done.unchecked)
    return done


def _line(wanted: Wanted, done: Exported) -> str:
    return (
        f"{done.folder}: {done.architecture or 'plain weights'}, {done.parameters:,} parameters in {done.dtype}, "
        f"{done.bytes:,} bytes, step {done.step} of {wanted.run}"
    )
