"""The typed configuration of one training run: a section per room, a docstring and a bound per field.

Fields that depend on each other (heads and tp, layers and stages, ...) are checked in `configs.checks`.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from configs.section import Section
from configs.stability import StabilityConfig

HUB = "hf:"
"""What `init_from` begins with if it names a Hugging Face checkpoint."""


class RunConfig(Section):
    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*(/[A-Za-z0-9][A-Za-z0-9._+-]*)*$")
    """Name of the run; its folder is `<dir>/<name>`."""
    dir: Path = Path("runs")
    """Folder that holds run folders, relative to the working directory."""


class DataSource(Section):
    path: Path
    """Folder written by `steadytrain prepare`."""
    weight: float = Field(1.0, gt=0)
    """Relative share of samples drawn from this source."""


class DataConfig(Section):
    sources: list[DataSource] = Field(min_length=1)
    """Prepared datasets, blended by weight."""
    prefetch: int = Field(2, ge=0, le=64)
    """Batches that a thread prepares ahead of training; 0: each when its step begins."""


class ReparamConfig(Section):
    kind: Literal["none", "sigma"] = "none"
    """`sigma`: every linear's weight becomes (gamma / sigma(W)) W (Zhai et al. 2023, eq. 2)."""
    qkv: Literal["separate", "qk+v", "qkv"] = "separate"
    """Which of the query, key and value projections share one spectral norm and one gamma."""
    gate_up: Literal["separate", "fused"] = "separate"
    """Whether SwiGLU's gate and up projections share one spectral norm and one gamma."""
    head: bool = True
    """Reparametrise the language-model head too (never the embeddings)."""
    gamma_init: Literal["one", "sigma"] = "one"
    """`one`: gamma = 1, the paper's. `sigma`: gamma = sigma(W), so that W_hat = W at the start."""
    start: Literal["svd", "power"] = "svd"
    """How u, v and sigma are found before the first step: exactly (a second per matrix at width 1,024 on a CPU core,
    six times that per doubling), or by `start_iterations` power iterations (take these above)."""
    start_iterations: int = Field(50, ge=20)
    """Power iterations of a `power` start; from random vectors, 20 reach 98 % of sigma."""


class ResidualConfig(Section):
    kind: Literal["plain", "layerscale", "rezero", "depth", "deepnorm"] = "plain"
    """What a residual branch is multiplied by: nothing, a learned vector (Touvron et al. 2021), a learned scalar that
    starts at 0 (Bachlechner et al. 2021), or 1 / sqrt(layers) (Noci et al. 2022). `deepnorm` multiplies the stream by
    (2 x layers)^(1/4) instead and divides the initial v, output and feed-forward weights by (8 x layers)^(1/4)
    (Wang et al. 2022)."""
    layerscale_init: float | None = Field(None, gt=0)
    """Initial value of LayerScale; default: 0.1 up to 18 layers, 1e-5 up to 24, 1e-6 above."""


class LowRankConfig(Section):
    targets: tuple[Literal["q", "k", "v"], ...] = ()
    """Projections that are products of two factors (MLRA, Chung et al. 2024)."""
    rank: int | None = Field(None, ge=1)
    """Inner width of the factors; default: hidden_size / 2, or per head hidden_size x head_size / (hidden_size +
    head_size) rounded: both keep the number of parameters."""
    per_head: bool = False
    """Every head has both factors to itself; else all heads share the inner width."""


class ModelConfig(Section):
    layers: int = Field(4, ge=1)
    """Decoder layers."""
    hidden_size: int = Field(64, ge=1)
    """Width of the residual stream."""
    heads: int = Field(4, ge=1)
    """Query heads."""
    kv_heads: int | None = Field(None, ge=1)
    """Key/value heads (grouped-query attention); default: `heads`."""
    ffn_size: int | None = Field(None, ge=1)
    """Inner width of the feed-forward layer; default: 4 x hidden_size (GELU) or 8/3 x, rounded up to 64 (SwiGLU)."""
    norm: Literal["layernorm", "rmsnorm", "none"] = "layernorm"
    """Normalisation layer."""
    norm_placement: Literal["pre", "post", "peri", "reordered"] = "pre"
    """`pre`: x + f(N(x)); `post`: N(x + f(x)); `peri`: x + N(f(N(x))) (Kim et al. 2025); `reordered`: x + N(f(x))
    (OLMo 2)."""
    norm_eps: float = Field(1e-5, gt=0)
    """Epsilon of every normalisation layer."""
    positions: Literal["rope", "learned"] = "rope"
    """Rotary embeddings on queries and keys, or a learned embedding added to the tokens'."""
    rope_theta: float = Field(10_000.0, gt=0)
    """Base of the rotary frequencies."""
    activation: Literal["gelu", "swiglu"] = "gelu"
    """Feed-forward activation."""
    bias: bool = False
    """Biases in every linear of the blocks (and in LayerNorm)."""
    residual: ResidualConfig = ResidualConfig()
    """Scaling of the residual branches."""
    embedding_scale: Literal["none", "sqrt_width"] = "none"
    """`sqrt_width`: token embeddings are multiplied by sqrt(hidden_size) (Vaswani et al. 2017)."""
    embedding_norm: bool = False
    """Normalise the embedded tokens, positions included, before the first layer (Le Scao et al. 2022)."""
    attention_softcap: float | None = Field(None, gt=0)
    """Attention logits s become cap x tanh(s / cap) (Gemma 2 takes 50)."""
    logit_softcap: float | None = Field(None, gt=0)
    """The head's logits, the same (Gemma 2 takes 30)."""
    qk_norm: bool = False
    """Normalise queries and keys per head, before the rotary embedding."""
    tie_embeddings: bool = False
    """Use the token embedding as the head's weight (one pipeline stage only)."""
    vocab_multiple: int = Field(64, ge=1)
    """The vocabulary is padded to a multiple of this; padded rows are zero and masked out of the loss."""
    init_std: float = Field(0.02, gt=0)
    """Standard deviation of the truncated-normal initial weights."""
    init: Literal["normal", "xavier"] = "normal"
    """`xavier`: linears of the blocks start with variance 2 / (in + out) instead of init_std^2 (Glorot and Bengio
    2010)."""
    depth_scaled_init: bool = False
    """Divide the initial output projections by sqrt(2 x layers), as GPT-2 does."""
    reparam: ReparamConfig = ReparamConfig()
    """Spectral reparametrisation."""
    low_rank: LowRankConfig = LowRankConfig()
    """Low-rank attention projections."""

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.heads

    @property
    def key_value_heads(self) -> int:
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def low_rank_size(self) -> int:
        """Inner width of low-rank projections, per head where each head has its own factors."""
        if self.low_rank.rank is not None:
            return self.low_rank.rank
        if not self.low_rank.per_head:
            return self.hidden_size // 2
        return max(1, round(self.hidden_size * self.head_size / (self.hidden_size + self.head_size)))

    @property
    def inner_size(self) -> int:
        if self.ffn_size is not None:
            return self.ffn_size
        if self.activation == "gelu":
            return 4 * self.hidden_size
        return -(-8 * self.hidden_size // (3 * 64)) * 64


SINGLE_STAGE = ("gpipe", "1f1b")
"""Schedules with one model chunk on each pipeline rank."""
ZERO_BUBBLE = ("interleaved_zero_bubble", "zbv")
"""Schedules that compute gradients of activations and of weights apart."""


class ParallelConfig(Section):
    tp: int = Field(1, ge=1)
    """Tensor-parallel size."""
    pp: int = Field(1, ge=1)
    """Pipeline-parallel size."""
    dp: int | None = Field(None, ge=1)
    """Data-parallel size; default: world size / (tp x pp)."""
    schedule: Literal["gpipe", "1f1b", "interleaved_1f1b", "interleaved_zero_bubble", "zbv"] = "1f1b"
    """Pipeline schedule; used when pp > 1."""
    stages_per_rank: int | None = Field(None, ge=1)
    """Model chunks on each pipeline rank; default: 1 (gpipe, 1f1b) or 2 (the others)."""
    sequence_parallel: bool = False
    """Split the sequence over tensor-parallel ranks outside the linears (Korthikanti et al. 2022)."""
    zero_stage: Literal[1, 2] = 1
    """DeepSpeed ZeRO: 1 shards optimizer states over data-parallel ranks, 2 gradients too."""

    @property
    def chunks(self) -> int:
        """Model chunks on each pipeline rank."""
        if self.stages_per_rank is not None:
            return self.stages_per_rank
        return 1 if self.pp == 1 or self.schedule in SINGLE_STAGE else 2


class TrainingConfig(Section):
    steps: int = Field(300, ge=1)
    """Optimizer steps."""
    global_batch_size: int = Field(16, ge=1)
    """Sequences per optimizer step, over all ranks."""
    micro_batch_size: int | None = Field(None, ge=1)
    """Sequences per forward pass of one rank; default: global_batch_size / (dp x pipeline chunks in flight)."""
    sequence_length: int = Field(64, ge=1)
    """Tokens per sequence."""
    seed: int = Field(0, ge=0)
    """Seed of initial weights and data order."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Compute dtype; weights, gradients and optimizer states are always fp32."""
    recompute: Literal["none", "selective", "full"] = "none"
    """`full`: keep only each layer's input and recompute the layer in the backward pass. `selective`: keep what matrix
    products, attention and collectives gave, and recompute the cheap rest."""
    compile: bool = False
    """Compile each decoder layer by itself (torch.compile); measured steps run it uncompiled."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Label smoothing of the training loss."""
    z_loss: float = Field(0.0, ge=0)
    """Weight of mean(log^2 Z) in the training loss, Z the softmax's denominator (PaLM takes 1e-4); 0: off. It is in
    the logged training loss and its gradients, never in the validation loss."""
    eval_interval: int = Field(100, ge=0)
    """Steps between evaluations on the validation split; 0: only after the last step."""
    eval_samples: int = Field(64, ge=1)
    """Validation sequences per evaluation, rounded up to whole global batches."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; `auto` takes CUDA when the machine has a device for each process."""


class OptimizerConfig(Section):
    name: Literal["adamw", "stable_adamw", "muon"] = "adamw"
    """`stable_adamw`: AdamW whose learning rate is divided, tensor by tensor, by max(1, RMS(g / sqrt(v))) (Wortsman
    et al. 2023). `muon`: orthogonalised momentum for the matrices of the blocks (Jordan et al. 2024; Liu et al. 2025),
    AdamW for the rest."""
    lr: float = Field(1e-3, gt=0)
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates."""
    eps: float = Field(1e-8, gt=0)
    """AdamW's epsilon."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay of matrices; gamma, norms and biases have none."""
    clip: float = Field(1.0, ge=0)
    """Largest global gradient norm; 0: no clipping."""
    muon_momentum: float = Field(0.95, ge=0, lt=1)
    """Muon's (Nesterov) momentum."""
    sam_rho: float = Field(0.0, ge=0)
    """Radius of sharpness-aware minimisation (Foret et al. 2021), which doubles the cost of a step; 0: off."""
    qk_clip: float = Field(0.0, ge=0)
    """Largest attention logit that QK-Clip lets a head keep after an update (Kimi K2 takes 100); 0: off."""


class ScheduleConfig(Section):
    kind: Literal["constant", "cosine", "wsd"] = "constant"
    """Learning rate after the warm-up: constant, cosine decay, or warm-up-stable-decay."""
    warmup_steps: int = Field(0, ge=0)
    """Steps of linear warm-up from 0."""
    decay_steps: int = Field(0, ge=0)
    """Steps of linear decay at the end (`wsd` only)."""
    min_ratio: float = Field(0.1, ge=0, le=1)
    """Final learning rate as a share of the peak (`cosine` and `wsd`)."""


class MonitoringConfig(Section):
    interval: int = Field(10, ge=0)
    """Steps between measurements of attention entropy, logits, spectra, activations and gradients; 0: never."""
    record_steps: int = Field(64, ge=2)
    """Steps before an alarm that its forensic record holds."""
    zoom_steps: int = Field(16, ge=0)
    """Steps after an alarm that are all measured; the record then gets them too."""
    records: int = Field(20, ge=0)
    """Most forensic records of one run; later alarms are events only."""
    time_split: bool = True
    """Tell what the steps' time went to (`time/forward`, ..., a mean) in the lines of measured and evaluated steps; on
    the logging rank."""
    pictures: bool = True
    """Draw the run (loss, entropy, logits, tokens, spectra) when it has ended, a second or two."""


class ProfileConfig(Section):
    enabled: bool = False
    """Trace a few steps with torch's profiler; `steadytrain train --profile` sets it."""
    first: int | None = Field(None, ge=1)
    """First step that is traced; default: the tenth after the start, or an earlier one of a short run."""
    steps: int = Field(3, ge=1, le=100)
    """Steps that are traced; a trace takes some megabytes a step."""


EventKind = Literal[
    "alarm", "skip", "clip", "lower_lr", "rollback", "spike_record", "diverged", "failed", "stop", "resume", "restart",
    "checkpoint", "checkpoint_failed", "init_from", "pictures_failed", "metrics_damaged",
    "tracking_error", "tracking_restored", "alert_failed",
]  # fmt: skip
"""What a run writes to events.jsonl while it trains."""


class AlertsConfig(Section):
    command: str | None = None
    """Shell command run for each event of `on`, with the event as JSON on its standard input."""
    webhook: str | None = None
    """Address that each event of `on` is posted to as JSON."""
    on: tuple[EventKind, ...] = ("alarm", "rollback", "diverged", "failed")
    """Kinds of events (events.jsonl) worth an alert."""


class CheckpointConfig(Section):
    interval: int = Field(0, ge=0)
    """Steps between checkpoints; the last step is saved too. 0: no checkpoints."""
    keep: int = Field(3, ge=1)
    """Newest checkpoints kept."""
    keep_every: int = Field(0, ge=0)
    """Also keep checkpoints whose step is a multiple of this; 0: none besides the newest and the best."""
    asynchronous: bool = True
    """Write beside training: a step waits only for the copy of the state, not for the disk."""


class TrackingConfig(Section):
    kind: Literal["mlflow", "none"] = "mlflow"
    """Where metrics go besides the run folder."""
    uri: str | None = None
    """MLflow tracking URI; default: MLFLOW_TRACKING_URI, or SQLite in the runs folder."""
    experiment: str = "steadytrain"
    """MLflow experiment."""
    parent_run_id: str | None = None
    """MLflow run this one is a child of; a study sets it for its trials."""
    system_metrics: bool = True
    """Send the load of processors, memory, disk, network and GPUs of the logging rank's machine too."""


class Config(Section):
    """One training run, resolved."""

    run: RunConfig = RunConfig()
    data: DataConfig
    model: ModelConfig = ModelConfig()
    parallel: ParallelConfig = ParallelConfig()
    training: TrainingConfig = TrainingConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    monitoring: MonitoringConfig = MonitoringConfig()
    stability: StabilityConfig = StabilityConfig()
    alerts: AlertsConfig = AlertsConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    profile: ProfileConfig = ProfileConfig()
    tracking: TrackingConfig = TrackingConfig()
    init_from: Path | None = None
    """Start from the weights of another run: its folder (the newest good checkpoint), or one of its checkpoints. Or
    from a Hugging Face checkpoint on disk, as `hf:DIR`; `steadytrain import DIR` writes its model section."""

    @property
    def hub_folder(self) -> Path | None:
        """DIR, if `init_from` is hf:DIR."""
        named = "" if self.init_from is None else str(self.init_from)
        return Path(named.removeprefix(HUB)) if named.startswith(HUB) else None

    @property
    def run_dir(self) -> Path:
        return self.run.dir / self.run.name
