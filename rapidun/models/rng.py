"""Random numbers that are functions of a seed and a place: the same on every device, in every order."""

import hashlib

import numpy as np
import torch
from torch import Tensor

# what SplitMix64 adds to its state at each step
_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def permutation(num_rows: int, *, seed: int, stream: int, part: int) -> list[int]:
    """The order of one pass over rows, a function of (seed, stream, pass) alone.

    Args:
        num_rows: rows to order. seed: of the run. stream: which group of rows. part: which pass over them.
    """
    generator = torch.Generator().manual_seed(mix(seed, stream, part))
    return torch.randperm(num_rows, generator=generator).tolist()


def mix(*values: int) -> int:
    """One seed of several numbers: neighbouring ones give unrelated generators. Below 2^63, as manual_seed takes it."""
    state = np.zeros(1, dtype=np.uint64)
    for value in values:
        state = _scramble(state + np.uint64(value % 2**64) + _GAMMA)
    return int(state[0]) >> 1


def random_uint64(seed: int, name: str, purpose: str, counters: np.ndarray) -> np.ndarray:
    """Random numbers that depend on nothing but (seed, name, purpose, counter): SplitMix64 of a keyed counter.

    Args:
        counters: [n] uint64.
    Returns: [n] uint64, the same on every machine, in every order and batch.
    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014.
    """
    digest = hashlib.sha256(f"{seed}\0{name}\0{purpose}".encode()).digest()
    key = np.frombuffer(digest[:8], dtype="<u8").astype(np.uint64)
    return _scramble(key + (counters.astype(np.uint64) + np.uint64(1)) * _GAMMA)


def random_signs(seed: int, name: str, purpose: str, start: int, stop: int) -> Tensor:
    """[stop - start] float32, +1 or -1 with equal probability."""
    bits = random_uint64(seed, name, purpose, np.arange(start, stop, dtype=np.uint64)) >> np.uint64(63)
    return torch.from_numpy(1.0 - 2.0 * bits.astype(np.float32))


def _scramble(x: np.ndarray) -> np.ndarray:
    """SplitMix64's output of each state, modulo 2^64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
