"""The GPU kernels of the weighted sum without a GPU: compiled they do not spill."""

import re
import subprocess
from pathlib import Path

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from zoo.ops.weighted_sum import cuda

HOPPER = GPUTarget("cuda", 90, 32)
INTEGERS = dict.fromkeys(("x_stride", "num_rows", "H", "C"), "i32")
POINTERS = dict.fromkeys(("start", "end", "target"), "*i64") | {"col": "*i32"}


@pytest.mark.parametrize("number", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["weighted_sum", "edge_products"])
def test_kernels_compile_for_hopper_within_their_registers(name, number, tmp_path):
    constants = {"BE": 16, "BC": 64} | ({"WEIGHTED": True} if name == "weighted_sum" else {})
    kernel = getattr(cuda, f"{name}_kernel")
    signature = {argument: (INTEGERS | POINTERS).get(argument, "*fp32") for argument in kernel.arg_names}
    signature |= {"x": f"*{number}"} | dict.fromkeys(constants, "constexpr")
    options = {"num_warps": 2, "enable_fp_fusion": True}
    compiled = triton.compile(ASTSource(kernel, signature, constants), target=HOPPER, options=options)
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    dump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    usage = subprocess.run([dump, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True)
    stack = re.search(r"STACK:(\d+)", usage.stdout)
    assert stack is not None, usage.stdout
    assert int(stack[1]) == 0, usage.stdout
