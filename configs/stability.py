"""The section `stability`: what counts as trouble in training, and what is done about it.

Defaults are those of the sources named in `stability.detectors` and `stability.guard`.
"""

from typing import Literal

from pydantic import Field

from configs.section import Section


class LossSpikeConfig(Section):
    window: int = Field(1000, ge=2)
    """Steps before, whose mean and standard deviation a loss or gradient norm is compared with."""
    minimum: int = Field(128, ge=2)
    """Steps that must be there before it is judged."""
    sigmas: float = Field(7.0, gt=0)
    """Standard deviations above the mean that make a spike."""


class DivergenceConfig(Section):
    steps: int = Field(50, ge=1)
    """Successive steps above the loss of the first one that make a run diverged."""


class EntropyConfig(Section):
    floor: float = Field(0.1, gt=0, lt=1)
    """Entropy, as a share of the causal maximum, below which a head has collapsed."""
    drop: float = Field(0.2, gt=0, lt=1)
    """Fall below the head's rolling median, as a share of the causal maximum, that counts as collapse."""
    window: int = Field(201, ge=3)
    """Measurements the rolling median is taken over; it says nothing before there are half of them."""
    heads: float = Field(0.25, gt=0, le=1)
    """Share of collapsed heads above which it is an alarm."""
    logit: float = Field(50.0, gt=0)
    """A fall of entropy, and one that announces collapse, count where the largest logit is over this, Gemma 2's cap."""
    horizon: int = Field(200, ge=1)
    """Early warning: the mean entropy of a layer, falling as it does, would reach the floor within so many steps."""


class LogitConfig(Section):
    warning: float = Field(1e3, gt=0)
    """Largest attention logit that is an alarm."""
    fatal: float = Field(1e4, gt=0)
    """Largest attention logit that is fatal."""


class RankCollapseConfig(Section):
    cosine: float = Field(0.99, gt=0, le=1)
    """Mean cosine between the tokens of a sequence, at a layer's output, above which they have become one."""
    steps: int = Field(100, ge=0)
    """For so many steps: early in training, while a model learns token frequencies, they are alike for a while."""


class GradientConfig(Section):
    factor: float = Field(100.0, gt=1)
    """A matrix's share of the gradient, over its own rolling median, that is an alarm."""
    frozen: float = Field(1e-4, gt=0, lt=1)
    """A head's query gradient, over the median of its layer's heads, below which it does not learn."""
    minimum: int = Field(5, ge=1, le=51)
    """Measurements that must be there before a matrix is judged; its median is over the last 51."""


class DetectorsConfig(Section):
    spike: LossSpikeConfig = LossSpikeConfig()
    """Spikes of loss and gradient norm (OLMo 2's spike score)."""
    divergence: DivergenceConfig = DivergenceConfig()
    """Loss above that of the untrained model, or not finite."""
    entropy: EntropyConfig = EntropyConfig()
    """Attention entropy collapse, and its early warning."""
    logit: LogitConfig = LogitConfig()
    """Attention logit explosion."""
    rank: RankCollapseConfig = RankCollapseConfig()
    """Rank collapse: all tokens of a sequence alike."""
    gradient: GradientConfig = GradientConfig()
    """One matrix whose gradient leaves its usual share, one head that gets none, one rank that differs."""
    cooldown: int = Field(100, ge=0)
    """Steps for which a detector that has fired stays silent about the same place."""


class SkipConfig(Section):
    enabled: bool = False
    """Leave out the update of a step whose loss or gradient norm is an outlier, or not finite."""
    window: int = Field(128, ge=2)
    """Steps before that it is compared with (OLMo-core)."""
    minimum: int = Field(64, ge=2)
    """Steps that must be there before it is judged."""
    sigmas: float = Field(6.0, gt=0)
    """Standard deviations above their mean that make an outlier."""
    limit: int = Field(20, ge=1)
    """Successive updates left out; one more stops training."""


class ZClipConfig(Section):
    enabled: bool = False
    """Clip the gradient norm where it is an outlier of its moving average, besides `optimizer.clip`."""
    decay: float = Field(0.97, gt=0, lt=1)
    """Decay of the moving averages of norm and variance."""
    threshold: float = Field(2.5, gt=0)
    """z-score above which the norm is clipped to mean + threshold² / z standard deviations."""
    warmup: int = Field(25, ge=2)
    """Steps that only fill the averages."""


Action = Literal["warn", "lower_lr", "rollback", "stop"]


class PolicyConfig(Section):
    loss_spike: Action = "warn"
    """What to do when the loss spikes."""
    grad_spike: Action = "warn"
    """What to do when the gradient norm spikes."""
    divergence: Action = "warn"
    """What to do when the loss stays above that of the untrained model."""
    non_finite: Literal["rollback", "stop"] = "stop"
    """What to do when loss or gradient norm is not finite and the update was not skipped."""
    entropy_collapse: Action = "warn"
    """What to do when attention has collapsed."""
    early_warning: Action = "warn"
    """What to do when attention is on its way to collapse."""
    logit_explosion: Action = "warn"
    """What to do when an attention logit is fatal."""
    rank_collapse: Action = "warn"
    """What to do when the tokens of a sequence have become one."""
    gradient: Action = "warn"
    """What to do when a matrix, a head or a rank has an odd gradient."""
    lr_factor: float = Field(0.5, gt=0, lt=1)
    """`lower_lr`: the learning rate is multiplied by this ..."""
    lr_steps: int = Field(100, ge=1)
    """... for so many steps."""
    lr_limit: int = Field(3, ge=1)
    """`lower_lr`: times in one run; after that it only warns."""
    rollback_before: int = Field(10, ge=0)
    """`rollback`: batches before the spike that are skipped with it ..."""
    rollback_after: int = Field(50, ge=0)
    """... and after it (PaLM skipped 200 to 500 in all). Training goes on from the newest checkpoint before them."""
    rollback_limit: int = Field(3, ge=1)
    """`rollback`: times in one run; after that it stops."""


class StabilityConfig(Section):
    detectors: DetectorsConfig = DetectorsConfig()
    """What counts as trouble."""
    skip: SkipConfig = SkipConfig()
    """Leaving out updates."""
    zclip: ZClipConfig = ZClipConfig()
    """Clipping by z-score."""
    policy: PolicyConfig = PolicyConfig()
    """What is done about it."""
