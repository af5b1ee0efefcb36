"""Hidden-state scores beside one row at a time, and their split over tokens."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from rapidun.base.errors import ConfigError, ModelError
from rapidun.config.influence import Pooling
from rapidun.stages.influence.trace.hidden import Reader, hidden_scores, token_shares
from rapidun.stages.rows.encode import Encoded


def pooled(model: nn.Module, row: Encoded, pooling: Pooling, layer: int = -1) -> Tensor:
    """One row alone, without padding; response tokens are those whose label counts."""
    with torch.no_grad():
        states = model(input_ids=torch.tensor([row.input_ids]), output_hidden_states=True).hidden_states[layer][0]
    if pooling is Pooling.response:
        places = [t for t in range(1, len(row.labels)) if row.labels[t] != -100]
    else:
        places = [len(row.input_ids) - 1] if pooling is Pooling.last else list(range(len(row.input_ids)))
    return states[places].mean(dim=0)


@pytest.mark.parametrize("pooling", list(Pooling))
def test_scores_are_the_cosines_of_rows_alone(
    make_model: Callable[..., nn.Module], rows: Sequence[Encoded], pooling: Pooling
) -> None:
    model = make_model()
    reader = Reader(model, 0, -1, pooling, tokens_per_batch=30)
    trained, queries = list(rows[:5]), list(rows[5:])
    told: list[tuple[int, int]] = []
    found = hidden_scores(
        reader, queries, ["q", "r"], lambda a, b: trained[a:b], [f"row {i}" for i in range(5)], rows_at_once=2,
        on_rows=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    for i, row in enumerate(trained):
        for j, query in enumerate(queries):
            wanted = torch.cosine_similarity(pooled(model, row, pooling), pooled(model, query, pooling), dim=0)
            assert found[i, j] == pytest.approx(float(wanted), abs=1e-5)
    assert told[-1] == (5, 5)


@pytest.mark.parametrize("pooling", list(Pooling))
def test_token_shares_sum_to_the_cosine_on_both_sides(
    make_model: Callable[..., nn.Module], rows: Sequence[Encoded], pooling: Pooling
) -> None:
    model = make_model()
    query, train = rows[1], rows[2]
    found = token_shares(Reader(model, 0, -1, pooling, tokens_per_batch=30), query, train)
    wanted = torch.cosine_similarity(pooled(model, query, pooling), pooled(model, train, pooling), dim=0)
    assert found.score == pytest.approx(float(wanted))
    assert sum(found.query) == pytest.approx(found.score) and sum(found.train) == pytest.approx(found.score)
    assert (len(found.query), len(found.train)) == (len(query.input_ids), len(train.input_ids))


def test_what_cannot_be_taken_is_refused(make_model: Callable[..., nn.Module], rows: Sequence[Encoded]) -> None:
    model = make_model()

    def score(layer: int) -> None:
        reader = Reader(model, 0, layer, Pooling.response, tokens_per_batch=30)
        hidden_scores(reader, rows[:1], ["q"], lambda a, b: list(rows[a:b]), ["row a", "row b"], rows_at_once=2)

    with pytest.raises(ConfigError, match="--layer"):
        score(9)
    with torch.no_grad():
        model.get_input_embeddings().weight[rows[1].input_ids[-1]] = float("nan")
    with pytest.raises(ModelError, match="finite hidden states"):
        score(-1)
