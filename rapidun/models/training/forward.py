"""The forward pass of a training step: the response tokens of a padded batch under a model."""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.func import functional_call

from rapidun.models.packed import Packed, pack


def forward_packed(
    model: nn.Module, inputs: Mapping[str, Tensor], *, parameters: Mapping[str, Tensor] | None = None
) -> Packed:
    """The response tokens of a right-padded batch (input_ids, attention_mask, labels: [B, T]).

    Args: parameters: by name, to stand in for the model's own.
    """
    fed = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "use_cache": False}
    output = model(**fed) if parameters is None else functional_call(model, dict(parameters), kwargs=fed)
    return pack(output.logits, inputs["labels"])
