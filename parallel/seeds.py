"""One deterministic seed per role: independent of rank and layout, so every layout starts from the same weights."""

import hashlib

import torch
from torch import Tensor


def seed_for(seed: int, *role: str | int) -> int:
    """A 63-bit seed for a role such as ("init", "layers.3.attention.qkv.q"), stable across machines and versions.

    Nothing random happens inside a step so far; what will (dropout, sampled monitors) adds the step to its role.
    """
    text = "/".join(str(part) for part in (seed, *role))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def truncated_normal(shape: tuple[int, ...], std: float, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor of N(0, std²) cut at ±2 (in units of 1, as torch and GPT-style code do), made on the CPU from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.empty(shape, dtype=torch.float32)
    if weight.untyped_storage().device.type == "meta":
        return weight.to(dtype)  # a dry run: there is no memory to draw into
    torch.nn.init.trunc_normal_(weight, std=std, generator=generator)
    return weight.to(dtype)
