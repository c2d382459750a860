"""An exported model in MLflow: logged to the run that trained it, with a signature, and registered if asked to.

MLflow copies the folder; the model is not loaded here. As a pyfunc (`exchange.pyfunc_model`) it takes token ids and
gives logits; its artifacts hold the folder itself. mlflow.transformers would be the nearer flavour: MLflow 3.17 cannot
log a local folder with it beside transformers 5.
"""

import importlib.util
import logging
import os
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from configs.errors import ConfigError
from exchange.export import Exported
from exchange.origin import run_folder
from exchange.plain import PlainWeights
from monitoring.mlflow_store import RUN_ID, connect, failure, find_run, tracking_uri

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

PACKAGES = ("mlflow", "transformers", "torch", "numpy")
"""What the logged model needs."""
UPLOAD_SECONDS = 3600
"""For one file."""


@dataclass(frozen=True)
class Logged:
    """A model in MLflow."""

    tracking_uri: str
    run_id: str
    model_uri: str
    registered: str | None
    """NAME/VERSION."""


@dataclass(frozen=True)
class Destination:
    """The run that a model is to be logged to."""

    uri: str
    run_id: str


def destination(plain: PlainWeights) -> Destination:
    """The MLflow run of a checkpoint's run, looked up before anything is written.

    Raises: ConfigError: transformers is not installed, the run was not tracked, or the store does not answer.
    """
    if importlib.util.find_spec("transformers") is None:
        raise ConfigError("command line: --log-to-mlflow: needs the package transformers: pip install transformers")
    folder, config = run_folder(plain), plain.config
    if folder is None or not (folder / RUN_ID).exists():
        raise ConfigError(
            f"command line: --log-to-mlflow: {folder or plain.folder}: has no {RUN_ID}: it was not tracked"
        )
    root = folder.parents[len(Path(config.run.name).parts) - 1]
    uri = tracking_uri(config.model_copy(update={"run": config.run.model_copy(update={"dir": root})}))
    try:
        run_id = find_run(connect(uri), folder)
    except Exception as error:
        raise ConfigError(f"command line: --log-to-mlflow: {failure(uri, error)}") from error
    if run_id is None:
        raise ConfigError(
            f"command line: --log-to-mlflow: MLflow at {uri}: has no run {(folder / RUN_ID).read_text().strip()}"
        )
    return Destination(uri, run_id)


def require_names(folder: str, register: str | None) -> None:
    """Raises: ConfigError if MLflow takes no logged model, or no registered one, of such a name."""
    # Its own rules have no public name; asking it before anything is written is worth that.
    from mlflow.exceptions import MlflowException
    from mlflow.utils.validation import _validate_logged_model_name, _validate_model_name

    for option, name, validate in (
        ("--out", folder, _validate_logged_model_name),
        ("--register", register, _validate_model_name),
    ):
        try:
            if name is not None:
                validate(name)
        except MlflowException as error:
            reason = " ".join(error.message.split())
            raise ConfigError(f"command line: {option} = {name}: MLflow takes no such name: {reason}") from None


def log_model(done: Exported, where: Destination, register: str | None) -> Logged:
    """Log an exported folder with the metrics of its step; its run stays as it ended.

    Raises: ConfigError if the store fails; the export stays where it is.
    """
    import mlflow
    from mlflow import pyfunc
    from mlflow.models import Model

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    os.environ["MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT"] = str(UPLOAD_SECONDS)  # points get a few seconds, files more
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(where.uri)
    try:
        client = mlflow.MlflowClient(where.uri)
        experiment = client.get_run(where.run_id).info.experiment_id
        model = client.create_logged_model(experiment, name=done.folder.name, source_run_id=where.run_id)
        with warnings.catch_warnings(action="ignore"):  # hints that the signature could be guessed from annotations
            logged = Model.log(
                artifact_path=None,
                name=done.folder.name,
                flavor=pyfunc,
                model_id=model.model_id,
                run_id=where.run_id,
                step=done.step,
                registered_model_name=register,
                python_model=str(Path(__file__).with_name("pyfunc_model.py")),
                artifacts={"model": str(done.folder.resolve())},
                signature=_signature(done.vocab_size),
                pip_requirements=[f"{name}=={version(name)}" for name in PACKAGES],
            )
    except Exception as error:
        what = f"{done.folder} is written; {failure(where.uri, error)}"
        raise ConfigError(f"command line: --log-to-mlflow: {what}") from error
    finally:
        mlflow.set_tracking_uri(before)
    registered = f"{register}/{logged.registered_model_version}" if register else None
    return Logged(where.uri, where.run_id, logged.model_uri, registered)


def _signature(vocab_size: int) -> "ModelSignature":
    """Token ids (B, T) -> logits (B, T, V)."""
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    tokens = TensorSpec(np.dtype("int64"), (-1, -1), name=None)
    logits = TensorSpec(np.dtype("float32"), (-1, -1, vocab_size), name=None)
    return ModelSignature(inputs=Schema([tokens]), outputs=Schema([logits]))
