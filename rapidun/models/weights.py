"""What a model folder's weight files hold, against what its architecture needs: nothing missed, dropped or invented."""

import dataclasses
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rapidun.base.errors import ModelError
from rapidun.base.text import short_message

# what torch.compile, FSDP, activation checkpointing and DeepSpeed put into the names of what they wrap; no model of its
# own has a module of such a name
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
# older versions saved what is computed from the configuration: never weights
COMPUTED = re.compile(r"(^|\.)(inv_freq|position_ids|token_type_ids|masked_bias|original_inv_freq)$")
# what a weight may be stored as; integers and fp8 are codes, whose scales a quantization_config speaks of
PLAIN_DTYPES = ("F64", "F32", "F16", "BF16")
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight", "embeddings.weight")
HEADS = ("lm_head.weight", "embed_out.weight")
MOST_NAMED = 2
# an 8-byte length, then JSON: more than this is no header
MOST_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class Header:
    """One tensor of a safetensors file, as the file's head describes it."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Renaming:
    """How the names in the files become those of the model."""

    # components taken out wherever they stand
    dropped: tuple[str, ...] = ()
    # what all names then begin with, taken off
    prefix: str = ""

    def __call__(self, name: str) -> str:
        return ".".join(part for part in name.split(".") if part not in self.dropped).removeprefix(self.prefix)

    def patterns(self, names: Collection[str]) -> list[str]:
        """Regular expressions that match what goes, each once in a name."""
        found = []
        for word in self.dropped:
            most = max((name.split(".").count(word) for name in names), default=0)
            # as many different spellings of one expression
            found += [rf"(?<![^.]){'(?:' * n}{word}{')' * n}\." for n in range(most)]
        if self.prefix:
            found.append("^" + re.escape(self.prefix))
        return found

    def __bool__(self) -> bool:
        return bool(self.dropped or self.prefix)

    def __str__(self) -> str:
        return " and ".join([*([f"the prefix {self.prefix}"] if self.prefix else []), *self.dropped])


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the weights: one file, or the shards of an index; empty where there is neither.

    Raises: ModelError for a shard that the index lists and the folder lacks.
    """
    one, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if one.is_file():
        return [one]
    if not index.is_file():
        return []
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"model: need an index with a weight_map, got {index}. Copy the file again") from error
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise ModelError(
            f"model: need the {len(names)} files that {index.name} lists, got {folder} without {_named(absent)}. "
            "Copy them into the folder"
        )
    return [folder / name for name in names]


def read_headers(folder: Path) -> dict[str, Header]:
    """Every tensor of a folder's weight files, by its name there; no weight is read.

    Raises: ModelError for a file that is cut or no safetensors, an absent shard, a tensor that two shards have.
    """
    found: dict[str, Header] = {}
    for file in weight_files(folder):
        for name, entry in read_header(file).items():
            if name in found:
                raise ModelError(
                    f"model: need each tensor once, got {name} in both {found[name].file.name} and {file.name} of "
                    f"{folder}. Copy the files again from one source"
                )
            found[name] = Header(file, tuple(entry["shape"]), entry["dtype"])
    return found


def read_header(file: Path, *, key: str = "model.path") -> dict[str, Any]:
    """name -> {"dtype", "shape", "data_offsets"} of each tensor of a safetensors file; no weight is read.

    Args: key: the setting that names the file.
    Raises: ModelError for a file that is absent, cut or no safetensors.
    """
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            size = file.stat().st_size
            if not 2 <= length <= min(size, MOST_HEADER_BYTES):
                raise ValueError("its header has no sensible length")
            header = json.loads(stream.read(length))
        if not isinstance(header, dict):
            raise ValueError("its header is no object")
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        for entry in tensors.values():
            if not isinstance(entry["dtype"], str) or not all(type(number) is int for number in entry["shape"]):
                raise ValueError("its header describes no tensors")
        whole = 8 + length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        if size != whole:
            how = "cut short" if size < whole else "too long"
            raise ValueError(f"{how}: {size:,} bytes, a whole file has {whole:,}")
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"model: need weights in safetensors, got {file} ({short_message(error)}). Copy the file again, or "
            f"change {key}=..."
        ) from None
    return tensors


def check_plain(headers: Mapping[str, Header], *, path: str | Path, buffers: Collection[str] | None = None) -> None:
    """Whether the weights of a folder that speaks of no quantisation are numbers, not codes of numbers.

    Args: buffers: names of what the model has beside its parameters, which may be integers; None before it is built,
        when only names that end with `.weight` are looked at.
    Raises: ModelError naming the first tensor that is codes, and how many there are.
    """
    codes = [
        name for name, header in headers.items() if header.dtype not in PLAIN_DTYPES and not _is_no_weight(name, header)
    ]
    if buffers is None:
        codes = [name for name in codes if name.endswith(".weight")]
    else:
        # a base model's file lacks the prefix that a head puts in front
        codes = [
            name
            for name in codes
            if not any(b == name or b.endswith(f".{name}") or name.endswith(f".{b}") for b in buffers)
        ]
    if codes:
        raise ModelError(
            f"model: need weights as {', '.join(PLAIN_DTYPES)} where config.json has no quantization_config, got "
            f"{path} with {len(codes)} of {len(headers)} tensors that are not (first {codes[0]}: "
            f"{headers[codes[0]].dtype}): codes without their scales are not the model's numbers. Take the folder "
            "before it was quantised, or put quantization_config back into config.json"
        )


def _is_no_weight(name: str, header: Header) -> bool:
    """Positions, counters, a causal mask: what files hold beside weights."""
    shape = header.shape
    return (
        bool(COMPUTED.search(name))
        or name.endswith("num_batches_tracked")
        or (len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3])
    )


def untied_head(headers: Mapping[str, Header]) -> str | None:
    """The name of an output head in the files that is another than the embeddings there; None where there is none, or
    both are the same numbers.

    Reads the files only where they hold both, up to the first numbers that differ.
    """
    embeddings = [name for name in headers if name.endswith(EMBEDDINGS)]
    heads = [name for name in headers if name.endswith(HEADS)]
    if len(embeddings) != 1 or len(heads) != 1:
        return None
    one, other = headers[heads[0]], headers[embeddings[0]]
    if (one.shape, one.dtype) == (other.shape, other.dtype) and _same_bytes(one, other, (heads[0], embeddings[0])):
        return None
    return heads[0]


def _same_bytes(one: Header, other: Header, names: tuple[str, str]) -> bool:
    places = []
    for header, name in zip((one, other), names, strict=True):
        start, end = read_header(header.file)[name]["data_offsets"]
        with header.file.open("rb") as stream:
            first = 8 + int.from_bytes(stream.read(8), "little")
        places.append((header.file, first + start, end - start))
    if places[0][2] != places[1][2]:
        return False
    with places[0][0].open("rb") as a, places[1][0].open("rb") as b:
        a.seek(places[0][1])
        b.seek(places[1][1])
        left = places[0][2]
        while left > 0:
            size = min(left, 1 << 24)
            if a.read(size) != b.read(size):
                return False
            left -= size
    return True


def unwrapped(names: Collection[str], *, folder: Path) -> Renaming:
    """What wrappers have put into the names: it goes, since no model's own names have it.

    Raises: ModelError for an adapter that lies among the weights, or where two tensors would take one name.
    """
    parts = {part for name in names for part in name.split(".")}
    dropped = [word for word in WRAPPERS if word in parts]
    if "base_layer" in parts:
        adapter = sorted(name for name in names if ".lora_" in name)
        if adapter:
            raise ModelError(
                f"model: need merged weights, got {folder} with a LoRA adapter among them: {len(adapter)} tensors, "
                f"first {adapter[0]}. Merge it (peft's merge_and_unload) and save the model again"
            )
        dropped.append("base_layer")
    inner = Renaming(tuple(dropped))
    prefix = ""
    while names and all(inner(name).startswith(f"{prefix}module.") for name in names):
        prefix += "module."
    found = dataclasses.replace(inner, prefix=prefix)
    renamed = [found(name) for name in names]
    if len(set(renamed)) != len(names):
        twice = next(name for place, name in enumerate(renamed) if name in renamed[:place])
        raise ModelError(
            f"model: need each tensor once, got {folder} with two that are {twice} once {found} is taken off. "
            "Save the model again, unwrapped"
        )
    return found


def shapes_by_name(
    shapes: Mapping[str, tuple[int, ...]], *, folder: Path, inner: str = "model."
) -> dict[str, tuple[int, ...]]:
    """The shapes of a base's tensors under the names that its model has: without what wrappers put into the names, and
    without one prefix before all of them where names that begin with `inner` lie behind it (as the loader reads them).

    Raises: ModelError as `unwrapped`.
    """
    renaming = unwrapped(shapes, folder=folder)
    found = {renaming(name): shape for name, shape in shapes.items()}
    if any(name.startswith(inner) for name in found):
        return found
    for prefix in leading_components(list(found)):
        if any(name.startswith(prefix + inner) for name in found):
            return {name.removeprefix(prefix): shape for name, shape in found.items()}
    return found


def leading_components(names: Sequence[str], *, most: int = 3) -> list[str]:
    """`a.`, `a.b.`, ...: what all names begin with."""
    found: list[str] = []
    prefix = ""
    while names and len(found) < most:
        first = names[0].removeprefix(prefix).partition(".")[0]
        prefix = f"{prefix}{first}."
        if not all(name.startswith(prefix) for name in names):
            break
        found.append(prefix)
    return found


@dataclass(frozen=True, slots=True)
class Misfit:
    """Tensors that the model needs and the files lack, those that no part of it takes, those of another shape."""

    missing: list[str]
    unused: list[str]
    # name -> (shape in the file, shape in the model)
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    num_tensors: int

    def __bool__(self) -> bool:
        return bool(self.missing or self.unused or self.shapes)

    def __str__(self) -> str:
        parts = []
        if self.missing:
            parts.append(f"{len(self.missing)} of {self.num_tensors} tensors missing (first {self.missing[0]})")
        if self.unused:
            parts.append(f"{len(self.unused)} that it has no use for (first {self.unused[0]})")
        if self.shapes:
            name, (came, expected) = next(iter(self.shapes.items()))
            parts.append(f"{len(self.shapes)} of another shape (first {name}: {list(came)} for {list(expected)})")
        return ", ".join(parts)


def misfit(model: Any, report: Mapping[str, Any], headers: Mapping[str, Header], renaming: Renaming) -> Misfit:
    """What transformers' loading report says of a model, without what older files hold that are no weights."""
    known = {renaming(name): header for name, header in headers.items()}
    # buffers that are computed and not saved
    computed = {name for name, _ in model.named_buffers()} - set(model.state_dict())

    def counts(name: str) -> bool:
        if COMPUTED.search(name) or name in computed:
            return False
        header = known.get(name) or next((h for key, h in known.items() if name.endswith(f".{key}")), None)
        # a causal mask, [1, 1, n, n]
        shape = header.shape if header else ()
        return not (len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3])

    shapes = {
        name: (tuple(came), tuple(expected)) for name, came, expected in sorted(report.get("mismatched_keys") or [])
    }
    missing = sorted(name for name in report.get("missing_keys") or [] if not COMPUTED.search(name))
    unused = sorted(name for name in report.get("unexpected_keys") or [] if counts(name))
    return Misfit(missing, unused, shapes, len(model.state_dict()))


def adapter_misfit(
    adapter: Path, headers: Mapping[str, Header], *, folder: Path, key: str = "unlearning.adapter"
) -> str | None:
    """What of a LoRA adapter's file fits no matrix of a base whose files name its modules as the model does.

    Args: headers: of the base, as `read_headers` gives them. key: the setting that names the adapter.
    """
    shapes = shapes_by_name({name: header.shape for name, header in headers.items()}, folder=folder)
    # files without a head's prefix are read as well
    shapes |= {f"model.{name}": shape for name, shape in shapes.items() if not name.startswith("model.")}
    unused = []
    found = {
        name: tuple(entry["shape"])
        for name, entry in read_header(adapter / "adapter_model.safetensors", key=key).items()
    }
    for name, shape in sorted(found.items()):
        part = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", name)
        if part is None:
            continue
        base = shapes.get(
            f"{part[1]}.weight", shapes.get("model.embed_tokens.weight") if part[1] == "lm_head" else None
        )
        # A is [r, in] and B [out, r] beside [out, in]
        wide = None if base is None or len(base) != 2 else (base[1] if part[2] == "A" else base[0])
        if wide is None or len(shape) != 2 or shape[1 if part[2] == "A" else 0] != wide:
            unused.append(name)
    if not unused:
        return None
    return f"{len(unused)} of {len(found)} tensors that fit no layer of the model (first {unused[0]})"


def check_finite(model: Any, *, path: str | Path) -> None:
    """Raises: ModelError naming the first weight with a number that is none."""
    import torch

    for name, parameter in model.named_parameters():
        if not parameter.dtype.is_floating_point or parameter.dtype.itemsize < 2:
            continue
        # one pass without a copy; a sum of large but finite numbers may overflow, then each is looked at
        if torch.isfinite(parameter.detach().sum(dtype=torch.float32)):
            continue
        num_bad = int((~torch.isfinite(parameter.detach())).sum())
        if num_bad:
            raise ModelError(
                f"model: need finite weights, got {num_bad:,} of {parameter.numel():,} numbers of {name} in {path} "
                "that are not (NaN or infinite). A run that diverged saves such files: take an earlier checkpoint"
            )


def _named(names: Sequence[str]) -> str:
    rest = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")
