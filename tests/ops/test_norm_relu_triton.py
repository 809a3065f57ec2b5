"""The GPU kernels of norm_relu without a GPU: compiled they do not spill."""

import re
import subprocess
from pathlib import Path

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from zoo.ops.norm_relu import MAX_CHANNELS, cuda

HOPPER = GPUTarget("cuda", 90, 32)
NUMBERS = dict.fromkeys(("x_stride", "mask_stride", "grad_stride", "N", "C"), "i32") | {"eps": "fp32"}


@pytest.mark.parametrize("kernel", [cuda.forward_kernel, cuda.backward_kernel])
@pytest.mark.parametrize(("width", "number"), [(64, "fp32"), (128, "bf16"), (MAX_CHANNELS, "fp32")])
def test_kernels_compile_for_hopper_within_their_registers(kernel, width, number, tmp_path):
    constants = {"MASKED": True, "BR": max(1, cuda.TILE_NUMBERS // width), "BC": width}
    rows = dict.fromkeys(("x", "grad", "out", "dx"), f"*{number}")
    signature = {name: {**NUMBERS, **rows}.get(name, "*fp32") for name in kernel.arg_names}
    signature |= dict.fromkeys(constants, "constexpr")
    options = {"num_warps": cuda.NUM_WARPS, "enable_fp_fusion": True}
    compiled = triton.compile(ASTSource(kernel, signature, constants), target=HOPPER, options=options)
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    dump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    usage = subprocess.run([dump, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True)
    stack = re.search(r"STACK:(\d+)", usage.stdout)
    assert stack is not None, usage.stdout
    assert int(stack[1]) == 0, usage.stdout
