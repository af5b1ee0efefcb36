"""A tiny float64 model, rows with weights, and per-row gradients taken one by one by plain autograd."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rapidun.base.tracker import Tracker
from rapidun.config.unlearning import UnlearningConfig
from rapidun.models.load import ModelLoader
from rapidun.stages.rows.encode import encode_rows
from rapidun.stages.unlearning.edits.base import Given
from rapidun.stages.unlearning.edits.rows import EditFiles, EditRows, WeightedRow


class Said(Tracker):
    """Keeps what was said."""

    def __init__(self) -> None:
        super().__init__()
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture
def model(tiny_model: Any) -> Any:
    """Float64 throughout (Llama's own norms work in float32), with larger weights than a new model has."""
    for module in list(tiny_model.modules()):
        for name, norm in module.named_children():
            if type(norm).__name__ == "LlamaRMSNorm":
                setattr(module, name, torch.nn.RMSNorm(len(norm.weight), eps=norm.variance_epsilon))
    with torch.no_grad():
        for parameter in tiny_model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    return tiny_model.double()


@pytest.fixture(scope="session")
def make_rows(tiny_records: Any, tiny_tokenizer: Any) -> Callable[..., EditRows]:
    """`forget`, `retain`: the rows' weights; as many rows as there are weights."""

    def make(forget: Sequence[float] = (1.0,) * 4, retain: Sequence[float] = (1.0,) * 6) -> EditRows:
        groups = []
        for records, weights, texts in zip(tiny_records, (forget, retain), ("forget_texts", "texts"), strict=True):
            chosen = records[: len(weights)]
            encoded = encode_rows(tiny_tokenizer, [getattr(record, texts) for record in chosen], max_length=96)
            rows = zip(chosen, weights, encoded, strict=True)
            groups.append([WeightedRow(record.id, weight, row) for record, weight, row in rows if row and weight > 0])
        return EditRows(*groups, tiny_tokenizer.pad_token_id)

    return make


@pytest.fixture
def given(tmp_path: Path, tiny_tokenizer: Any) -> Callable[..., Given]:
    """What an edit is given: `model`, `rows`, files by name, settings of the section."""

    def make(model: Any, rows: EditRows, *, files: dict[str, Path] | None = None, **settings: Any) -> Given:
        cfg = UnlearningConfig(**settings)
        assert cfg.check() == []
        paths = {name: tmp_path / name for name in ("model", "forget", "retain", "forget_weights", "retain_weights")}
        return Given(
            model=model,
            tokenizer=tiny_tokenizer,
            rows=rows,
            cfg=cfg,
            files=EditFiles(**paths, out=tmp_path / "out", work=tmp_path / "work", **(files or {})),
            loader=ModelLoader(device="cpu"),
            max_length=96,
            seed=5,
            tracker=Said(),
        )

    return make


def losses_by_hand(model: Any, row: WeightedRow) -> Tensor:
    """l_i from the logits of the row alone, written out."""
    ids, labels = torch.tensor([row.encoded.input_ids]), row.encoded.labels
    log_probs = model(input_ids=ids).logits[0].log_softmax(dim=-1)
    terms = [-log_probs[t - 1, labels[t]] for t in range(1, len(labels)) if labels[t] != -100]
    return torch.stack(terms).mean()


@pytest.fixture
def gradient_by_hand() -> Callable[..., dict[str, Tensor]]:
    """The gradient of one row's loss, by name of the parameter; zeros where there is none."""

    def gradient(model: Any, row: WeightedRow) -> dict[str, Tensor]:
        named = dict(model.named_parameters())
        flags = {name: p.requires_grad for name, p in named.items()}
        for parameter in named.values():
            parameter.requires_grad_(True)
        found = torch.autograd.grad(losses_by_hand(model, row), list(named.values()), allow_unused=True)
        for name, parameter in named.items():
            parameter.requires_grad_(flags[name])
        return {
            name: torch.zeros_like(p) if g is None else g
            for (name, p), g in zip(named.items(), found, strict=True)
        }  # fmt: skip

    return gradient


@pytest.fixture
def loss_by_hand() -> Callable[..., Tensor]:
    return losses_by_hand
