"""The proportion of forget and retain rows in every micro-batch, and the order that (seed, epoch) fixes."""

from collections import Counter
from itertools import islice

import pytest
from torch.utils.data import BatchSampler

from rapidun.stages.unlearning.sampler import MixSampler, draws


def batches(sampler: MixSampler, epoch: int) -> list[list[int]]:
    sampler.set_epoch(epoch)
    return list(BatchSampler(sampler, sampler.micro_batch_size, drop_last=False))


def make(**changes: int) -> MixSampler:
    settings = {"num_forget": 8, "num_retain": 20, "forget_per_step": 2, "mix_ratio": 3, "seed": 5}
    return MixSampler(**{**settings, **changes})


def test_every_micro_batch_holds_the_exact_proportion_without_repetition() -> None:
    sampler = make()
    for epoch in range(7):
        made = batches(sampler, epoch)
        assert len(made) == 4
        for batch in made:
            assert [index < 8 for index in batch] == [True] * 2 + [False] * 6
            assert len(set(batch)) == 8


def test_an_epoch_is_one_pass_over_the_forget_rows() -> None:
    sampler = make()
    for epoch in range(3):
        seen = [index for batch in batches(sampler, epoch) for index in batch if index < 8]
        assert sorted(seen) == list(range(8))


def test_retain_rows_go_on_through_their_own_permutations() -> None:
    """24 retain rows an epoch out of 20: after 5 epochs each of them was seen 6 times."""
    sampler = make()
    seen: Counter[int] = Counter()
    for epoch in range(5):
        seen.update(index for batch in batches(sampler, epoch) for index in batch if index >= 8)
    assert seen == {index: 6 for index in range(8, 28)}
    first = [index for batch in batches(sampler, 0) for index in batch if index >= 8]
    assert sorted(set(first[:18])) == sorted(first[:18])


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    assert batches(make(), 3) == batches(make(), 3)
    assert batches(make(), 0) != batches(make(), 1)
    assert batches(make(), 0) != batches(make(seed=6), 0)


def test_forget_rows_that_do_not_divide_evenly_are_all_seen() -> None:
    sampler = make(num_forget=7)
    assert len(sampler) == 4 * 8
    seen: Counter[int] = Counter()
    for epoch in range(7):
        seen.update(index for batch in batches(sampler, epoch) for index in batch if index < 7)
    assert seen == {index: 8 for index in range(7)}


def test_without_retain_rows() -> None:
    assert batches(make(mix_ratio=0, num_retain=0), 0)[0] == batches(make(), 0)[0][:2]


def test_draws_never_repeat_within_a_draw_and_use_every_permutation_up() -> None:
    made = list(islice(draws(5, 3, seed=0, stream=1), 500))
    assert all(len(set(draw)) == 3 for draw in made)
    counts = Counter(row for draw in made for row in draw)
    assert counts == {row: 300 for row in range(5)}


@pytest.mark.parametrize("changes", [{"forget_per_step": 9}, {"mix_ratio": 11}, {"forget_per_step": 0}])
def test_too_large_a_micro_batch_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="micro-batches"):
        make(**changes)
