"""Accuracy over depth on the road network: does a label of K hops need K layers?

    python -m benchmarks.road_depth FILE.json --hops 16 32 --layers 4 8 16 32 64

The recipe is ``road_16`` with another range and another number of layers. FILE has a row for each pair, and a run that
was stopped goes on with the rows that are missing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import zoo


def main() -> None:
    """Train the pairs that a file does not have yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--hops", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 8, 16, 32, 64])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = json.loads(arguments.file.read_text()) if arguments.file.exists() else []
    for hops in arguments.hops:
        for num_layers in arguments.layers:
            if any((row["hops"], row["num_layers"]) == (hops, num_layers) for row in rows):
                continue
            changes = {"data.generated.range": hops, "model.num_layers": num_layers}
            started = time.process_time()
            with tempfile.TemporaryDirectory() as folder:
                run = zoo.train("road_16", out=Path(folder) / "run", overrides=changes, device="cpu", quiet=True)
                results = json.loads((run.path / "results.json").read_text())["results"]
            scores = {row["split"]: round(row["value"], 4) for row in results}
            row = {"hops": hops, "num_layers": num_layers, **scores}
            rows.append({**row, "cpu_s": round(time.process_time() - started, 1)})
            arguments.file.write_text(json.dumps(rows, indent=1) + "\n")
            print(json.dumps(rows[-1]), flush=True)


if __name__ == "__main__":
    main()
