"""One measurement in a process of its own: ``python -m zoo.workflows.bench.worker '{"case": ..., ...}'``."""

from __future__ import annotations

import json
import sys

import torch

from zoo.workflows.bench.case import Case, build, draw_labels, draw_part
from zoo.workflows.memory import measure_steps


def measure(case: Case, *, device: torch.device, num_steps: int) -> dict[str, float | list[float]]:
    """Time and memory of training steps, as :func:`measure_steps` gives them.

    A step is forward, backward, clipping and Adam.
    """
    model = build(case, device)
    x, csr, edge_attr = draw_part(case.num_nodes, case.num_edges, case.seed, device)
    labels = draw_labels(case.num_nodes, case.seed, device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loss_of = torch.nn.BCEWithLogitsLoss()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of(model(x, csr, edge_attr), labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return measure_steps(step, model, device=device, num_steps=num_steps)


def main() -> None:
    """Read the measurement to make from the command line, print its result as JSON."""
    request = json.loads(sys.argv[1])
    if request["num_threads"]:
        torch.set_num_threads(request["num_threads"])
    result = measure(
        Case.model_validate(request["case"]), device=torch.device(request["device"]), num_steps=request["num_steps"]
    )
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
