"""Newton-Schulz against the same polynomial of singular values, and a whole step against torch's Muon."""

import pytest
import torch
from torch import Tensor

from parallel.optimizers.newton_schulz import orthogonalise
from tests.reference_optimizers import quintic

SHAPES = [(16, 16), (8, 40), (40, 8), (1, 12), (12, 1)]


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_quintic_of_the_singular_values(shape: tuple[int, int]) -> None:
    torch.testing.assert_close(orthogonalise(drawn(*shape)), quintic(drawn(*shape)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e6])
def test_the_scale_of_the_matrix_does_not_matter(scale: float) -> None:
    matrix = drawn(12, 20).float()
    torch.testing.assert_close(orthogonalise(matrix * scale), orthogonalise(matrix), rtol=1e-4, atol=1e-5)


def test_directions_of_rank_one_stay_one_and_zero_stays_zero() -> None:
    spectrum = torch.linalg.svdvals(orthogonalise(drawn(8, 1) @ drawn(1, 30)))
    assert 0.68 < spectrum[0] < 1.2 and spectrum[1] < 1e-9
    assert not orthogonalise(torch.zeros(4, 6)).any()


@pytest.mark.parametrize("shape", [(16, 16), (40, 8)], ids=str)
def test_the_reference_steps_as_torchs_muon_does(shape: tuple[int, int]) -> None:
    """torch orthogonalises in bf16, whose rounding of 2^-9 the polynomial's slope of 3.4 at zero amplifies."""
    weight = torch.nn.Parameter(torch.zeros(shape))
    theirs = torch.optim.Muon([weight], lr=1.0, weight_decay=0.0, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    total, expected = torch.zeros(shape).double(), torch.zeros(shape).double()
    for step in range(3):
        gradient = drawn(3, *shape)[step]
        weight.grad = gradient.float()
        theirs.step()
        total = 0.9 * total + gradient
        expected -= 0.2 * max(shape) ** 0.5 * quintic(gradient + 0.9 * total)
    error = (weight.detach() - expected).norm() / expected.norm()
    assert error < 0.03
