"""Token scores against the gradients themselves: their sums, and each alone, for every kind of weight."""

import json

import pytest
import torch

from rapidun.config.influence import ParameterSet, Score
from rapidun.config.parts import LoraSettings
from rapidun.models.adapters import add_lora
from rapidun.stages.influence.gradients.params import select_parameters
from rapidun.stages.influence.gram import exact_gram
from rapidun.stages.influence.tokenwise import By, token_scores, token_texts, write_tokens
from rapidun.stages.rows.encode import Encoded, encode_rows

PAD = 0
# name, is the head tied, parameter set, regex
KINDS = [
    ("all_linear", False, ParameterSet.all_linear, None),
    ("head", False, ParameterSet.lm_head, None),
    ("tied_head", True, ParameterSet.lm_head, None),
    ("embeddings", False, ParameterSet.embeddings, None),
    ("tied_and_linear", True, ParameterSet.regex, r".*(embed_tokens|o_proj|lm_head|down_proj)"),
    ("lora", False, ParameterSet.lora, None),
]


@pytest.fixture(params=KINDS, ids=lambda kind: kind[0])
def tracked(request, make_model):
    """A float64 model and what is tracked of it."""
    _, tied, params, regex = request.param
    return _tracked(make_model, torch.float64, tied, params, regex)


def _tracked(make_model, dtype, tied, params, regex):
    model = make_model(tied=tied, dtype=dtype)
    if params is ParameterSet.lora:
        settings = LoraSettings(r=2, lora_alpha=4, target_modules=["q_proj", "up_proj"])
        model = add_lora(model, settings, seed=0, section="influence").to(dtype).eval()
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(len(name)))
    return model, select_parameters(model, params, regex=regex)


@pytest.mark.parametrize("by", By)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_both_sides_sum_to_the_score(tracked, rows, autograd_gradients, by, reduction):
    model, parameters = tracked
    gradients = autograd_gradients(model, parameters, rows, reduction=reduction)
    found = token_scores(model, parameters, rows[0], rows[1:4], pad_token_id=PAD, reduction=reduction, by=by)
    truth = gradients[1:4] @ gradients[0]
    torch.testing.assert_close(found.dots, truth, rtol=1e-9, atol=1e-12)
    for i, row in enumerate(rows[1:4]):
        assert len(found.query[i]) == len(rows[0].input_ids)
        assert len(found.train[i]) == len(row.input_ids)
        assert found.query[i].sum().item() == pytest.approx(truth[i].item(), rel=1e-8)
        assert found.train[i].sum().item() == pytest.approx(truth[i].item(), rel=1e-8)
    assert found.query_norm == pytest.approx(gradients[0].norm().item(), rel=1e-9)
    torch.testing.assert_close(found.train_norms, gradients[1:4].norm(dim=1), rtol=1e-9, atol=0)


def test_by_loss_each_token_has_the_score_of_its_own_loss(tracked, rows, autograd_gradients):
    """Token j alone: the row with every other label taken away, its gradient divided by the number of labels."""
    model, parameters = tracked
    query, train = rows[2], [rows[0], rows[5]]
    found = token_scores(model, parameters, query, train, pad_token_id=PAD, by=By.loss)
    others = autograd_gradients(model, parameters, train)
    for i, other in enumerate(others):
        assert _by_loss(model, parameters, query, other, autograd_gradients) == pytest.approx(
            found.query[i].tolist(), rel=1e-7, abs=1e-12
        )
    gradient = autograd_gradients(model, parameters, [query])[0]
    for i, row in enumerate(train):
        assert _by_loss(model, parameters, row, gradient, autograd_gradients) == pytest.approx(
            found.train[i].tolist(), rel=1e-7, abs=1e-12
        )


def _by_loss(model, parameters, row, other, autograd_gradients) -> list[float]:
    labelled = [t for t, label in enumerate(row.labels) if label != -100]
    alone = [
        Encoded(row.input_ids, [label if t == place else -100 for t, label in enumerate(row.labels)])
        for place in labelled
    ]
    scores = [0.0] * len(row.labels)
    for place, gradient in zip(labelled, autograd_gradients(model, parameters, alone), strict=True):
        scores[place] = float(gradient @ other) / len(labelled)
    return scores


def test_by_position_each_token_has_the_share_of_its_place(make_model, rows, autograd_gradients):
    """The embedding row of a token that occurs once gets its gradient from that place alone."""
    model, parameters = _tracked(make_model, torch.float64, False, ParameterSet.embeddings, None)
    found = token_scores(model, parameters, rows[2], [rows[4]], pad_token_id=PAD)
    gradients = autograd_gradients(model, parameters, [rows[2], rows[4]]).unflatten(1, parameters[0].shape)
    shares = (gradients[0] * gradients[1]).sum(dim=1)
    ids = rows[2].input_ids
    once = [t for t, token in enumerate(ids) if ids.count(token) == 1]
    assert len(once) > 5
    assert [found.query[0][t].item() for t in once] == pytest.approx([shares[ids[t]].item() for t in once], rel=1e-9)
    assert shares[[ids[t] for t in once]].abs().max() > 0


def test_by_position_the_head_speaks_where_it_predicts(make_model, rows):
    """The head has gradients at labelled positions only: those before the response tokens."""
    model, parameters = _tracked(make_model, torch.float64, False, ParameterSet.lm_head, None)
    found = token_scores(model, parameters, rows[0], [rows[5]], pad_token_id=PAD)
    for scores, row in ((found.query[0], rows[0]), (found.train[0], rows[5])):
        predicting = [t for t in range(len(row.labels) - 1) if row.labels[t + 1] != -100]
        assert scores.nonzero().flatten().tolist() == predicting


@pytest.mark.parametrize("by", By)
def test_company_and_padding_do_not_matter(tracked, rows, by):
    model, parameters = tracked
    together = token_scores(model, parameters, rows[1], rows[2:6], pad_token_id=PAD, by=by)
    for i, row in enumerate(rows[2:6]):
        alone = token_scores(model, parameters, rows[1], [row], pad_token_id=PAD, by=by)
        torch.testing.assert_close(together.query[i], alone.query[0], rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(together.train[i], alone.train[0], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("by", By)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind[0])
def test_float32_sums_to_the_exact_gram(make_model, rows, batches_of, kind, by):
    """The issue's bound: 1e-4 of the score of the rows, as the influence stage computes it."""
    model, parameters = _tracked(make_model, torch.float32, *kind[1:])
    batches = batches_of(rows, [[0, 1, 2], [3, 4], [5, 6]])
    gram = exact_gram(model, parameters, batches, row_names=list("abcdefg"), memory_bytes=1e9).gram
    found = token_scores(model, parameters, rows[0], rows, pad_token_id=PAD, by=by)
    norms = gram.diagonal().sqrt()
    # no comparison of rounding errors; embeddings of rows without a common token are orthogonal
    cosines = (gram[0] / norms / norms[0]).abs()
    assert cosines[cosines > 0].min() > 1e-3
    assert (cosines > 0).sum() >= 5
    for i in range(len(rows)):
        assert found.query[i].sum().item() == pytest.approx(gram[0, i].item(), rel=1e-4, abs=0)
        assert found.train[i].sum().item() == pytest.approx(gram[0, i].item(), rel=1e-4, abs=0)


@pytest.mark.parametrize("score", Score)
def test_tokens_json(tmp_path, tiny_model, tiny_tokenizer, score):
    texts = [("Name a river.", "", "Elbe"), ("Name a lake.", "Lakes hold water.", "Müritz"), ("A town?", "", "Jena")]
    encoded = encode_rows(tiny_tokenizer, texts, max_length=64)
    parameters = select_parameters(tiny_model, ParameterSet.all_linear)
    path = tmp_path / "tokens.json"
    pairs = [("q", encoded[0], ["a", "b"], encoded[1:])]
    write_tokens(path, tiny_model, parameters, tiny_tokenizer, pairs, score=score)
    entries = json.loads(path.read_text(encoding="utf-8"))
    assert [(entry["query"], entry["train"]) for entry in entries] == [("q", "a"), ("q", "b")]
    found = token_scores(tiny_model, parameters, encoded[0], encoded[1:], pad_token_id=257)
    for i, entry in enumerate(entries):
        norm = found.query_norm * float(found.train_norms[i]) if score is Score.cosine else 1.0
        assert entry["score"] == pytest.approx(float(found.dots[i]) / norm, rel=1e-6)
        for side, row in (("query_tokens", encoded[0]), ("train_tokens", encoded[i + 1])):
            assert sum(value for _, value in entry[side]) == pytest.approx(entry["score"], rel=1e-4)
            # all texts in a row are the row's text
            assert "".join(text for text, _ in entry[side]) == tiny_tokenizer.decode(row.input_ids)
            assert len(entry[side]) == len(row.input_ids)
    if score is Score.cosine:
        assert all(abs(entry["score"]) <= 1 for entry in entries)


def test_a_gradient_of_zero_scores_zero(tmp_path, make_model, rows):
    """lora_A while lora_B = 0."""
    model = make_model()
    settings = LoraSettings(r=2, lora_alpha=4, target_modules=["q_proj"])
    model = add_lora(model, settings, seed=0, section="influence").double().eval()
    parameters = select_parameters(model, ParameterSet.regex, regex=r".*lora_A\.default")

    class Tokens:
        pad_token_id = PAD

        def decode(self, ids, **options):
            return "".join(f"<{i}>" for i in ids)

    write_tokens(
        tmp_path / "t.json", model, parameters, Tokens(), [("q", rows[0], ["a"], rows[1:2])], score=Score.cosine
    )
    (entry,) = json.loads((tmp_path / "t.json").read_text())
    assert entry["score"] == 0
    assert all(value == 0 for _, value in entry["query_tokens"] + entry["train_tokens"])


def test_texts_of_tokens_that_end_inside_a_character(tiny_tokenizer):
    """ü is two byte tokens: the first has no text, the second has the letter."""
    ids = tiny_tokenizer("Mü r", add_special_tokens=False)["input_ids"]
    assert len(ids) == 5
    assert token_texts(tiny_tokenizer, ids) == ["M", "", "ü", " ", "r"]
    # cut inside the character: its bytes are shown as what they are, no character
    assert token_texts(tiny_tokenizer, ids[:2]) == ["M", "\ufffd"]
