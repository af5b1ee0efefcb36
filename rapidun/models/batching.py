"""Whether rows of a batch leave each other alone: tried out once for each architecture, on two short prompts.

Some architectures' code does not mask padding, or mixes up the states of a batch's rows; generating then depends on
the neighbours of a prompt. Where that is so, rows go one by one.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig

from rapidun.base.errors import ModelError
from rapidun.base.text import short_message

# what the norm of the difference may be, of that of the logits (less their mean): float32 leaves some 1e-6, halves and
# quantised weights some 1e-2, rows that change each other about 1
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
TOLERANCE_OF_HALVES = 0.15
# LLM.int8() keeps the columns in half precision in which some token of the batch is large: what stands beside or behind
# a token rounds it otherwise, by as much as eight bits do (.07 to .25 on a model of 135 million parameters)
TOLERANCE_OF_INT8 = 0.5
SHORT, LONG, NEW = 4, 11, 3
# settings of blocks that some architectures work in: padding must reach across one to be seen
BLOCKS = ("block_size", "chunk_size", "mamba_chunk_size", "chunk_length")
LONGEST = 300


class Batching(NamedTuple):
    """What holds for an architecture, as it is loaded."""

    # prompts padded on their left are continued as each alone is
    left: bool
    # rows padded on their right have the logits that each alone has
    right: bool
    # a step from the cache gives what the whole text gives
    cache: bool
    # no token's logits depend on those behind it
    causal: bool

    @property
    def notes(self) -> list[str]:
        """What to say of it; nothing where all is as it should be."""
        found = []
        if not self.left:
            found.append("prompts of one batch change each other's answers: they are continued one by one, more slowly")
        if not self.right:
            found.append("padding changes a row's logits: rows are scored one by one, more slowly")
        if not self.cache:
            found.append("a step from its cache differs from the whole text's: it generates without, more slowly")
        return found


_known: dict[tuple[object, ...], Batching] = {}


def batching(model: Any, *, pad_token_id: int) -> Batching:
    """Try two prompts together and alone; what was found for an architecture is remembered in this process.

    Raises: ModelError for a model that sees what stands behind a token, or that cannot generate.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    parameter = next(model.parameters())
    key = (type(base).__name__, base.config.to_json_string(), str(base.dtype), parameter.device.type, pad_token_id)
    if key not in _known:
        _known[key] = _try(model, pad_token_id)
    found = _known[key]
    if not found.causal:
        raise ModelError(
            f"model: need a causal language model, got a {type(base).__name__} in which a token's logits depend on the "
            "tokens behind it. Change model.path=... (an encoder needs is_decoder=true in its config.json)"
        )
    return found


def check_training(model: Any, *, pad_token_id: int, rows_at_once: int, section: str, mend: str) -> None:
    """See that the rows of a training step can be padded to one length.

    Args: rows_at_once: of one forward pass. mend: what to pass instead.
    Raises: ModelError, also for a model that is no causal language model.
    """
    if not batching(model, pad_token_id=pad_token_id).right and rows_at_once > 1:
        raise ModelError(
            f"{section}: need a model whose logits padding leaves alone, or one row at a time, got {rows_at_once} rows "
            f"at a time of a {type(model).__name__}, whose rows change each other. {mend}"
        )


def _try(model: Any, pad: int) -> Batching:
    prompts = two_prompts(model, pad)
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), neutral_generation_config(model):
            return _compare(model, prompts, pad)
    finally:
        model.train(training)


def two_prompts(model: Any, pad: int) -> list[list[int]]:
    """Two prompts of different lengths, neither holding the pad token."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    sizes = [getattr(config, name, None) for name in BLOCKS]
    blocks = [size for size in sizes if isinstance(size, int) and 0 < size <= LONGEST]
    window = getattr(config, "max_position_embeddings", None)
    length = LONG + 2 * max(blocks, default=0)
    if isinstance(window, int) and window > 0:
        length = min(length, window - NEW)
    size = int(model.get_input_embeddings().weight.shape[0])
    ids = [token for token in range(size) if token != pad][:997]
    return [
        [ids[(37 * place + 5) % len(ids)] for place in range(length)],
        [ids[(53 * p + 11) % len(ids)] for p in range(SHORT)],
    ]


def _compare(model: Any, prompts: list[list[int]], pad: int) -> Batching:
    near = nearness(model)
    whole = [logits_of(model, [row]) for row in prompts]
    long, short = prompts
    # all that stands behind a beginning is another: what sees it differs by much
    seen = min(SHORT, len(long) - 1)
    other = [*long[:seen], *(long[0] if token != long[0] else short[0] for token in long[seen:])]
    causal = near(logits_of(model, [other])[0, :seen], whole[0][0, :seen])
    padded = [long, short + [pad] * (len(long) - len(short))]
    mask = [[1] * len(long), [1] * len(short) + [0] * (len(long) - len(short))]
    together = logits_of(model, padded, mask)
    right = all(near(together[i, : len(row)], whole[i][0]) for i, row in enumerate(prompts))

    cache = True
    try:
        alone = [_continue(model, [row], pad, cache=True) for row in prompts]
        cache = all(
            near(logits[0], _steps(model, row, new[0])) for row, (logits, new) in zip(prompts, alone, strict=True)
        )
    except Exception:  # whatever the architecture's own code raises
        cache = False
    if not cache:
        try:
            alone = [_continue(model, [row], pad, cache=False) for row in prompts]
        except Exception as error:
            raise ModelError(
                f"model: need one that can generate, got {type(model).__name__} ({short_message(error)})"
            ) from error
    try:
        logits, new = _continue(model, prompts, pad, cache=cache)
        left = all(_same_steps(near, logits[i], new[i], alone[i][0][0], alone[i][1][0]) for i in range(len(prompts)))
    except Exception:
        left = False
    return Batching(left, right, cache, causal)


def nearness(model: Any) -> Callable[[Tensor, Tensor], bool]:
    """What tells whether two [..., V] logits are the same but for the model's rounding."""
    quantised = getattr(model, "quantization_method", None) is not None
    tolerance = TOLERANCE_OF_HALVES if quantised else TOLERANCE.get(model.dtype, TOLERANCE_OF_HALVES)
    if getattr(model, "is_loaded_in_8bit", False):
        tolerance = TOLERANCE_OF_INT8

    def near(one: Tensor, other: Tensor) -> bool:
        one, other = one.double(), other.double()
        spread = other - other.mean(dim=-1, keepdim=True)
        return float((one - other).norm()) <= tolerance * float(spread.norm()) + 1e-12

    return near


def _same_steps(
    near: Callable[[Tensor, Tensor], bool], one: Tensor, new: Tensor, other: Tensor, other_new: Tensor
) -> bool:
    """Logits step by step, for as long as the same tokens were added: a near tie may part two that are one."""
    for step in range(len(one)):
        if not near(one[step], other[step]):
            return False
        if int(new[step]) != int(other_new[step]):
            break
    return True


def logits_of(model: Any, rows: Sequence[list[int]], mask: Sequence[list[int]] | None = None) -> Tensor:
    """[B, T, V] of rows of one length, without a cache."""
    device = next(model.parameters()).device
    inputs = {"input_ids": torch.tensor(rows, device=device)}
    if mask is not None:
        inputs["attention_mask"] = torch.tensor(mask, device=device)
    found: Tensor = model(**inputs, use_cache=False).logits
    return found


def _continue(model: Any, rows: Sequence[list[int]], pad: int, *, cache: bool) -> tuple[Tensor, Tensor]:
    """[B, NEW, V] logits of the steps, [B, NEW] what was added, prompts padded on their left."""
    device = next(model.parameters()).device
    width = max(map(len, rows))
    config = GenerationConfig(
        do_sample=False, num_beams=1, max_new_tokens=NEW, pad_token_id=pad, use_cache=cache, output_logits=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    output = model.generate(
        input_ids=torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=device),
        attention_mask=torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device),
        generation_config=config,
    )
    return torch.stack(output.logits, dim=1), output.sequences[:, width:]


def _steps(model: Any, row: list[int], new: Tensor) -> Tensor:
    """[NEW, V]: the logits of the same steps, from the whole text at once."""
    return logits_of(model, [row + new[:-1].tolist()])[0, len(row) - 1 :]


@contextmanager
def neutral_generation_config(model: Any) -> Iterator[None]:
    """Put the model's own generation defaults aside for a while.

    `generate` fills whatever a given GenerationConfig leaves open from the model's own (repetition penalty, max_length,
    sampling, ...): greedy decoding would then mean something else for each model, and warn about it.
    """
    # a PEFT wrapper has one, and so has the model inside
    holders = [model, *([model.get_base_model()] if hasattr(model, "get_base_model") else [])]
    kept = [holder.generation_config for holder in holders]
    for holder in holders:
        holder.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for holder, config in zip(holders, kept, strict=True):
            holder.generation_config = config
