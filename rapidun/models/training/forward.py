"""The forward pass of a training step: the response tokens of a padded batch under a model."""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.func import functional_call

from rapidun.models.packed import Packed, pack


def forward_packed(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    *,
    parameters: Mapping[str, Tensor] | None = None,
    hidden_layer: int | None = None,
) -> Packed:
    """The response tokens of a right-padded batch (input_ids, attention_mask, labels: [B, T]).

    Args:
        parameters: by name, to stand in for the model's own.
        hidden_layer: also the output of this decoder block, counted from 0 (that of the last one comes after the
            final norm), at the same positions as the logits.
    """
    fed = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "use_cache": False}
    if hidden_layer is not None:
        fed["output_hidden_states"] = True
    output = model(**fed) if parameters is None else functional_call(model, dict(parameters), kwargs=fed)
    # the first of them are the embeddings
    hidden = None if hidden_layer is None else output.hidden_states[hidden_layer + 1]
    return pack(output.logits, inputs["labels"], hidden)
