"""Four workers on one index, killed at random moments and replaced; then one that finishes what is left.

    python index_driver.py MODEL ROWS OUT SEED

The model is loaded once, the workers are forked: each is a process of its own that is in the middle of making, writing
or publishing a shard when it is killed.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from rapidun.config.index import IndexDtype, IndexSettings
from rapidun.stages.influence.index.gradients import GradientRows
from rapidun.stages.influence.index.manifest import Manifest, claim_folder, new_recipe
from rapidun.stages.influence.index.writer import build_shards
from rapidun.stages.rows.records import read_records

NUM_WORKERS = 4
NUM_KILLS = 10


def start_worker(manifest: Manifest, rows: GradientRows) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        build_shards(manifest, rows.vectors)
        status = 0
    finally:
        os._exit(status)


def main() -> None:
    model, data, out, seed = sys.argv[1:]
    torch.set_num_threads(1)
    records = read_records(Path(data))
    rows = GradientRows(IndexSettings(k=256, device="cpu"), model=model, adapter=None, records=records)
    source = {"data": "the rows of the test"}
    recipe = new_recipe(num_rows=len(records), k=256, dtype=IndexDtype.int8, shard_rows=2, source=source)
    manifest = claim_folder(Path(out), recipe)
    if seed == "none":
        build_shards(manifest, rows.vectors)
        return
    rng = random.Random(int(seed))
    workers: list[int] = []
    counts = []

    def done() -> int:
        return sum(map(manifest.is_done, range(manifest.num_shards)))

    step = manifest.num_shards // (NUM_KILLS + 1)
    for kill in range(NUM_KILLS):
        workers += [start_worker(manifest, rows) for _ in range(NUM_WORKERS - len(workers))]
        # a random moment of each part of the work, on however slow a machine
        moment = kill * step + rng.randrange(step)
        while done() < moment:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
        victims = rng.sample(workers, rng.randint(1, NUM_WORKERS))
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        for victim in victims:
            os.waitpid(victim, 0)
        workers = [worker for worker in workers if worker not in victims]
        counts.append(done())
    workers += [start_worker(manifest, rows) for _ in range(NUM_WORKERS - len(workers))]
    statuses = [os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) for worker in workers]
    print(manifest.num_shards, counts, statuses)
    assert statuses == [0] * NUM_WORKERS


main()
