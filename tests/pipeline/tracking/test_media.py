import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from rapidun.pipeline.tracking import media


def test_influence_picture(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    sizes = {"ff": (4, 4), "fr": (4, 9), "rf": (9, 4), "rr": (9, 9)}
    save_file(
        {n: generator.normal(size=s).astype(np.float32) for n, s in sizes.items()}, tmp_path / "scores.safetensors"
    )
    picture = media.influence_picture(tmp_path)
    assert picture is not None
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    # red and blue cells, not one colour
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50
    assert media.influence_picture(tmp_path / "absent") is None


def test_equal_scores_still_make_a_picture(tmp_path: Path) -> None:
    save_file({n: np.zeros((2, 2), np.float32) for n in ("ff", "fr", "rf", "rr")}, tmp_path / "scores.safetensors")
    assert media.influence_picture(tmp_path) is not None


def test_weights_and_generations(tmp_path: Path) -> None:
    (tmp_path / "forget_weights.jsonl").write_text('{"index": 0, "id": "a", "weight": 2}\n')
    assert media.weights(tmp_path) == {"forget": [2.0]}
    rows = [
        {"set": "seen", "prompt": f"p{n}", "before": "x", "after": None, "keyword_after": True} for n in range(2500)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = media.generations(tmp_path / "pairs.jsonl")
    assert table is not None
    assert table.columns == list(media.PAIRED)
    assert len(table.rows) == media.MAX_ROWS
    prompts = [row[table.columns.index("prompt")] for row in table.rows]
    assert (prompts[0], prompts[1], prompts[-1]) == ("p0", "p2", "p2497")
    (tmp_path / "single.jsonl").write_text('{"set": "seen", "generation": "g", "keyword": false, "likelihood": null}\n')
    single = media.generations(tmp_path / "single.jsonl")
    assert single == media.Table(list(media.SINGLE), [["seen", None, None, None, None, "g", False, None]])
    assert media.generations(tmp_path / "absent.jsonl") is None
