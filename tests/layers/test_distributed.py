"""Data-parallel training of a reversible stack over two processes."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tests.forked import CONTEXT
from tests.layers.graphs import gen_stack, gradients, stack_inputs

WORLD_SIZE = 2


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD_SIZE)
    result = {}
    for tied in (False, True):
        for options in ({}, {"find_unused_parameters": True}, {"static_graph": True}):
            stack = gen_stack(num_layers=4, num_distinct=2 if tied else 4).double()
            parallel = DistributedDataParallel(stack, bucket_cap_mb=0.001, **options)
            for step in range(2):
                x, inputs = stack_inputs(seed=10 * step + rank)
                parallel(x, inputs).square().mean().backward()
                result[tied, tuple(options), step] = gradients(stack)
    dist.destroy_process_group()
    torch.save(result, f"{folder}/rank{rank}.pt")


def test_gradients_are_the_mean_over_the_processes(tmp_path: Path) -> None:
    processes = [CONTEXT.Process(target=worker, args=(rank, str(tmp_path))) for rank in range(WORLD_SIZE)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * WORLD_SIZE
    results = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(WORLD_SIZE)]
    assert len(results[0]) == 12
    for (tied, options, step), found in results[0].items():
        stack = gen_stack(num_layers=4, num_distinct=2 if tied else 4).double()
        for rank in range(WORLD_SIZE):
            x, inputs = stack_inputs(seed=10 * step + rank)
            (stack(x, inputs).square().mean() / WORLD_SIZE).backward()
        for name, gradient in gradients(stack).items():
            torch.testing.assert_close(found[name], gradient, msg=f"{name}, tied={tied}, {options}")
            torch.testing.assert_close(results[1][tied, options, step][name], gradient)
