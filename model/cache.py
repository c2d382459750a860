"""Keys and values of tokens that went through the decoder, so that a further one costs a pass of one token.

Shapes: B sequences, G key/value heads, T new tokens, S all tokens so far, C most tokens of a sequence, K head size.
"""

import torch
from torch import Tensor


class LayerCache:
    """Of one layer: keys after norms and rotary embedding, and values, in the order of their tokens."""

    def __init__(self, capacity: int) -> None:
        """`capacity`: C. Memory is taken when the first tokens come."""
        self.length = 0
        self._capacity = capacity
        self._both_2BGCK: Tensor | None = None

    def append(self, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Those of all tokens so far, (B, G, S, K) each, the new ones last: many at first, then one at a time."""
        new = k_BGTK.shape[2]
        assert self.length == 0 or new == 1, "attention has no mask for several tokens after others"
        assert self.length + new <= self._capacity, f"a cache of {self._capacity} tokens is full"
        if self._both_2BGCK is None:
            batch, groups, _, size = k_BGTK.shape
            self._both_2BGCK = k_BGTK.new_empty(2, batch, groups, self._capacity, size)
        last = self.length + new
        self._both_2BGCK[0, :, :, self.length : last] = k_BGTK
        self._both_2BGCK[1, :, :, self.length : last] = v_BGTK
        self.length = last
        k_BGSK, v_BGSK = self._both_2BGCK[:, :, :, :last]
        return k_BGSK, v_BGSK

    def repeat(self, copies: int) -> "LayerCache":
        """A cache of so many copies of each sequence."""
        assert self._both_2BGCK is not None
        repeated = LayerCache(self._capacity)
        repeated.length = self.length
        repeated._both_2BGCK = torch.repeat_interleave(self._both_2BGCK, copies, dim=1)
        return repeated


class KeyValueCache:
    """Of all layers of a decoder."""

    def __init__(self, layers: int, capacity: int) -> None:
        self.layers = [LayerCache(capacity) for _ in range(layers)]

    @property
    def length(self) -> int:
        """Tokens so far, before those that are under way through the layers."""
        return self.layers[0].length

    def repeat(self, copies: int) -> "KeyValueCache":
        """A cache of so many copies of each sequence: of one prompt that several continuations share."""
        repeated = KeyValueCache(0, 0)
        repeated.layers = [layer.repeat(copies) for layer in self.layers]
        return repeated
