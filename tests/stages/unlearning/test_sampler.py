"""The proportion of forget and retain rows in every micro-batch, and the order that (seed, epoch) fixes."""

from collections import Counter
from itertools import islice
from typing import Any

import pytest
from torch.utils.data import BatchSampler

from rapidun.models.training.samplers import IDLE, StepShards
from rapidun.stages.unlearning.sampler import MixSampler, draws, weighted_draws


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


# --- by weight ----------------------------------------------------------------------------------------------------


def weighted(**changes: Any) -> MixSampler:
    weights = (FORGET_WEIGHTS, RETAIN_WEIGHTS)
    settings = {"num_forget": 8, "num_retain": 20, "forget_per_step": 2, "mix_ratio": 3, "seed": 5, "weights": weights}
    return MixSampler(**{**settings, **changes})


FORGET_WEIGHTS = [0.0, 0.5, 3.0, 0.25, 1.0, 0.0, 2.0, 1.25]
RETAIN_WEIGHTS = [0.1 * (row % 7) for row in range(20)]


@pytest.mark.parametrize(("weights", "offset"), [(FORGET_WEIGHTS, 0), (RETAIN_WEIGHTS, 8)])
def test_rows_are_drawn_as_often_as_their_weights_say(weights: list[float], offset: int) -> None:
    """Chi-square of the counts over 2,000 epochs against n w_i / sum w, each group by its own weights; p > 0.01."""
    from scipy.stats import chi2

    sampler = weighted()
    counts: Counter[int] = Counter()
    for epoch in range(2000):
        sampler.set_epoch(epoch)
        counts.update(index - offset for index in sampler if (index < 8) == (offset == 0))
    number = sum(counts.values())
    assert number == 2000 * 4 * (2 if offset == 0 else 6)
    assert all(counts[row] == 0 for row, weight in enumerate(weights) if weight == 0)
    expected = {row: number * weight / sum(weights) for row, weight in enumerate(weights) if weight > 0}
    statistic = sum((counts[row] - mean) ** 2 / mean for row, mean in expected.items())
    assert statistic < chi2.ppf(0.99, df=len(expected) - 1)
    # the same counts are far from those of equal weights, so the test can tell
    equal = number / len(expected)
    assert sum((counts[row] - equal) ** 2 / equal for row in expected) > 100 * chi2.ppf(0.99, df=len(expected) - 1)


def test_draws_by_weight_keep_the_proportion_and_the_number_of_an_epoch() -> None:
    for sampler in (weighted(), weighted(num_forget=7, weights=(FORGET_WEIGHTS[:7], RETAIN_WEIGHTS))):
        first = sampler.num_forget
        made = batches(sampler, 3)
        assert len(made) == 4 and sum(map(len, made)) == len(sampler)
        assert all([index < first for index in batch] == [True] * 2 + [False] * 6 for batch in made)
    assert all(index < 8 for index in weighted(mix_ratio=0, weights=(FORGET_WEIGHTS, [0.0] * 20)))


def test_draws_by_weight_are_a_function_of_seed_and_epoch() -> None:
    """An epoch is the same whether or not others were drawn before it; groups and epochs are draws of their own."""
    walked = weighted()
    for epoch in range(3):
        found = batches(walked, epoch)
    assert found == batches(weighted(), 2)
    assert found != batches(weighted(), 1)
    assert found != batches(weighted(seed=6), 2)
    one = weighted_draws([1.0] * 8, 40, seed=5, stream=4, epoch=0)
    assert one != weighted_draws([1.0] * 8, 40, seed=5, stream=5, epoch=0)


def test_processes_share_one_stream_of_draws_out() -> None:
    """Over two ranks: every draw of each step once, none twice."""
    sampler = weighted()
    shards = [list(StepShards(sampler, step_size=8, batch_size=8, rank=rank, world_size=2)) for rank in range(2)]
    for step, whole in enumerate(batches(sampler, 0)):
        assert Counter(index for rank in shards for index in rank[step]) == Counter(whole)


def test_weights_that_are_all_zero_cannot_be_drawn_from() -> None:
    with pytest.raises(ValueError, match="not all 0"):
        list(weighted(weights=([0.0] * 8, RETAIN_WEIGHTS)))
    assert weighted_draws([0.0, 0.0, 1e-300, 0.0], 50, seed=1, stream=4, epoch=0) == [2] * 50


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(
    ("num_forget", "num_retain", "per_step", "accumulated"), [(40, 120, 1, 4), (6, 20, 2, 2), (5, 40, 1, 3)]
)
def test_no_row_is_drawn_twice_in_an_epoch_on_any_process(
    world_size: int, num_forget: int, num_retain: int, per_step: int, accumulated: int
) -> None:
    """3 retain rows to a forget row; permutations of the retain rows that end within an epoch, too. Over four epochs
    (5 of 40 rows: 15 each) the retain rows are drawn as often as one another, but for one."""
    sampler = MixSampler(
        num_forget=num_forget, num_retain=num_retain, forget_per_step=per_step, mix_ratio=3, seed=1
    )  # fmt: skip
    size = sampler.micro_batch_size
    seen: list[int] = []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        shards = [
            StepShards(sampler, step_size=size * accumulated, batch_size=size, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        rows = [row for shard in shards for batch in shard for row in batch if row != IDLE]
        assert len(rows) == len(set(rows)) == 4 * num_forget
        assert {row for row in rows if row < num_forget} == set(range(num_forget))
        seen += [row for row in rows if row >= num_forget]
    counts = [seen.count(row) for row in range(num_forget, num_forget + num_retain)]
    assert max(counts) - min(counts) <= 1


def test_retain_rows_alone() -> None:
    """Without forget rows an epoch is one pass over the retain rows; the last micro-batch is filled from the next."""
    for num_retain, number in ((12, 4), (11, 4)):
        sampler = MixSampler(
            num_forget=0, num_retain=num_retain, forget_per_step=0, mix_ratio=3, retain_per_step=3, seed=2
        )  # fmt: skip
        rows = list(sampler)
        assert len(rows) == len(sampler) == 3 * number and set(rows) == set(range(num_retain))
    with pytest.raises(ValueError, match="micro-batches of at most 0 forget and 2 retain rows"):
        MixSampler(num_forget=0, num_retain=2, forget_per_step=0, mix_ratio=3, retain_per_step=3, seed=2)
