"""Hidden-state similarity: the inner products of the rows' pooled hidden states, in the place of gradients'."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from rapidun.base.errors import ConfigError
from rapidun.config.influence import Pooling
from rapidun.models.losses import example_cross_entropy, response_mask
from rapidun.stages.influence.batches import RowBatch
from rapidun.stages.influence.gradients.capture import frozen
from rapidun.stages.influence.gram import GramResult, OnBatch, check_finite, gram_of_rows


def mean_of_response(hidden: Tensor, *, labels: Tensor, attention_mask: Tensor) -> Tensor:
    """[B, T, H] -> [B, H]: mean over the positions of response tokens."""
    return _masked_mean(hidden, response_mask(labels))


def mean_of_all(hidden: Tensor, *, labels: Tensor, attention_mask: Tensor) -> Tensor:
    """[B, T, H] -> [B, H]: mean over every position but padding."""
    return _masked_mean(hidden, attention_mask.bool())


def last_token(hidden: Tensor, *, labels: Tensor, attention_mask: Tensor) -> Tensor:
    """[B, T, H] -> [B, H]: the last position that is no padding."""
    positions = torch.arange(hidden.shape[1], device=hidden.device)
    last = (attention_mask.bool() * positions).amax(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


POOLINGS: dict[Pooling, Callable[..., Tensor]] = {
    Pooling.response: mean_of_response,
    Pooling.all: mean_of_all,
    Pooling.last: last_token,
}


@torch.no_grad()
def repsim_gram(
    model: nn.Module,
    batches: Sequence[RowBatch],
    *,
    row_names: Sequence[str],
    layer: int,
    pooling: Pooling,
    reduction: str = "mean",
    on_batch: OnBatch | None = None,
) -> GramResult:
    """<h_i, h_j> for all pairs of rows, h the pooled hidden state: one forward pass, no gradients.

    Args:
        row_names: [N], for messages.
        layer: 0 = the embeddings, l = the output of block l, the last one after the final norm; negative from the end.
        reduction: of the losses that are returned, `mean` or `sum` over response tokens.
        on_batch: told (batches done, batches in all, note).
    Raises: ConfigError for a layer that the model lacks, ArithmeticError if a hidden state is not finite.
    Source: representational similarity as an influence baseline, Choi et al. 2024 (arXiv 2409.19998).
    """
    vectors: Tensor | None = None
    losses = torch.zeros(len(row_names), dtype=torch.float64)
    with frozen(model):
        for done, batch in enumerate(batches, start=1):
            tensors = batch.tensors
            output = model(
                input_ids=tensors["input_ids"],
                attention_mask=tensors["attention_mask"],
                use_cache=False,
                output_hidden_states=True,
            )
            states = output.hidden_states
            if not -len(states) <= layer < len(states):
                raise ConfigError(
                    f"influence: need {-len(states)} <= layer < {len(states)} for this model, got layer={layer}. "
                    "Change conf/influence/repsim.yaml or pass influence.layer=..."
                )
            hidden = states[layer]
            hidden = hidden if hidden.dtype == torch.float64 else hidden.float()
            pooled = POOLINGS[pooling](hidden, labels=tensors["labels"], attention_mask=tensors["attention_mask"])
            if vectors is None:
                vectors = pooled.new_zeros(len(row_names), pooled.shape[1])
            vectors[batch.rows] = pooled
            values = example_cross_entropy(output.logits, tensors["labels"])
            if reduction == "sum":
                values = values * response_mask(tensors["labels"]).sum(dim=1)
            losses[batch.rows] = values.double().cpu()
            if on_batch is not None:
                on_batch(done, len(batches), "")
    if vectors is None:
        raise ValueError("need at least one batch")
    check_finite(losses, row_names, "loss")
    check_finite(vectors.square().sum(dim=1), row_names, "hidden state")
    return GramResult(gram_of_rows(vectors).cpu(), losses, 1)


def _masked_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    weights = mask.to(hidden.dtype).unsqueeze(2)
    # masked positions may hold anything: they are left out, not multiplied by 0
    return torch.where(mask.unsqueeze(2), hidden, 0).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
