"""What a process imports once that others are forked from."""
# ruff: noqa: F401

import matplotlib.figure
import torch._dynamo
import torch.distributed.launcher.api

import benchmarks.worker
import tests.distributed.jobs
import zoo.cli.train
import zoo.workflows.train
import zoo.workflows.worker
