"""One measurement of the model's inside: what a measured step adds to the record."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Measurement:
    """What one step showed; `docs/signals.md` defines each signal.

    Shapes: layers L, query heads A, matrices M, tensor-parallel ranks P.

    Entropies are in nats, means over the rows of every sequence of the step; `maximum` is the most they can be.
    Gradients are of the global batch's mean loss, before clipping; weights and spectra are those the step left.
    `gamma_M` is NaN where a matrix has none.
    """

    maximum: float
    matrices: list[str]
    entropy_LA: np.ndarray
    entropy_bound_LA: np.ndarray
    max_logit_LA: np.ndarray
    head_grad_LA: np.ndarray
    sigma_M: np.ndarray
    gamma_M: np.ndarray
    weight_rms_M: np.ndarray
    grad_norm_M: np.ndarray
    update_ratio_M: np.ndarray
    shard_rms_MP: np.ndarray
    qk_grad_ratio_L: np.ndarray
    token_cosine_L: np.ndarray
    relative_residual_L: np.ndarray
    activation_rms_L: np.ndarray
    activation_grad_rms_L: np.ndarray
    tev: float
    log_z: float
    log_z_max: float

    @property
    def effective_norm_M(self) -> np.ndarray:
        """Spectral norm of the weight that the layer multiplies by: |gamma|, or sigma(W) of a plain matrix."""
        return np.where(np.isnan(self.gamma_M), self.sigma_M, np.abs(self.gamma_M))

    def aggregates(self) -> dict[str, float]:
        """The numbers of a metrics line."""
        values = {
            "entropy_mean": float(self.entropy_LA.mean()),
            "entropy_min": float(self.entropy_LA.min()),
            "entropy_ratio": float(self.entropy_LA.mean() / self.maximum),
            "max_logit": float(self.max_logit_LA.max()),
            "sigma_max": float(self.sigma_M.max()),
        }
        if not np.isnan(self.gamma_M).all():
            values["gamma_max"] = float(np.nanmax(np.abs(self.gamma_M)))
        return values | {
            "grad_norm_max": float(self.grad_norm_M.max()),
            "update_ratio_max": float(self.update_ratio_M.max()),
            "token_cosine_max": float(self.token_cosine_L.max()),
            "relative_residual_min": float(self.relative_residual_L.min()),
            "activation_rms_max": float(self.activation_rms_L.max()),
            "tev": self.tev,
            "log_z": self.log_z,
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """What is kept of the step, in fp32 and by the names of `docs/signals.md`."""
        numbers = {
            "entropy": self.entropy_LA,
            "entropy_ratio": self.entropy_LA / self.maximum,
            "entropy_bound": self.entropy_bound_LA,
            "max_logit": self.max_logit_LA,
            "head_grad": self.head_grad_LA,
            "sigma": self.sigma_M,
            "gamma": self.gamma_M,
            "effective_norm": self.effective_norm_M,
            "weight_rms": self.weight_rms_M,
            "grad_norm": self.grad_norm_M,
            "update_ratio": self.update_ratio_M,
            "shard_rms": self.shard_rms_MP,
            "qk_grad_ratio": self.qk_grad_ratio_L,
            "token_cosine": self.token_cosine_L,
            "relative_residual": self.relative_residual_L,
            "activation_rms": self.activation_rms_L,
            "activation_grad_rms": self.activation_grad_rms_L,
            "tev": self.tev,
            "log_z": self.log_z,
            "log_z_max": self.log_z_max,
        }
        with np.errstate(over="ignore"):  # what fp32 cannot hold becomes inf
            arrays = {name: np.asarray(value, dtype=np.float32) for name, value in numbers.items()}
        return {"matrix": np.array(self.matrices)} | arrays
