"""What the reference gave on the rows, kept in the work folder: read back bit for bit, or made anew."""

from pathlib import Path

import pytest
import torch

from rapidun.stages.unlearning import reference
from rapidun.stages.unlearning.reference import NAME, Known


def known() -> Known:
    sums = torch.tensor([[1.5, torch.nan], [-2.0, 3.0]], dtype=torch.float64)
    return Known(sums, torch.arange(6.0).view(3, 2).bfloat16(), torch.tensor([0, 1, 3]))


def test_what_was_written_is_read(tmp_path: Path) -> None:
    reference._write(tmp_path / NAME, known(), "a")
    found = reference._read(tmp_path / NAME, "a")
    assert found is not None
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(found, known(), strict=True))
    assert [tensor.dtype for tensor in found] == [torch.float64, torch.bfloat16, torch.int64]
    assert reference._read(tmp_path / NAME, "b") is None
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_any_byte_that_changed_is_seen(tmp_path: Path) -> None:
    """Of the numbers, which lie behind the header; in the header it is no file of tensors, or another identity."""
    path = tmp_path / NAME
    reference._write(path, known(), "a")
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    assert len(whole) > header
    for place in range(header, len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1
        path.write_bytes(changed)
        assert reference._read(path, "a") is None, place
    path.write_bytes(whole[:-1])
    assert reference._read(path, "a") is None


@pytest.mark.parametrize("place", [9, 40, 100])
def test_a_changed_header_gives_no_other_numbers(tmp_path: Path, place: int) -> None:
    path = tmp_path / NAME
    reference._write(path, known(), "a")
    changed = bytearray(path.read_bytes())
    changed[place] ^= 1
    path.write_bytes(changed)
    assert reference._read(path, "a") is None
