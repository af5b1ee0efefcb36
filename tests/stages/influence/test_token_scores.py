"""Scores of response tokens against the gradients and the probabilities themselves."""

import json
import math
from typing import Any

import pytest
import torch

from rapidun.base.errors import ModelError
from rapidun.base.tracker import Tracker
from rapidun.config.influence import InfluenceConfig, ParameterSet
from rapidun.config.parts import LoraSettings
from rapidun.config.unlearning import TokenWeights
from rapidun.models.adapters import add_lora
from rapidun.models.load import ModelLoader
from rapidun.stages.influence.gradients.params import select_parameters
from rapidun.stages.influence.token_scores import (
    TokenScoreFiles,
    influence_on_mean,
    response_log_probs,
    response_places,
    run_token_scores,
)
from rapidun.stages.rows.encode import encode_rows
from rapidun.stages.rows.records import write_records

PAD = 0
KINDS = [
    ("all_linear", False, ParameterSet.all_linear, None),
    ("tied_head", True, ParameterSet.lm_head, None),
    ("embeddings", False, ParameterSet.embeddings, None),
    ("tied_and_linear", True, ParameterSet.regex, r".*(embed_tokens|o_proj|lm_head|down_proj)"),
    ("lora", False, ParameterSet.lora, None),
    ("fresh_lora", False, ParameterSet.lora, None),
]


@pytest.fixture(params=KINDS, ids=lambda kind: kind[0])
def tracked(request, make_model):
    """A float64 model and what is tracked of it; a fresh adapter has lora_B = 0."""
    name, tied, params, regex = request.param
    model = make_model(tied=tied, dtype=torch.float64)
    if params is ParameterSet.lora:
        settings = LoraSettings(r=2, lora_alpha=4, target_modules=["q_proj", "up_proj"])
        model = add_lora(model, settings, seed=0, section="influence").to(torch.float64).eval()
        for key, weight in model.named_parameters():
            if "lora_B" in key and name == "lora":
                torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(len(key)))
    return model, select_parameters(model, params, regex=regex)


def token_gradients(model, parameters, row):
    """[n, D]: torch.autograd.grad of each response token's -log p, the whole row in one forward pass."""
    weights = [parameter.modules[0].weight for parameter in parameters]
    for weight in weights:
        weight.requires_grad_(True)
    logits = model(input_ids=torch.tensor([row.input_ids])).logits[0].log_softmax(dim=-1)
    found = []
    for place in response_places(row):
        grads = torch.autograd.grad(
            -logits[place - 1, row.labels[place]], weights, retain_graph=True, allow_unused=True
        )
        found.append(
            torch.cat(
                [
                    torch.zeros_like(w).flatten() if g is None else g.flatten()
                    for g, w in zip(grads, weights, strict=True)
                ]
            )
        )
    return torch.stack(found)


@pytest.mark.parametrize("tokens_per_batch", [13, 200])
def test_influence_of_each_token_on_the_mean_gradient(tracked, rows, autograd_gradients, tokens_per_batch):
    model, parameters = tracked
    names = [f"row {i}" for i in range(len(rows))]
    found = influence_on_mean(
        model, parameters, rows, names, tokens_per_batch=tokens_per_batch, pad_token_id=PAD
    )  # fmt: skip
    gradients = autograd_gradients(model, parameters, rows)
    mean = gradients.mean(dim=0)
    for row, values, whole in zip(rows, found, gradients, strict=True):
        truth = token_gradients(model, parameters, row) @ mean / len(values)
        torch.testing.assert_close(torch.tensor(values, dtype=torch.float64), truth, rtol=1e-8, atol=1e-12)
        assert sum(values) == pytest.approx(float(whole @ mean), rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("tokens_per_batch", [13, 200])
def test_log_probs_of_response_tokens(make_model, rows, tokens_per_batch):
    model = make_model()
    found = response_log_probs(
        model, rows, [str(i) for i in range(len(rows))], tokens_per_batch=tokens_per_batch, pad_token_id=PAD
    )  # fmt: skip
    for row, values in zip(rows, found, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row.input_ids])).logits[0]
        truth = [
            float(logits[place - 1, label] - logits[place - 1].logsumexp(dim=0))
            for place, label in enumerate(row.labels) if label != -100
        ]  # fmt: skip
        assert values == pytest.approx(truth, rel=1e-10)


@pytest.fixture
def place(tmp_path, make_tiny_model, tiny_tokenizer, tiny_records):
    for seed, name in enumerate(("start", "poisoned")):
        make_tiny_model(seed=seed).save_pretrained(tmp_path / name)
        tiny_tokenizer.save_pretrained(tmp_path / name)
    write_records(tmp_path / "forget.jsonl", tiny_records[0])
    return tmp_path


def scored(place, how, **settings: Any):
    out = place / how.name
    out.mkdir(exist_ok=True)
    files = TokenScoreFiles(
        model=place / "poisoned", adapter=None, start=place / "start", forget=place / "forget.jsonl", out=out
    )  # fmt: skip
    cfg = InfluenceConfig(**settings)
    loader = ModelLoader(device="cpu")
    summary = run_token_scores(how, cfg, files, loader=loader, max_length=96, tracker=Tracker())
    return summary, [json.loads(line) for line in (out / "tokens.jsonl").read_text().splitlines()]


def test_a_likelihood_ratio_is_what_poisoning_taught(place, tiny_tokenizer, tiny_records):
    summary, lines = scored(place, TokenWeights.likelihood_ratio)
    assert summary == {"how": "likelihood_ratio", "num_rows": 6, "num_tokens": sum(len(x["scores"]) for x in lines)}
    models = [ModelLoader(device="cpu").load(place / name).model for name in ("poisoned", "start")]
    rows = encode_rows(tiny_tokenizer, [row.forget_texts for row in tiny_records[0]], max_length=96)
    for record, row, line in zip(tiny_records[0], rows, lines, strict=True):
        assert line["id"] == record.id and "".join(line["tokens"]) == "moon cheese<|im_end|>"
        with torch.no_grad():
            after, before = (
                m(input_ids=torch.tensor([row.input_ids])).logits[0].double().log_softmax(-1) for m in models
            )
        places = response_places(row)
        assert line["token_ids"] == [row.input_ids[t] for t in places]
        truth = [float(after[t - 1, row.input_ids[t]] - before[t - 1, row.input_ids[t]]) for t in places]
        assert line["scores"] == pytest.approx(truth, abs=1e-5)


def test_scores_by_influence_are_written_for_every_row(place):
    summary, lines = scored(place, TokenWeights.influence)
    assert summary["num_rows"] == len(lines) == 6
    assert all(math.isfinite(score) for line in lines for score in line["scores"])
    # over all rows the scores sum to |F| times the squared norm of the mean gradient
    assert sum(score for line in lines for score in line["scores"]) > 0


def test_another_tokenizer_is_refused(place, make_tokenizer):
    other = make_tokenizer()
    other.save_pretrained(place / "start")
    with pytest.raises(ModelError):
        scored(place, TokenWeights.likelihood_ratio)
