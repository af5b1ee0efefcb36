"""The numbers of real rows: sketches of their gradients, shard by shard, the same whoever computes them.

Padding changes the last digits of a batch. So a shard's rows are always batched in the same way, among
themselves: which batch a row is in follows from the recipe, not from who asks, or what was made before.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from rapidun.base.errors import DataError, ModelError
from rapidun.base.files import sha256_file, sha256_json
from rapidun.config.index import RESPONSES, IndexSettings
from rapidun.config.influence import InfluenceMethod, LossReduction, ParameterSet
from rapidun.config.parts import LoraSettings
from rapidun.config.plain import plain
from rapidun.models.adapters import add_lora
from rapidun.models.batching import batching
from rapidun.models.layers import folder_names, resolved
from rapidun.models.load import ModelLoader, fingerprint_files, load_tokenizer, local_folder, pick_device, pick_dtype
from rapidun.models.losses import response_mask
from rapidun.stages.influence.batches import RowBatch
from rapidun.stages.influence.gradients.capture import CAPTURE_VERSION, GradientCapture
from rapidun.stages.influence.gradients.params import TrackedParameter, select_parameters
from rapidun.stages.influence.index.writer import Vectors
from rapidun.stages.influence.precondition import Preconditioner
from rapidun.stages.influence.sinks import GradientSink, RowSink, Sketch, SolvedSink
from rapidun.stages.influence.sketches.sketch import SKETCH_VERSION, CountSketch
from rapidun.stages.influence.sketches.tensorsketch import TENSORSKETCH_VERSION, TensorSketch
from rapidun.stages.rows.batches import token_budget_batches
from rapidun.stages.rows.cuts import Cuts
from rapidun.stages.rows.encode import Encoded, collate, encode_rows, tokenizer_fingerprint
from rapidun.stages.rows.fit import check_rows
from rapidun.stages.rows.records import Record
from rapidun.stages.rows.template import ENCODING_VERSION

# numbers of a batch's preconditioned gradients of one weight, which are no longer factors (256 MB in float32)
WHOLE_NUMEL = 1 << 26
ROWS_AT_ONCE = 4096

SKETCHES: dict[InfluenceMethod, Callable[[IndexSettings], Sketch]] = {
    InfluenceMethod.sketch: lambda s: CountSketch(k=s.k, seed=s.seed),
    InfluenceMethod.tensorsketch: lambda s: TensorSketch(k=s.k, buckets=s.buckets, seed=s.seed),
}
VERSIONS = {InfluenceMethod.sketch: SKETCH_VERSION, InfluenceMethod.tensorsketch: TENSORSKETCH_VERSION}


def describe_model(settings: IndexSettings, *, model: str, adapter: Path | None) -> dict[str, Any]:
    """The part of a recipe that queries and rows must share: contents, never paths."""
    folder = local_folder(model)
    fresh_lora = None
    if settings.params is ParameterSet.lora and adapter is None:
        fresh_lora = plain(resolved(settings.lora, folder_names(folder), section="influence"))
    method: dict[str, Any] = {
        "name": settings.method.name,
        "version": VERSIONS[settings.method],
        "seed": settings.seed,
    }
    if settings.method is InfluenceMethod.tensorsketch:
        method["buckets"] = settings.buckets
    return {
        "model": _fingerprint(folder, fingerprint_files(folder)),
        "adapter": _fingerprint(adapter, sorted(adapter.glob("adapter_*"))) if adapter else None,
        "tokenizer": tokenizer_fingerprint(load_tokenizer(folder)),
        "prompt": {"version": ENCODING_VERSION, "max_length": settings.max_length},
        "loss": settings.loss.name,
        "capture": CAPTURE_VERSION,
        "parameters": {
            "set": settings.params.name,
            "regex": settings.regex,
            "fresh_lora": fresh_lora,
        },
        # rows as they are, their norms beside them: both scores can be taken
        "normalisation": "none",
        "method": method,
        # resolved: another machine's `auto` may be another type
        "model_dtype": str(pick_dtype(settings.model_dtype, pick_device(settings.device))).removeprefix("torch."),
        "quantisation": settings.quantisation,
        "attention": settings.attention,
    }


def settings_of(described: dict[str, Any], *, k: int, device: str) -> IndexSettings:
    """The settings that `describe_model` described, for queries to an index."""
    parameters, method = described["parameters"], described["method"]
    return IndexSettings(
        params=ParameterSet[parameters["set"]],
        regex=parameters["regex"],
        lora=LoraSettings(**(parameters["fresh_lora"] or {})),
        loss=LossReduction[described["loss"]],
        method=InfluenceMethod[method["name"]],
        k=k,
        **{name: method[name] for name in ("buckets", "seed") if name in method},
        max_length=described["prompt"]["max_length"],
        model_dtype=described["model_dtype"],
        quantisation=described["quantisation"],
        attention=described["attention"],
        device=device,
    )


def _fingerprint(folder: Path, files: Sequence[Path]) -> str:
    if not files:
        raise ModelError(f"adapter: need a PEFT folder (adapter_config.json, adapter_model.safetensors), got {folder}")
    return sha256_json([[file.name, sha256_file(file)] for file in files])


def count_cuts(settings: IndexSettings, *, model: str, records: Sequence[Record], response: str) -> Cuts:
    """What the encoding cuts of many rows, without a model. Raises: DataError where it leaves all of them out."""
    tokenizer, answer, cuts = load_tokenizer(local_folder(model)), RESPONSES[response], Cuts()
    for start in range(0, len(records), ROWS_AT_ONCE):
        texts = [(r.instruction, r.context, answer(r)) for r in records[start : start + ROWS_AT_ONCE]]
        cuts += Cuts.of(encode_rows(tokenizer, texts, max_length=settings.max_length))
    if cuts.left_out == len(records):
        raise _no_room(len(records), settings)
    return cuts


def _no_room(num_rows: int, settings: IndexSettings) -> DataError:
    return DataError(
        f"index: need rows whose instruction leaves room for a response in {settings.max_length} tokens, got "
        f"{num_rows} rows and none that does. Pass --max-length"
    )


class GradientRows:
    """A loaded model, and the sketched gradients of any span of rows."""

    def __init__(
        self,
        settings: IndexSettings,
        *,
        model: str,
        adapter: Path | None,
        records: Sequence[Record],
        response: str = "response",
    ) -> None:
        self.settings = settings
        self.records = records
        self._response = response
        loader = ModelLoader(
            dtype=settings.model_dtype,
            quantisation=settings.quantisation,
            attention=settings.attention,
            device=settings.device,
        )
        self.model, self.tokenizer = loader.load(model, adapter=adapter)
        if settings.params is ParameterSet.lora and adapter is None:
            self.model = add_lora(self.model, settings.lora, seed=settings.seed, section="influence").eval()
        self.parameters: list[TrackedParameter] = select_parameters(self.model, settings.params, regex=settings.regex)
        # of all rows that were put into batches
        self.cuts = Cuts()
        # told the number of rows after each batch
        self.on_rows: Callable[[int], None] | None = None
        # rows that padding changes go one by one
        padded = batching(self.model, pad_token_id=self.tokenizer.pad_token_id).right
        self._most_rows = None if padded else 1
        # keeps what it has drawn for each parameter
        self._sketch = SKETCHES[settings.method](settings)

    def vectors(self, first: int, stop: int, *, preconditioner: Preconditioner | None = None) -> Vectors:
        """The rows from `first` to before `stop`: S g, or with a preconditioner, for queries, S F^-1 g.

        A row that is left out, which no training sees, has no influence: zeros.

        Raises: DataError for a row without a response token, ModelError if a loss or gradient is not finite (both
            name the row).
        """
        records = self.records[first:stop]
        dtype = next(p.dtype for p in self.model.parameters() if p.dtype.is_floating_point)
        row_sink = RowSink(len(records), self._sketch, dtype=dtype, device=self.device)
        sink: GradientSink = row_sink
        max_rows = None
        if preconditioner is not None:
            sink = SolvedSink(row_sink, preconditioner)
            max_rows = max(1, WHOLE_NUMEL // max(parameter.numel for parameter in self.parameters))
        losses = torch.zeros(len(records), dtype=torch.float64)
        with GradientCapture(self.model, self.parameters, sink) as capture:
            for batch in self.batches(records, max_rows=max_rows):
                sink.start(torch.tensor(batch.rows, device=self.device))
                losses[batch.rows] = capture.run(batch.tensors, reduction=self.settings.loss.name).double().cpu()
                if self.on_rows is not None:
                    self.on_rows(len(batch.rows))
        vectors = row_sink.sketches().float().cpu()
        bad = (~(torch.isfinite(losses) & torch.isfinite(vectors).all(dim=1))).nonzero().flatten().tolist()
        if bad:
            raise ModelError(
                f"index: need a finite loss and gradient, got others for row {records[bad[0]].id}. "
                "Pass --model-dtype float32, or mend the row or the model"
            )
        return Vectors([record.id for record in records], vectors.numpy(), losses.numpy())

    def check_room(self) -> None:
        """Raises: DataError where the encoding leaves all rows out; stops at the first that it does not."""
        for record in self.records:
            if self.encode([record])[0] is not None:
                return
        raise _no_room(len(self.records), self.settings)

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    def batches(self, records: Sequence[Record], *, max_rows: int | None = None) -> Iterator[RowBatch]:
        """Padded batches on the model's device, without rows that are left out; their rows count from the first of
        `records`. Raises: as `encode`."""
        encoded = self.encode(records)
        self.cuts += Cuts.of(encoded)
        yield from self.padded(encoded, max_rows=max_rows)

    def padded(self, encoded: Sequence[Encoded | None], *, max_rows: int | None = None) -> Iterator[RowBatch]:
        """Padded batches of rows, some of which may be left out (None)."""
        known = [(number, row) for number, row in enumerate(encoded) if row is not None]
        ids = [row.input_ids for _, row in known]
        check_rows("index", self.model, self.tokenizer, ids, max_length=self.settings.max_length)
        lengths = [len(row.input_ids) for _, row in known]
        for places in token_budget_batches(
            lengths, max_tokens=self.settings.tokens_per_batch, max_rows=self._most_rows or max_rows
        ):
            rows = [known[place][0] for place in places]
            batch = collate([known[place][1] for place in places], pad_token_id=self.tokenizer.pad_token_id)
            yield RowBatch(rows, {key: value.to(self.device) for key, value in batch.items()})

    def encode(self, records: Sequence[Record], *, response: str | None = None) -> list[Encoded | None]:
        """Tokens and labels of records; `response` as in __init__, by default that one. None for a row left out.

        Raises: DataError for a row without a response token to predict.
        """
        answer = RESPONSES[response or self._response]
        texts = [(r.instruction, r.context, answer(r)) for r in records]
        encoded = encode_rows(self.tokenizer, texts, max_length=self.settings.max_length)
        for record, row in zip(records, encoded, strict=True):
            if row is not None and not response_mask(torch.tensor([row.labels])).any():
                raise DataError(f"index: need a response token behind another token, got none in row {record.id}")
        return encoded
