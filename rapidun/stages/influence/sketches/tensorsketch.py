"""TensorSketch: the count-sketch of sum_t g_t a_t^T from the sketches of g_t and a_t, the product never formed.

Entry (r, c) of a gradient matrix goes to bucket (h(r) + h'(c)) mod b with sign s(r) s'(c). The sketch of an outer
product under this hash is the cyclic convolution of the sketches of its two factors, so with F the Fourier transform

    z = F^-1 ( sum_t F(C g_t) * F(C' a_t) ),   C, C': count-sketches of rows and columns to b buckets.

The sum over the tokens of a row is taken in the frequency domain: two transforms a token, one back for each row and
layer. Indices are hashed in groups of b, each by a random permutation of the buckets: indices of one group never meet,
indices of different groups meet with probability 1/b. Hence E <z_x, z_y> = <x, y>, and for matrices X, Y of which
neither side exceeds b

    Var <= (|X|^2 |Y|^2 + <X, Y>^2) / (b - 1) + O(1/b^2),

as for a count-sketch of whole gradients. A longer side adds at most (|X Y^T|^2 + <X Y^T, Y X^T>) / b for the rows,
(|X^T Y|^2 + <X^T Y, Y^T X>) / b for the columns: what the original, whose indices meet whatever their number, always
has, up to 4 |X|^2 |Y|^2 / b in all at rank one.

Each layer's b numbers go to a random cyclic offset among the k numbers of the row, with signs of their own. Rows are
hashed by layer, columns by their number alone: layers that read one input (queries, keys and values; gate and up
projection) share its transforms. Two layers stay independent by their row signs, offsets and last signs.

Source: Pham and Pagh, "Fast and scalable polynomial kernels via explicit feature maps", KDD 2013; with permutations in
the place of independent hashes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rapidun.models.rng import random_signs, random_uint64
from rapidun.stages.influence.gradients.capture import Contribution, Lookup
from rapidun.stages.influence.gradients.params import accumulation_dtype

# part of what an artifact depends on: raise it with every change of the numbers
TENSORSKETCH_VERSION = 2
# numbers of one chunk of tokens on their way through the transform: what stays in a core's cache, or fills a GPU
CPU_CHUNK = 1 << 17
DEVICE_CHUNK = 1 << 25


class Side(NamedTuple):
    """The count-sketch of one side of a matrix, arranged so that it needs gathers only, in a fixed order."""

    buckets: Tensor  # [n] int64: h
    signs: Tensor  # [n] float32 +-1
    # for each group of b indices and each bucket: the index that goes there and its sign, or index 0 and sign 0
    sources: Tensor  # [num_groups, b] int64
    source_signs: Tensor  # [num_groups, b] float32

    def to(self, device: torch.device) -> "Side":
        return Side(*(part.to(device) for part in self))

    def sketch(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """[n, D] -> [n, b] in `dtype`."""
        x = x.to(dtype)
        signs = self.source_signs.to(dtype)
        total = x.index_select(1, self.sources[0]).mul_(signs[0])
        for source, sign in zip(self.sources[1:], signs[1:], strict=True):
            total.addcmul_(x.index_select(1, source), sign)
        return total

    def sketch_one_hot(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """[n] indices -> [n, b]: the sketches of unit vectors."""
        out = torch.zeros(len(ids), self.sources.shape[1], dtype=dtype, device=ids.device)
        return out.scatter_(1, self.buckets[ids].unsqueeze(1), self.signs[ids].to(dtype).unsqueeze(1))


def plan_side(name: str, purpose: str, size: int, *, buckets: int, seed: int) -> Side:
    """Draw the hash and the signs of `size` indices; depends on (seed, name, purpose, index) only."""
    num_groups = -(-size // buckets)
    keys = random_uint64(seed, name, f"tensor {purpose} bucket", np.arange(num_groups * buckets, dtype=np.uint64))
    # the j-th index of a group goes to the bucket whose key is the j-th smallest
    hashes = np.argsort(keys.reshape(num_groups, buckets), axis=1, kind="stable").flatten()[:size]
    signs = random_signs(seed, name, f"tensor {purpose} sign", 0, size)
    places = torch.from_numpy(np.arange(size) // buckets * buckets + hashes)
    sources = torch.zeros(num_groups * buckets, dtype=torch.int64).index_copy(0, places, torch.arange(size))
    source_signs = torch.zeros(num_groups * buckets).index_copy(0, places, signs)
    shape = (num_groups, buckets)
    return Side(torch.from_numpy(hashes), signs, sources.view(shape), source_signs.view(shape))


class _Plan(NamedTuple):
    rows: Side
    columns: Side
    offset: int
    signs: Tensor  # [b] float32 +-1, of the layer's numbers among the row's


class _Input(NamedTuple):
    """What a layer was given, held so that its memory is nobody else's, and the transforms of its tokens."""

    a: Tensor
    version: int
    chunks: Sequence[Tensor]
    spectra: Sequence[Tensor]

    def serves(self, a: Tensor, chunks: Sequence[Tensor]) -> bool:
        """Whether `a` is the same tensor, unchanged, and the same tokens of it are wanted."""
        return (
            a.data_ptr() == self.a.data_ptr()
            and (a.shape, a.stride(), a.dtype) == (self.a.shape, self.a.stride(), self.a.dtype)
            and a._version == self.version == self.a._version
            and len(chunks) == len(self.chunks)
            and all(torch.equal(x, y) for x, y in zip(chunks, self.chunks, strict=True))
        )


class TensorSketch:
    """Adds per-sample gradients of many parameters to sketches of k numbers a sample; keeps the plan of each."""

    def __init__(self, *, k: int, buckets: int, seed: int) -> None:
        if k < 1 or buckets < 1 or buckets & (buckets - 1):
            raise ValueError(f"need k >= 1 and buckets a power of two, got k={k}, buckets={buckets}")
        self.k = k
        self.num_numbers = k
        self.buckets = buckets
        self.seed = seed
        self._plans: dict[tuple[str, torch.device], _Plan] = {}
        self._input: _Input | None = None

    def new_buffer(self, num_rows: int, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """[num_rows, k + buckets] zeros: a layer that runs past k is folded back by `finish`."""
        return torch.zeros(num_rows, self.k + self.buckets, dtype=accumulation_dtype(dtype), device=device)

    def add(self, buffer: Tensor, name: str, shape: tuple[int, int], gradient: Contribution) -> None:
        """Add the sketch of one contribution [B, *shape] to `buffer` [B, k + buckets].

        Everything is computed in float32 (float64 for a float64 model). Tokens without a gradient (padding, and
        in the last layer the prompt) cost nothing.
        """
        plan = self._plan(name, shape, buffer.device)
        dtype = buffer.dtype
        # [B * T]; squares of gradients below 1e-22 vanish, and such tokens with them
        active = torch.linalg.vector_norm(gradient.g, dim=2).flatten() != 0
        if isinstance(gradient, Lookup):
            active &= gradient.ids.flatten() >= 0
        # tokens that count, in the order of their examples
        tokens = active.nonzero().flatten()
        if len(tokens) == 0:
            return
        # real and imaginary parts side by side
        spectrum = torch.zeros(len(buffer), 2 * (self.buckets // 2 + 1), dtype=dtype, device=buffer.device)
        height = max(1, (CPU_CHUNK if buffer.device.type == "cpu" else DEVICE_CHUNK) // self.buckets)
        chunks = tokens.split(height)
        shared = None if isinstance(gradient, Lookup) else self._input_spectra(gradient.a, chunks, plan.columns, dtype)
        for number, chunk in enumerate(chunks):
            g = gradient.g.flatten(0, 1).index_select(0, chunk)
            if isinstance(gradient, Lookup):
                left = plan.rows.sketch_one_hot(gradient.ids.flatten()[chunk], dtype)
                right = torch.fft.rfft(plan.columns.sketch(g, dtype))
            else:
                assert shared is not None
                left = plan.rows.sketch(g, dtype)
                right = shared[number]
            product = torch.fft.rfft(left).mul_(right)
            examples = chunk // gradient.g.shape[1]
            _add_by_example(spectrum, examples, torch.view_as_real(product).flatten(1))
        folded = torch.fft.irfft(torch.view_as_complex(spectrum.unflatten(1, (-1, 2))), n=self.buckets)
        buffer[:, plan.offset : plan.offset + self.buckets].addcmul_(folded, plan.signs.to(dtype))

    def _input_spectra(
        self, a: Tensor, chunks: Sequence[Tensor], columns: Side, dtype: torch.dtype
    ) -> Sequence[Tensor]:
        """F(C' a_t), [len(chunk), b / 2 + 1] complex for each chunk of tokens; kept for the next layer."""
        last = self._input
        if last is not None and last.serves(a, chunks):
            return last.spectra
        flat = a.flatten(0, 1)
        spectra = [torch.fft.rfft(columns.sketch(flat.index_select(0, chunk), dtype)) for chunk in chunks]
        self._input = _Input(a, a._version, chunks, spectra)
        return spectra

    def finish(self, buffer: Tensor) -> Tensor:
        """[B, k + buckets] -> [B, k]: what ran past the end goes on at the beginning."""
        self._input = None
        first, *others = buffer.split(self.k, dim=1)
        out = first.clone()
        for part in others:
            out[:, : part.shape[1]] += part
        return out

    def _plan(self, name: str, shape: tuple[int, int], device: torch.device) -> _Plan:
        key = (name, device)
        if key not in self._plans:
            rows = plan_side(name, "row", shape[0], buckets=self.buckets, seed=self.seed).to(device)
            # of no layer in particular
            columns = plan_side("", "column", shape[1], buckets=self.buckets, seed=self.seed).to(device)
            # the modulus favours some places by less than k / 2^64
            offset = int(random_uint64(self.seed, name, "tensor offset", np.zeros(1, dtype=np.uint64))[0] % self.k)
            signs = random_signs(self.seed, name, "tensor fold", 0, self.buckets).to(device)
            self._plans[key] = _Plan(rows, columns, offset, signs)
        return self._plans[key]


def _add_by_example(total: Tensor, examples: Tensor, values: Tensor) -> None:
    """total[examples[n]] += values[n], in a fixed order on every device."""
    if total.device.type == "cpu":
        total.index_add_(0, examples, values)
    else:
        # index_add on an accelerator adds in whatever order its threads arrive
        members = examples.unsqueeze(0) == torch.arange(len(total), device=total.device).unsqueeze(1)
        total += members.to(values.dtype) @ values
