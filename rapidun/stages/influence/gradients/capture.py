"""Per-sample gradients from hooks: what went into each layer, and the gradient of what came out.

For y = x W^T the gradient of example b is dW_b = sum_t g_t x_t^T, with x the layer's input and g the loss's gradient
with respect to y. No weight gradient is ever taken, so quantised and frozen layers work like any other.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rapidun.base.errors import ModelError
from rapidun.models.attention import faster_attention, is_causal
from rapidun.models.losses import PackedCrossEntropy, example_cross_entropy, response_mask
from rapidun.stages.influence.gradients.lora import Branch, bypassed, plain_branches
from rapidun.stages.influence.gradients.params import TrackedParameter, output_head

# raised when a capture's gradients change in any digit
CAPTURE_VERSION = 2
# float16 gradients below 6e-8 would vanish; the factor is divided out of every captured gradient
FLOAT16_LOSS_SCALE = 1024.0


class Factors(NamedTuple):
    """The gradient of an nn.Linear (a Conv1D: its transpose), not yet multiplied out: G_b = sum_t g[b, t] a[b, t]^T."""

    a: Tensor  # [B, T, in]
    g: Tensor  # [B, T, out]

    @property
    def nbytes(self) -> int:
        return self.a.nbytes + self.g.nbytes

    def product(self, rows: slice, columns: slice, *, dtype: torch.dtype, row_signs: Tensor | None = None) -> Tensor:
        """Rows and columns of G, [B, num_rows, num_columns], multiplied out in `dtype`; row_signs [num_rows] on g."""
        g, a = self.g[:, :, rows].to(dtype), self.a[:, :, columns].to(dtype)
        if row_signs is not None:
            g = g * row_signs.to(dtype)
        return torch.bmm(g.transpose(1, 2), a)


class Lookup(NamedTuple):
    """The gradient of an nn.Embedding: row v of G_b is the sum of g[b, t] over the places t that looked v up."""

    ids: Tensor  # [B, T] int64; -1 where a lookup gets no gradient (padding_idx)
    g: Tensor  # [B, T, dim]

    @property
    def nbytes(self) -> int:
        return self.ids.nbytes + self.g.nbytes

    def product(self, rows: slice, columns: slice, *, dtype: torch.dtype, row_signs: Tensor | None = None) -> Tensor:
        """As `Factors.product`; repeated tokens add up in float32 at least."""
        dtype = torch.promote_types(dtype, torch.float32)
        g = self.g[:, :, columns]
        num_rows = rows.stop - rows.start
        batch, place = ((self.ids >= rows.start) & (self.ids < rows.stop)).nonzero(as_tuple=True)
        local = self.ids[batch, place] - rows.start
        picked = g[batch, place].to(dtype)
        if row_signs is not None:
            picked = picked * row_signs.to(dtype)[local].unsqueeze(1)
        out = torch.zeros(len(self.ids) * num_rows, g.shape[2], dtype=dtype, device=g.device)
        return out.index_add_(0, batch * num_rows + local, picked).view(len(self.ids), num_rows, -1)


Contribution = Factors | Lookup
Sink = Callable[[TrackedParameter, Contribution], None]


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Hold a model in eval mode with every parameter frozen; both are as before afterwards, whatever happens."""
    parameters = [(p, p.requires_grad) for p in model.parameters()]
    modes = [(m, m.training) for m in model.modules()]
    try:
        model.eval()
        for parameter, _ in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in parameters:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode


class GradientCapture:
    """Runs batches through a model and hands each tracked layer's per-sample gradient to a sink.

    The graph starts at the output of the earliest tracked layer: what lies below it runs without one. The
    output head sees only the positions that predict a response token. A context manager: hooks, frozen
    parameters and eval mode end with it.
    """

    def __init__(self, model: nn.Module, parameters: Sequence[TrackedParameter], sink: Sink) -> None:
        self._model = model
        self._parameters = list(parameters)
        self._sink = sink
        self._head = output_head(model)
        self._head_ids = {id(m) for m in self._head.modules()} if self._head is not None else set()
        self._handles: list[RemovableHandle] = []
        self._sees_no_padding = is_causal(model)
        # then all gradients may be zero, and there is no graph
        self._has_zero_branch = False
        self._held = ExitStack()
        # weights that gave a gradient; None once that has been looked into
        self._seen: set[str] | None = set()
        # of the batch that is running
        self._size = (0, 0)  # B, T
        self._picked: tuple[Tensor, Tensor] | None = None  # example and position of each row the head sees
        self._is_packed = False
        self._scale = 1.0

    def __enter__(self) -> Self:
        self._held.enter_context(frozen(self._model))
        self._held.enter_context(faster_attention(self._model))
        branches = plain_branches(self._model)
        self._held.enter_context(bypassed(branches))
        self._has_zero_branch = any(branch.is_zero for branch in branches)
        factors = {id(module) for branch in branches for module in (branch.down, branch.up)}
        tracked = {}
        for parameter in self._parameters:
            for module in parameter.modules:
                tracked[id(module)] = parameter
                if id(module) not in factors:
                    self._handles.append(module.register_forward_hook(self._forward_hook(parameter), with_kwargs=True))
        for branch in branches:
            hook = self._branch_hook(branch, tracked.get(id(branch.down)), tracked.get(id(branch.up)))
            self._handles.append(branch.layer.register_forward_hook(hook, with_kwargs=True))
        if self._head is not None:
            self._handles.append(self._head.register_forward_pre_hook(self._pick_positions))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._picked = None
        self._held.__exit__(kind, error, trace)

    def _check_all_seen(self, batch: dict[str, Tensor]) -> None:
        """Look for weights that the model uses without calling their layers, such as the factors of an adapter on
        fused experts: they have a gradient, and no hook sees it. Experts that got no token have none.

        Raises: ModelError naming them.
        """
        assert self._seen is not None
        silent = [p for p in self._parameters if p.name not in self._seen]
        self._seen = None
        found = {p.name: p.modules[0].weight for p in silent}
        weights = {n: w for n, w in found.items() if isinstance(w, Tensor) and w.dtype.is_floating_point}
        if not weights:
            return
        self.__exit__(None, None, None)
        try:
            missed = [name for name, size in _gradient_sizes(self._model, weights, batch).items() if size]
        finally:
            self.__enter__()
        if missed:
            raise ModelError(
                "influence: need weights whose layers the model calls, got some that it uses otherwise, so that their "
                f"gradients cannot be captured: {', '.join(missed[:5])}{', ...' if len(missed) > 5 else ''}. "
                "Leave them out by influence.params=regex influence.regex=..."
            )

    def run(self, batch: dict[str, Tensor], *, reduction: str = "mean") -> Tensor:
        """Forward and backward of one batch; the sink is called once per tracked layer and call.

        What it gets has no tokens, T = 0, where a gradient is zero whatever the data (lora_A while B = 0).

        Args:
            batch: input_ids, attention_mask, labels, each [B, T], padded on the right.
            reduction: `mean` or `sum` over an example's response tokens.
        Returns: [B] the examples' losses (nats per token, or nats), detached.
        Raises: ModelError if a layer's input cannot be told apart by example, if a tracked weight has a gradient that
            no hook sees, or if the loss depends on none.
        """
        labels = batch["labels"]
        mask = response_mask(labels)
        rows, places = mask.nonzero(as_tuple=True)
        self._picked = (rows, places - 1)
        self._size = (labels.shape[0], labels.shape[1])
        self._is_packed = False
        attends = batch["attention_mask"]
        if self._sees_no_padding:
            # padding on the right is seen by padding only: plain causal attention needs no mask
            attends = torch.ones_like(attends)
        with torch.enable_grad():
            output = self._model(input_ids=batch["input_ids"], attention_mask=attends, use_cache=False)
            losses = self._losses(output.logits, labels, mask)
            if reduction == "sum":
                losses = losses * mask.sum(dim=1)
            self._scale = FLOAT16_LOSS_SCALE if output.logits.dtype == torch.float16 else 1.0
            # no example's loss depends on another example: one backward pass gives each its own gradient
            if losses.requires_grad:
                (losses.sum() * self._scale).backward()
            elif not self._has_zero_branch:
                raise ModelError(
                    "influence: need a loss that depends on the weights of influence.params, got one that depends on "
                    "none of them: is their adapter merged or switched off?"
                )
        if self._seen is not None:
            self._check_all_seen(batch)
        return losses.detach()

    def _losses(self, logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        if not self._is_packed:
            return example_cross_entropy(logits, labels)
        values = PackedCrossEntropy.apply(logits[0], labels[mask])
        rows = mask.nonzero(as_tuple=True)[0]
        sums = torch.zeros(len(labels), dtype=values.dtype, device=values.device).index_add(0, rows, values)
        return sums / mask.sum(dim=1).clamp(min=1)

    def _pick_positions(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._picked is None or not args or args[0].shape[:2] != self._size or args[0].dim() != 3:
            return None
        self._is_packed = True
        # [B, T, H] -> [1, num labelled, H]
        return (args[0][self._picked].unsqueeze(0), *args[1:])

    def _forward_hook(self, parameter: TrackedParameter) -> Callable[..., Tensor | None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
            if not torch.is_grad_enabled():
                return None
            if not isinstance(output, Tensor):
                raise ModelError(
                    f"influence: need layers that return one tensor, got a {type(output).__name__} from "
                    f"{parameter.name}. Leave it out by influence.params=regex influence.regex=..."
                )
            given = _input(args, kwargs).detach()
            started = _start_graph(output)
            started.register_hook(lambda grad: self._emit(parameter, module, given, grad))
            return started

        return hook

    def _branch_hook(
        self, branch: Branch, down: TrackedParameter | None, up: TrackedParameter | None
    ) -> Callable[..., Tensor]:
        """Adds a LoRA branch to its layer's output, and emits the gradients of those factors that are tracked."""

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
            given = _input(args, kwargs)
            if branch.is_zero:
                # dA = 0, and nothing goes back through the branch
                if (up is None and down is None) or not torch.is_grad_enabled():
                    return output
                reduced = branch.reduce(given.detach())
                if down is not None:
                    self._hand_on(down, Factors(*(given.new_zeros(self._size[0], 0, n) for n in down.shape[::-1])))
            else:
                reduced = branch.reduce(given)
                if down is not None and torch.is_grad_enabled():
                    reduced = _start_graph(reduced)
                    reduced.register_hook(partial(self._emit, down, branch.down, given.detach()))
                output = branch.add(output, reduced)
            if up is not None and torch.is_grad_enabled():
                seen = reduced.detach() * branch.scaling
                output = _start_graph(output)
                output.register_hook(lambda grad: self._emit(up, branch.up, seen, grad))
            return output

        return hook

    @torch.no_grad()
    def _emit(self, parameter: TrackedParameter, module: nn.Module, given: Tensor, grad: Tensor) -> None:
        if self._scale != 1.0:
            grad = grad.float() / self._scale
        if isinstance(module, nn.Embedding):
            ids = given
            if module.padding_idx is not None:
                # autograd gives the padding row no gradient
                ids = ids.masked_fill(ids == module.padding_idx, -1)
            if ids.shape != self._size:
                raise _not_separable(parameter, ids)
            self._hand_on(parameter, Lookup(ids, grad))
            return
        if self._is_packed and id(module) in self._head_ids:
            given, grad = self._unpack(given), self._unpack(grad)
        elif given.dim() == 2 and given.shape[0] == self._size[0] * self._size[1]:
            # some architectures run their MLP on [B * T, H]
            given, grad = given.unflatten(0, self._size), grad.unflatten(0, self._size)
        elif given.dim() > 3 and given.shape[0] == self._size[0]:
            # [B, 1, T, H] and the like
            given, grad = given.flatten(1, -2), grad.flatten(1, -2)
        if given.dim() != 3 or given.shape[0] != self._size[0]:
            raise _not_separable(parameter, given)
        self._hand_on(parameter, Factors(given, grad))

    def _hand_on(self, parameter: TrackedParameter, gradient: Contribution) -> None:
        if self._seen is not None:
            self._seen.add(parameter.name)
        self._sink(parameter, gradient)

    def _unpack(self, packed: Tensor) -> Tensor:
        """[1, num labelled, D] -> [B, most labelled, D], zeros where an example has fewer."""
        assert self._picked is not None
        rows = self._picked[0]
        counts = torch.bincount(rows, minlength=self._size[0])
        starts = counts.cumsum(0) - counts
        places = torch.arange(len(rows), device=rows.device) - starts[rows]
        out = packed.new_zeros(self._size[0], int(counts.max()), packed.shape[2])
        return out.index_put_((rows, places), packed[0])


def shared_inputs(model: nn.Module, parameters: Sequence[TrackedParameter], batch: dict[str, Tensor]) -> dict[str, int]:
    """Which layers are called with the same tensor: by name of the weight, a number that those that share it have.

    Found by a forward pass of the batch's first row. Weights of several layers, and embeddings, are left out.
    """
    given: dict[str, Tensor] = {}

    def look(name: str) -> Callable[..., None]:
        return lambda module, args, kwargs: given.update({name: _input(args, kwargs)})

    handles = [
        parameter.modules[0].register_forward_pre_hook(look(parameter.name), with_kwargs=True)
        for parameter in parameters
        if len(parameter.modules) == 1 and not isinstance(parameter.modules[0], nn.Embedding)
    ]
    try:
        with frozen(model), torch.no_grad():
            model(input_ids=batch["input_ids"][:1], attention_mask=batch["attention_mask"][:1], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    # all are alive: no two of them have the same memory by chance
    return {name: tensor.data_ptr() for name, tensor in given.items()}


def _input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """What a layer was called with."""
    given: Tensor = args[0] if args else next(iter(kwargs.values()))
    return given


def _start_graph(output: Tensor) -> Tensor:
    """Where nothing tracked lies below, the graph starts here: not with a leaf, which nobody may change in place."""
    return output if output.requires_grad else output.requires_grad_(True).clone()


def _gradient_sizes(model: nn.Module, weights: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, float]:
    """|gradient| of the batch's first row with respect to each weight, by plain autograd."""
    length = int(batch["attention_mask"][0].sum())
    row = {name: tensor[:1, :length] for name, tensor in batch.items()}
    with frozen(model), torch.enable_grad():
        for weight in weights.values():
            weight.requires_grad_(True)
        logits = model(input_ids=row["input_ids"], attention_mask=row["attention_mask"], use_cache=False).logits
        loss = example_cross_entropy(logits, row["labels"]).sum()
        if not loss.requires_grad:
            return dict.fromkeys(weights, 0.0)
        gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    return {
        name: 0.0 if gradient is None else float(gradient.abs().max())
        for name, gradient in zip(weights, gradients, strict=True)
    }


def _not_separable(parameter: TrackedParameter, given: Tensor) -> ModelError:
    return ModelError(
        f"influence: need layers whose input is [examples, tokens, features], got {list(given.shape)} at "
        f"{parameter.name}. Leave it out by influence.params=regex influence.regex=..."
    )
