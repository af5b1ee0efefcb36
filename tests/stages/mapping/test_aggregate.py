import statistics

import numpy as np
import pytest

from rapidun.stages.mapping.aggregate import aggregate_block, fuse, keep_top, transform


def columns(*cols: list[float]) -> np.ndarray:
    return np.array(cols, dtype=np.float64).T


def test_median_over_queries_by_hand() -> None:
    """Rows = training: row 0 has 1, 2, 9 -> median 2; row 1 has 4, 0, 5 -> median 4; mean 4 and 3."""
    values = np.array([[1.0, 2.0, 9.0], [4.0, 0.0, 5.0]])
    assert aggregate_block(values).scores.tolist() == [2.0, 4.0]
    assert aggregate_block(values, aggregate="mean").scores.tolist() == [4.0, 3.0]
    assert aggregate_block(values).zero_share is None


def test_even_number_of_queries_takes_the_mean_of_the_middle_two() -> None:
    assert aggregate_block(np.array([[1.0, 2.0, 4.0, 100.0]])).scores.tolist() == [3.0]


def test_diagonal_is_left_out_and_not_a_zero() -> None:
    """Without i = j: row 0 has 5, 7 -> 6; row 1 has -1, -3 -> -2 (a zero in place of i = j would give -1)."""
    values = np.array([[99.0, 5.0, 7.0], [-1.0, 99.0, -3.0], [2.0, 4.0, 99.0]])
    assert aggregate_block(values, drop_diagonal=True).scores.tolist() == [6.0, -2.0, 3.0]


def test_diagonal_takes_no_place_in_the_top_k() -> None:
    """Top 1 of each query without i = j: query 0 keeps row 2, query 1 row 2, query 2 row 0."""
    values = np.array([[99.0, 5.0, 7.0], [1.0, 99.0, 3.0], [2.0, 6.0, 99.0]])
    result = aggregate_block(values, drop_diagonal=True, top_k=1, aggregate="mean")
    assert result.scores.tolist() == [3.5, 0.0, 4.0]
    assert result.zero_share == 0.5


def test_one_row_without_its_diagonal_scores_zero() -> None:
    result = aggregate_block(np.array([[3.0]]), drop_diagonal=True, top_k=2)
    assert result.scores.tolist() == [0.0]
    assert result.zero_share == 0.0


def test_top_k_ties_go_to_the_lower_index_or_the_files_order() -> None:
    values = columns([5.0, 7.0, 5.0, 5.0])
    assert keep_top(values, k=2)[:, 0].tolist() == [5.0, 7.0, 0.0, 0.0]
    place = np.array([[3], [0], [2], [1]])
    assert keep_top(values, k=2, place=place)[:, 0].tolist() == [0.0, 7.0, 0.0, 5.0]


def test_the_files_order_decides_ties_without_the_diagonal_too() -> None:
    """Query 0 has rows 1 and 2 to choose from, both 5: the file has row 2 first."""
    values = np.array([[9.0, 1.0, 1.0], [5.0, 9.0, 0.0], [5.0, 0.0, 9.0]])
    place = np.array([[0, 1, 1], [2, 0, 2], [1, 2, 0]])
    by_index = aggregate_block(values, top_k=1, drop_diagonal=True, aggregate="mean").scores
    by_file = aggregate_block(values, place=place, top_k=1, drop_diagonal=True, aggregate="mean").scores
    assert by_index.tolist() == [1.0, 2.5, 0.0]
    assert by_file.tolist() == [1.0, 0.0, 2.5]


def test_bottom_k_keeps_the_lowest_and_its_ties_the_lower_index() -> None:
    values = columns([5.0, -7.0, -1.0, -1.0])
    assert keep_top(values, k=2, lowest=True)[:, 0].tolist() == [0.0, -7.0, -1.0, 0.0]


def test_pairs_that_are_not_listed_come_last_and_count_as_zero() -> None:
    values = columns([np.nan, -2.0, -3.0])
    assert keep_top(values, k=1)[:, 0].tolist() == [0.0, -2.0, 0.0]
    assert keep_top(values, k=9)[:, 0].tolist() == [0.0, -2.0, -3.0]
    assert keep_top(values, k=1, lowest=True)[:, 0].tolist() == [0.0, 0.0, -3.0]


def test_top_k_of_all_rows_changes_nothing() -> None:
    values = np.random.default_rng(0).standard_normal((7, 5))
    np.testing.assert_array_equal(keep_top(values, k=7), values)


def test_ranks_by_hand() -> None:
    """3, 1, 3, 8 -> ranks 2.5, 1, 2.5, 4 of 4."""
    assert transform(columns([3.0, 1.0, 3.0, 8.0]), mode="rank")[:, 0].tolist() == [0.625, 0.25, 0.625, 1.0]


def test_robust_scale_by_hand() -> None:
    """0, 1, 2, 3, 10: median 2, MAD 1. 0, 0, 0, 8: MAD 0, mean deviation 2. A constant becomes 0."""
    np.testing.assert_allclose(
        transform(columns([0.0, 1.0, 2.0, 3.0, 10.0]), mode="robust")[:, 0] * 1.4826, [-2.0, -1.0, 0.0, 1.0, 8.0]
    )
    np.testing.assert_allclose(transform(columns([0.0, 0.0, 0.0, 8.0]), mode="robust")[:, 0] * 1.2533, [0, 0, 0, 4.0])
    assert transform(columns([5.0, 5.0]), mode="robust")[:, 0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("mode", ["rank", "robust"])
def test_transforms_ignore_the_scale_of_a_query(mode: str) -> None:
    values = np.random.default_rng(1).standard_normal((9, 4))
    stretched = values * np.array([1.0, 1e6, 1e-6, 3.0]) + 5.0
    np.testing.assert_allclose(transform(stretched, mode=mode), transform(values, mode=mode), rtol=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_agrees_with_a_slow_obvious_version(seed: int) -> None:
    generator = np.random.default_rng(seed)
    n, k = int(generator.integers(2, 9)), int(generator.integers(1, 9))
    square, lowest = bool(generator.integers(2)), bool(generator.integers(2))
    values = np.round(generator.standard_normal((n, n if square else 5)), 1)
    expected = []
    for row in range(n):
        kept = []
        for query in range(values.shape[1]):
            if square and row == query:
                continue
            rivals = [other for other in range(n) if not (square and other == query)]
            rivals.sort(key=lambda other: (values[other, query] * (1 if lowest else -1), other))
            kept.append(float(values[row, query]) if row in rivals[:k] else 0.0)
        expected.append(statistics.median(kept))
    result = aggregate_block(values, top_k=k, lowest=lowest, drop_diagonal=square)
    np.testing.assert_allclose(result.scores, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("mode", ["value", "rank", "robust"])
@pytest.mark.parametrize("top_k", [None, 3])
def test_permuting_rows_permutes_scores(mode: str, top_k: int | None) -> None:
    generator = np.random.default_rng(2)
    values = generator.standard_normal((8, 8))
    order = generator.permutation(8)
    scores = aggregate_block(values, mode=mode, top_k=top_k, drop_diagonal=True).scores
    moved = aggregate_block(values[order][:, order], mode=mode, top_k=top_k, drop_diagonal=True).scores
    np.testing.assert_allclose(moved, scores[order], rtol=0, atol=1e-14)


def test_not_a_number_is_refused_without_top_k() -> None:
    with pytest.raises(ValueError, match="NaN"):
        aggregate_block(np.array([[np.nan, 1.0]]))
    with pytest.raises(ValueError, match="infinity"):
        aggregate_block(np.array([[np.inf, 1.0]]), top_k=1)


AGGREGATED = {"ff": np.array([5.0]), "fr": np.array([2.0]), "rr": np.array([7.0, 1.0]), "rf": np.array([1.0, 4.0])}


def test_fuse_by_hand() -> None:
    """S_f = 5 - 2, S_r = 7 - 1, 1 - 4; with weights 2, 3, 4, 5: 10 - 6, 28 - 5, 4 - 20."""
    forget, retain = fuse(AGGREGATED)
    assert (forget.tolist(), retain.tolist()) == ([3.0], [6.0, -3.0])
    forget, retain = fuse(AGGREGATED, alpha=2, beta=3, gamma=4, delta=5)
    assert (forget.tolist(), retain.tolist()) == ([4.0], [23.0, -16.0])


def test_harmful_is_subtracted() -> None:
    """S_f = 5 - 2 - (0.5 * 5 + 2 * 2) = -3.5, S_r = 6 - (3 * 7 + 1 * 1) = -16, -3 - (3 * 1 + 1 * 4) = -10."""
    forget, retain = fuse(AGGREGATED, harmful=AGGREGATED, alpha_harm=0.5, beta_harm=2, gamma_harm=3, delta_harm=1)
    assert (forget.tolist(), retain.tolist()) == ([-3.5], [-16.0, -10.0])
