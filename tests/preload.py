"""What the fork server of `tests.distributed` imports once, so that no rank has to."""

import torch.distributed.pipelining  # noqa: F401

import data.samples  # noqa: F401
import training.run  # noqa: F401
from parallel.quiet import deepspeed, megatron_parallel_state

megatron_parallel_state()
deepspeed("cpu")
