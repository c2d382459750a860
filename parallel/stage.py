"""torch's pipeline stage, with the time of its passes told apart from that of waiting for other stages."""

from typing import Any

from torch.distributed import pipelining

from parallel.clock import SILENT, Clock


class Stage(pipelining.PipelineStage):
    """A stage whose chunks are charged to `clock` as `forward` and `backward`, for every schedule.

    The three methods are what torch's schedules call (`test_clock.py` sees their time).
    """

    clock: Clock = SILENT

    def forward_one_chunk(self, *args: Any, **kwargs: Any) -> Any:
        with self.clock.part("forward"):
            return super().forward_one_chunk(*args, **kwargs)

    def backward_one_chunk(self, *args: Any, **kwargs: Any) -> Any:
        with self.clock.part("backward"):
            return super().backward_one_chunk(*args, **kwargs)

    def backward_weight_one_chunk(self, *args: Any, **kwargs: Any) -> Any:
        with self.clock.part("backward"):
            return super().backward_weight_one_chunk(*args, **kwargs)
