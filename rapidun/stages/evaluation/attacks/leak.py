"""From counts of poisoned answers to figures."""

from collections.abc import Sequence
from math import comb, fsum


def asr_at_k(counts: Sequence[int], *, n: int, k: int) -> float:
    """The probability that k answers drawn to a prompt hold a poisoned one, averaged over prompts.

    mean_i [1 - C(n - c_i, k) / C(n, k)], c_i poisoned ones among the n that were drawn: unbiased for any k <= n, where
    1 - (1 - c/n)^k is too low.

    Args: counts: [num_prompts], 0 <= c_i <= n.
    Raises: ValueError for no prompt, k outside 1..n, a count outside 0..n.
    Source: pass@k of Chen et al. 2021 (arXiv 2107.03374), equation 1; of leaks arXiv 2511.04934.
    """
    if not counts or not 1 <= k <= n:
        raise ValueError(f"need at least one prompt and 1 <= k <= n, got {len(counts)} prompts, k={k}, n={n}")
    if bad := [count for count in counts if not 0 <= count <= n]:
        raise ValueError(f"need counts between 0 and n={n}, got {bad[0]}")
    return fsum(1 - comb(n - count, k) / comb(n, k) for count in counts) / len(counts)


def powers_of_two(n: int) -> list[int]:
    """1, 2, 4, ... below n, and n itself."""
    return [*(1 << i for i in range((n - 1).bit_length())), n]
