"""Scoring an index on disk: seconds, peak memory, share of what the disk gives, growth. One JSON line.

    python benchmarks/index.py [--rows 1000000] [--folder DIR]

Synthetic rows go through the real writer (K = 4,096, int8: 4.1 GB for a million rows; the folder is removed again),
then 160 queries are scored with the best 100 rows of each, in a process of its own. Everything is measured twice:
`warm`, with the files in the system's cache as far as they fit, and `cold`, after the system was asked to forget them
(posix_fadvise; the host of a virtual machine may remember). `share_of_read` is the time of a plain sequential read of
the same files, measured right before, divided by the time of scoring. `tenth` is the same on a tenth of the rows,
`growth` the ratio of the seconds. Peak memory is the process's own (VmHWM), reset before scoring; `cpu_seconds` is what
all its threads took, which other programs on the machine cannot stretch.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
K = 4096
SHARD_ROWS = 8192
QUERIES = 160
TOP = 100
CHUNK = 1 << 24


def build(folder: Path, num_rows: int) -> float:
    """Write an index of rows that follow from their number; seconds."""
    from rapidun.config.index import IndexDtype
    from rapidun.stages.influence.index.manifest import claim_folder, new_recipe
    from rapidun.stages.influence.index.writer import Vectors, build_shards

    # a million independent rows would take longer to draw than to write: these are cyclic shifts of 256, with new signs
    base = np.random.default_rng(0).standard_normal((256, K), dtype=np.float32)

    def rows(first: int, stop: int) -> Vectors:
        rng = np.random.default_rng(first)
        shifts, picks = rng.integers(K, size=stop - first), rng.integers(256, size=stop - first)
        vectors = np.stack([np.roll(base[pick], shift) for pick, shift in zip(picks, shifts, strict=True)])
        vectors *= rng.choice(np.float32([-1, 1]), size=(1, K))
        return Vectors([f"row{row}" for row in range(first, stop)], vectors, np.zeros(stop - first))

    start = time.perf_counter()
    recipe = new_recipe(
        num_rows=num_rows, k=K, dtype=IndexDtype.int8, shard_rows=SHARD_ROWS, source={"synthetic": "shifts"}
    )
    build_shards(claim_folder(folder, recipe), rows)
    return time.perf_counter() - start


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def forget(folder: Path) -> None:
    """Ask the system to drop the files from its cache."""
    for path in files(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_through(folder: Path) -> float:
    """Seconds of reading every file from its beginning to its end."""
    buffer = bytearray(CHUNK)
    start = time.perf_counter()
    for path in files(folder):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - start


def peak_bytes() -> int:
    """The most resident memory since the last reset (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def score(folder: Path, threads: int) -> dict[str, float]:
    """Score all queries once and write the best rows of each; in a process of its own."""
    import torch

    from rapidun.config.influence import Score
    from rapidun.stages.influence.index.output import write_top
    from rapidun.stages.influence.index.reader import Index
    from rapidun.stages.influence.index.score import BLOCK_NBYTES, prepare_queries, products, stream_scores

    torch.set_num_threads(1)
    queries = torch.from_numpy(np.random.default_rng(1).standard_normal((QUERIES, K), dtype=np.float32))
    # oneDNN compiles its kernel at the first product of a shape
    rows = torch.zeros(BLOCK_NBYTES // K, K, dtype=torch.int8)
    products(rows, torch.ones(len(rows)), prepare_queries(queries), integer=True)
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_bytes()
    start, cpu = time.perf_counter(), time.process_time()
    index = Index(folder)
    blocks = stream_scores(index, queries, score=Score.cosine, memory_bytes=1e9, threads=threads)
    with tempfile.TemporaryDirectory() as out:
        write_top(blocks, index, [f"q{q}" for q in range(QUERIES)], Path(out), k=TOP)
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
        "peak_bytes": peak_bytes(),
        "before_bytes": before,
    }


def score_apart(folder: Path, threads: int) -> dict[str, float]:
    command = [sys.executable, str(Path(__file__).resolve()), "--score", str(folder), "--threads", str(threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def measure(folder: Path, num_rows: int, threads: int) -> dict[str, object]:
    index = folder / f"index{num_rows}"
    seconds = build(index, num_rows)
    size = sum(path.stat().st_size for path in files(index))
    found: dict[str, object] = {
        "rows": num_rows,
        "bytes": size,
        "seconds_to_write": round(seconds, 2),
    }
    for name, prepare in (("cold", forget), ("warm", read_through)):
        prepare(index)
        read = read_through(index)
        prepare(index)
        scored = score_apart(index, threads)
        found[name] = {
            "seconds": round(scored["seconds"], 2),
            "cpu_seconds": round(scored["cpu_seconds"], 2),
            "seconds_to_read": round(read, 2),
            "read_gb_per_s": round(size / read / 1e9, 2),
            "share_of_read": round(read / scored["seconds"], 3),
            "peak_gib": round(scored["peak_bytes"] / 2**30, 3),
            "gib_before_scoring": round(scored["before_bytes"] / 2**30, 3),
        }
    shutil.rmtree(index)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where the index is written meanwhile (default: the system's)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--score", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.score:
        print(json.dumps(score(args.score, args.threads)))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        need, free = args.rows * (K + 200), shutil.disk_usage(folder).free
        if free < 1.2 * need:
            sys.exit(f"need {1.2 * need / 1e9:.1f} GB in {folder}, got {free / 1e9:.1f}. Pass --rows or --folder")
        small = measure(Path(folder), max(1, args.rows // 10), args.threads)
        whole = measure(Path(folder), args.rows, args.threads)
    growth = {
        name: round(whole[name]["seconds"] / small[name]["seconds"], 2)  # type: ignore[index]
        for name in ("cold", "warm")
    }
    load = round(os.getloadavg()[0], 1)
    print(
        json.dumps(
            {"benchmark": "index", "k": K, "dtype": "int8", "queries": QUERIES, "top": TOP, "threads": args.threads,
             "load": load, **whole, "tenth": small, "growth": growth}
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
