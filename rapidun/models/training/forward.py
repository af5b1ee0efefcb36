"""The forward pass of a training step: the response tokens of a padded batch under a model, and no other position.

What a batch is given to a model as depends on what its code allows, tried out once for each architecture: rows laid end
to end without padding (packing.py), or padded; the output head at the positions that predict a response token, or at
all of them. The logits are the same but for rounding.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.func import functional_call

from rapidun.models.batching import nearness, two_prompts
from rapidun.models.losses import IGNORE, response_mask
from rapidun.models.packed import Packed
from rapidun.models.packing import can_switch, is_forward_only, is_switched, lay_out, running, switched


class Layout(NamedTuple):
    """How a model takes its batches."""

    # tokens of the longest row that may lie end to end with others; 0 = rows are padded
    longest: int
    # the output head runs at the positions that predict a response token only
    picks: bool
    # nothing comes after the head: it may run at some of these positions at a time
    bare: bool = False


PLAIN = Layout(longest=0, picks=False)
UNBOUNDED = 1 << 62

# logits that are made at once: what a core's outer cache holds
PART = 1 << 23

_copies: ContextVar[bool] = ContextVar("rapidun_copies", default=False)
_known: dict[tuple[object, ...], Layout] = {}
_trying = threading.Lock()


def forward_packed(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    *,
    parameters: Mapping[str, Tensor] | None = None,
    hidden_layer: int | None = None,
    cache: Any = None,
) -> Packed:
    """The response tokens of a right-padded batch (input_ids, attention_mask, labels: [B, T]).

    Args:
        parameters: by name, to stand in for the model's own.
        hidden_layer: also the output of this decoder block, counted from 0 (that of the last one comes after the
            final norm), at the same positions as the logits.
        cache: an empty one of transformers, to keep the layers' keys and values: [B, H, T, D], or [1, H, N, D] of the
            N tokens laid end to end. Not every architecture's cache can be used so: try before.
    """
    layout = _layout_for(model, inputs)
    if not _copies.get():
        return _forward(model, inputs, layout, parameters=parameters, hidden_layer=hidden_layer, cache=cache)
    own = {**dict(model.named_parameters()), **(parameters or {})}
    halves = {name: p.bfloat16() if p.dtype == torch.float32 else p for name, p in own.items()}
    with _no_autocast(inputs["input_ids"]):
        return _forward(model, inputs, layout, parameters=halves, hidden_layer=hidden_layer, cache=cache)


def forward_parts(model: nn.Module, inputs: Mapping[str, Tensor], *, cache: Any = None) -> Iterator[Packed]:
    """As `forward_packed`, within `fused` a few of the tokens at a time: logits are used while a cache holds them."""
    layout = _layout_for(model, inputs)
    if not (is_forward_only() and layout.bare):
        yield forward_packed(model, inputs, cache=cache)
        return
    states: list[Tensor] = []
    whole = _forward(model, inputs, layout, cache=cache, states=states)
    head = extract_model_from_parallel(model).get_output_embeddings()
    size = max(1, PART // whole.logits.shape[-1])
    for top in range(0, len(whole.targets), size):
        part = slice(top, top + size)
        logits = head(states[0][:, part])[0]
        yield Packed(logits, whole.targets[part], whole.rows[part], whole.num_rows)


def _layout_for(model: nn.Module, inputs: Mapping[str, Tensor]) -> Layout:
    layout = layout_of(model)
    if layout.longest and (
        int(inputs["attention_mask"].sum(dim=1).max()) > layout.longest or _is_run_again_unswitched(model)
    ):
        return layout._replace(longest=0)
    return layout


@contextmanager
def bfloat16_copies() -> Iterator[None]:
    """In here a forward pass runs on bfloat16 copies of float32 weights, made once for the pass; gradients are float32.

    Autocast casts as often, but holds what lies between the products in float32, and casts that at each of them.
    """
    token = _copies.set(True)
    try:
        yield
    finally:
        _copies.reset(token)


def _no_autocast(tensor: Tensor) -> torch.autocast:
    return torch.autocast(tensor.device.type, enabled=False)


def _is_run_again_unswitched(model: nn.Module) -> bool:
    """Whether the backward pass runs layers again, and nobody holds the switch till then."""
    bare = extract_model_from_parallel(model)
    again = torch.is_grad_enabled() and bool(getattr(bare, "is_activation_checkpointing", False))
    return again and not is_switched(bare)


def layout_of(model: nn.Module) -> Layout:
    """How this model takes its batches, found with five short rows and remembered in this process."""
    bare: Any = extract_model_from_parallel(model)
    base = bare.get_base_model() if hasattr(bare, "get_base_model") else bare
    first = next(bare.parameters())
    key = (type(bare), type(base), base.config.to_json_string(), first.dtype, first.device.type, can_switch(bare))
    with _trying:
        if key not in _known:
            _known[key] = _try(bare)
        return _known[key]


def _forward(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    layout: Layout,
    *,
    parameters: Mapping[str, Tensor] | None = None,
    hidden_layer: int | None = None,
    windows: set[int] | None = None,
    cache: Any = None,
    states: list[Tensor] | None = None,
) -> Packed:
    """Args: states: given what the head would be, [1, N, D]; the logits are those of the first position alone."""
    ids, attends, labels = inputs["input_ids"], inputs["attention_mask"], inputs["labels"]
    rows, columns = response_mask(labels).nonzero(as_tuple=True)
    fed: dict[str, Any] = {"use_cache": False} if cache is None else {"use_cache": True, "cache": cache}
    if hidden_layer is not None:
        fed["output_hidden_states"] = True
    with ExitStack() as stack:
        if layout.longest:
            laid = lay_out(ids, attends, rows, columns)
            places = torch.zeros_like(rows), laid.places
            fed |= {"input_ids": laid.input_ids, "position_ids": laid.position_ids}
            stack.enter_context(switched(extract_model_from_parallel(model)))
            stack.enter_context(running(laid.segments, set() if windows is None else windows))
        else:
            places = rows, columns - 1
            fed |= {"input_ids": ids, "attention_mask": attends}
        if layout.picks:
            stack.enter_context(_picked(model, places, tuple(fed["input_ids"].shape), states))
        output = model(**fed) if parameters is None else functional_call(model, dict(parameters), kwargs=fed)
    # the first hidden states are the embeddings
    hidden = None if hidden_layer is None else output.hidden_states[hidden_layer + 1][places]
    logits = output.logits[0] if layout.picks else output.logits[places]
    return Packed(logits, labels[rows, columns], rows, len(labels), hidden)


@contextmanager
def _picked(
    model: nn.Module, places: tuple[Tensor, Tensor], size: tuple[int, ...], states: list[Tensor] | None
) -> Iterator[None]:
    """Hand the output head nothing but these places of its [B, T, D] input, as [1, N, D]; or the first, all kept."""

    def pick(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not args or args[0].dim() != 3 or tuple(args[0].shape[:2]) != size:
            return None
        picked = args[0][places].unsqueeze(0)
        if states is not None:
            states.append(picked)
            picked = picked[:, :1]
        return (picked, *args[1:])

    head = extract_model_from_parallel(model).get_output_embeddings()
    handle = head.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()


def _is_bare(model: Any, batch: Mapping[str, Tensor], layout: Layout, truth: Tensor) -> bool:
    """Whether the head's own output is the logits."""
    states: list[Tensor] = []
    _forward(model, batch, layout, states=states)
    logits = model.get_output_embeddings()(states[0])[0]
    return logits.shape == truth.shape and nearness(model)(logits, truth)


@torch.no_grad()
def _try(model: Any) -> Layout:
    """The first layout that gives the logits of the plain one; whatever a model's code raises, it is none for it."""
    long, short = two_prompts(model, -1)
    head = short[:-1]
    # what leaks from row to row is seen: each has neighbours; the last two share their prompt with the first
    prompts = [short, long, short[::-1], head + long[::-1][: len(long) - len(head)], [*head, long[0]]]
    ids = torch.zeros(len(prompts), len(long), dtype=torch.long, device=next(model.parameters()).device)
    attends, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORE)
    for row, prompt in enumerate(prompts):
        given = torch.tensor(prompt)
        ids[row, : len(prompt)], attends[row, : len(prompt)] = given, 1
        labels[row, len(head) : len(prompt)] = given[len(head) :]
    batch = {"input_ids": ids, "attention_mask": attends, "labels": labels}
    candidates = [Layout(UNBOUNDED, True), Layout(UNBOUNDED, False)] if can_switch(model) else []
    training, near = model.training, nearness(model)
    model.eval()
    with ExitStack() as stack:
        stack.callback(model.train, training)
        stack.enter_context(_no_autocast(ids))
        truth = _forward(model, batch, PLAIN)
        for layout in [*candidates, Layout(0, True)]:
            windows: set[int] = set()
            try:
                found = _forward(model, batch, layout, windows=windows)
            except Exception:
                continue
            if found.logits.shape == truth.logits.shape and near(found.logits, truth.logits):
                longest = min(windows, default=layout.longest) if layout.longest else 0
                return Layout(longest, layout.picks, layout.picks and _is_bare(model, batch, layout, truth.logits))
    return PLAIN
