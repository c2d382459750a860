"""Triton's attention statistics against the portable ones and the full matrix, in Triton's interpreter."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from monitoring.entropy import portable_rows
from tests.interpreted import Call, compile_for_hopper, interpreter, run_compiled

CASES = {
    "one key": (1, 16, 1, 1.0, None, torch.float32),
    "whole blocks": (128, 32, 2, 1.0, None, torch.float32),
    "ragged, grouped": (150, 24, 1, 3.0, None, torch.float32),
    "collapsed": (97, 16, 4, 300.0, None, torch.float32),
    "collapsed, bf16": (97, 40, 2, 30.0, None, torch.bfloat16),
    "capped": (97, 16, 2, 10.0, 20.0, torch.float32),
    "capped, hardly": (70, 16, 2, 0.1, 20.0, torch.float32),
}
"""Length, head size, groups of four heads, sharpness, cap, dtype."""


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Call]:
    with interpreter() as call:
        yield call


def _same(
    length: int, size: int, groups: int, sharpness: float, cap: float | None, dtype: torch.dtype
) -> tuple[float, float]:
    """The kernel's rows equal the portable ones in fp64; returns the mean entropy and the largest logit."""
    from monitoring.kernels.entropy import attention_rows_of

    generator = torch.Generator().manual_seed(0)
    q_BHTK = (torch.randn(2, 4, length, size, generator=generator) * sharpness).to(dtype)
    k_BGTK = (torch.randn(2, length, groups, size, generator=generator) + 0.5).to(dtype).transpose(1, 2)
    scale = size**-0.5
    ours = attention_rows_of(q_BHTK, k_BGTK, scale, cap)
    entropy, spread, top = portable_rows(q_BHTK.double(), k_BGTK.double(), scale, cap)
    torch.testing.assert_close(ours[0].double(), entropy, rtol=0, atol=1e-4)
    torch.testing.assert_close(ours[1].double(), spread, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(ours[2].double(), top, rtol=1e-5, atol=2e-5)
    return ours[0].mean().item(), ours[2].max().item()


@pytest.mark.parametrize("case", CASES)
def test_every_row_equals_the_portable_one(interpreted: Call, case: str) -> None:
    entropy, largest = interpreted(_same, *CASES[case])
    if case == "collapsed":
        assert entropy < 0.2 and largest > 1000


@pytest.mark.slow
def test_the_kernel_compiles_for_a_gpu(tmp_path: Path) -> None:
    run_compiled("tests.monitoring.test_entropy_kernel", "_compile_all", tmp_path)


def _compile_all() -> None:
    import triton.language as tl

    from monitoring.kernels.entropy import KEYS, QUERIES, attention_rows

    tensors = {name: "*fp32" for name in attention_rows.arg_names if name.endswith(("BHT", "BGTK"))}
    numbers = {"scale": "fp32", "cap": "fp32", "heads": "i32", "groups": "i32", "length": "i32"}
    cases = [("bf16", tl.bfloat16, 128, True, KEYS), ("fp32", tl.float32, 80, False, KEYS)]
    cases.append(("fp32", tl.float32, 256, False, KEYS // 2))
    for kind, operand, size, capped, keys in cases:
        kinds = tensors | numbers | {"q_BHTK": f"*{kind}", "k_BGTK": f"*{kind}"}
        constants = {"K": size, "FEATURES": max(128, size), "QUERIES": QUERIES, "KEYS": keys, "OPERAND": operand}
        compiled = compile_for_hopper(attention_rows, kinds, constants | {"CAPPED": capped})
        assert compiled.asm["cubin"]
        assert compiled.metadata.shared <= 163 * 1024  # an A100's shared memory; larger ones have more
        assert ("wgmma" in compiled.asm["ptx"]) == (kind == "bf16")  # tensor cores where they lose nothing
