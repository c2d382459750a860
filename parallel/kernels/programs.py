# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
"""What one program of a launch does at the step boundary; `parallel.kernels.boundary` makes the tables and launches.

`tasks` says which block of which matrix is the program's, `shapes` has FIELDS int64 numbers of each matrix: its height
and width and three that the kernel names. `weights`, `grads` and `effectives` hold the addresses of matrices. Blocks
that stick out of their matrix are masked. ELEMENT is the dtype of weights, gradients and sums.
"""

import triton
import triton.language as tl


@triton.jit
def _tile(matrix, o, i, height, width, ELEMENT: tl.constexpr):
    """Addresses of a tile of a matrix at rows o and columns i, and which of them are inside."""
    pointers = matrix.to(tl.pointer_type(ELEMENT)) + o[:, None] * width + i[None, :]
    return pointers, (o < height)[:, None] & (i < width)[None, :]


@triton.jit
def _dot_rows(matrix, height, width, x, y, block, ELEMENT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A block of rows of y = W x."""
    o = block * ROWS + tl.arange(0, ROWS)
    total = tl.zeros((ROWS, COLUMNS), ELEMENT)
    for first in range(0, width, COLUMNS):
        i = first + tl.arange(0, COLUMNS)
        pointers, inside = _tile(matrix, o, i, height, width, ELEMENT)
        total += tl.load(pointers, inside, 0.0) * tl.load(x + i, i < width, 0.0)[None, :]
    tl.store(y + o, tl.sum(total, 1), o < height)


@triton.jit
def _dot_columns(matrix, height, width, x, y, block, ELEMENT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A block of columns of y = Wᵀ x."""
    i = block * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), ELEMENT)
    for first in range(0, height, ROWS):
        o = first + tl.arange(0, ROWS)
        pointers, inside = _tile(matrix, o, i, height, width, ELEMENT)
        total += tl.load(pointers, inside, 0.0) * tl.load(x + o, o < height, 0.0)[:, None]
    tl.store(y + i, tl.sum(total, 0), i < width)


@triton.jit
def multiply(
    tasks,
    shapes,
    weights,
    x,
    y,
    ELEMENT: tl.constexpr,
    FIELDS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One block of y = W x or y = Wᵀ x of one matrix; named: whether by rows, where x and y begin."""
    index, block = tl.load(tasks + 2 * tl.program_id(0)), tl.load(tasks + 2 * tl.program_id(0) + 1)
    shape = shapes + FIELDS * index
    height, width = tl.load(shape), tl.load(shape + 1)
    x += tl.load(shape + 3)
    y += tl.load(shape + 4)
    matrix = tl.load(weights + index)
    if tl.load(shape + 2) != 0:
        _dot_rows(matrix, height, width, x, y, block, ELEMENT, ROWS, COLUMNS)
    else:
        _dot_columns(matrix, height, width, x, y, block, ELEMENT, ROWS, COLUMNS)


@triton.jit
def inner(tasks, shapes, weights, grads, partial_P, ELEMENT: tl.constexpr, FIELDS: tl.constexpr, FLAT: tl.constexpr):
    """One stretch of <G, W> of one matrix."""
    program = tl.program_id(0)
    index, block = tl.load(tasks + 2 * program), tl.load(tasks + 2 * program + 1)
    shape = shapes + FIELDS * index
    elements = block * FLAT + tl.arange(0, FLAT)
    inside = elements < tl.load(shape) * tl.load(shape + 1)
    weight = tl.load(tl.load(weights + index).to(tl.pointer_type(ELEMENT)) + elements, inside, 0.0)
    grad = tl.load(tl.load(grads + index).to(tl.pointer_type(ELEMENT)) + elements, inside, 0.0)
    tl.store(partial_P + program, tl.sum(weight * grad, 0))


@triton.jit
def pull(
    tasks,
    shapes,
    grads,
    vectors,
    scale_M,
    ratio_M,
    ELEMENT: tl.constexpr,
    FIELDS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """G becomes scale (G - ratio a bᵀ) in a block of rows; named: nothing, where a and b begin in `vectors`."""
    index, block = tl.load(tasks + 2 * tl.program_id(0)), tl.load(tasks + 2 * tl.program_id(0) + 1)
    shape = shapes + FIELDS * index
    height, width = tl.load(shape), tl.load(shape + 1)
    scale, ratio = tl.load(scale_M + index), tl.load(ratio_M + index)
    o = block * ROWS + tl.arange(0, ROWS)
    a = ratio * tl.load(vectors + tl.load(shape + 3) + o, o < height, 0.0)
    b = vectors + tl.load(shape + 4)
    grad = tl.load(grads + index)
    for first in range(0, width, COLUMNS):
        i = first + tl.arange(0, COLUMNS)
        pointers, inside = _tile(grad, o, i, height, width, ELEMENT)
        pulled = tl.load(pointers, inside, 0.0) - a[:, None] * tl.load(b + i, i < width, 0.0)[None, :]
        tl.store(pointers, scale * pulled, inside)


@triton.jit
def write(
    tasks,
    shapes,
    weights,
    effectives,
    scale_M,
    ELEMENT: tl.constexpr,
    COMPUTE: tl.constexpr,
    FIELDS: tl.constexpr,
    FLAT: tl.constexpr,
):
    """One stretch of W_hat = scale W, rounded once."""
    index, block = tl.load(tasks + 2 * tl.program_id(0)), tl.load(tasks + 2 * tl.program_id(0) + 1)
    shape = shapes + FIELDS * index
    elements = block * FLAT + tl.arange(0, FLAT)
    inside = elements < tl.load(shape) * tl.load(shape + 1)
    weight = tl.load(tl.load(weights + index).to(tl.pointer_type(ELEMENT)) + elements, inside, 0.0)
    effective = tl.load(effectives + index).to(tl.pointer_type(COMPUTE)) + elements
    tl.store(effective, (weight * tl.load(scale_M + index)).to(COMPUTE), inside)
