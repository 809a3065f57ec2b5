"""The GPU kernels without a GPU: compiled they keep to their registers."""

import re
import subprocess
from pathlib import Path

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from zoo.ops.gen_aggregate import cuda

HOPPER = GPUTarget("cuda", 90, 32)
POINTERS = dict.fromkeys(("start", "end", "target", "further"), "*i64") | {"col": "*i32", "win": "*i32"}
NUMBERS = dict.fromkeys(("x_stride", "attr_stride", "C", "N", "num_rows"), "i32") | {
    "eps": "fp32",
    "attached": "fp32",
}
SHARED = {"D": 8, "DP": 16, "BIASED": True, "PRECISION": "tf32x3", "BE": 16}
NO_EDGES = SHARED | {"D": 0, "BIASED": False}


@pytest.mark.parametrize(
    ("name", "num_warps", "constants"),
    [
        ("max_forward", 2, SHARED | {"WITH_WINNER": True, "BC": 64}),
        ("max_forward", 2, SHARED | {"WITH_WINNER": True, "BC": 64, "NUMBER": "bf16"}),
        ("max_forward", 1, NO_EDGES | {"WITH_WINNER": True, "BC": 32}),
        ("max_forward", 2, SHARED | {"WITH_WINNER": True, "BC": 64, "FEATURE": "fp16"}),
        ("merge_max", 2, {"WITH_WINNER": True, "BC": 64}),
        ("merge_softmax", 2, {"BC": 64}),
        ("max_backward", 4, {"D": 8, "BR": 32, "BC": 64}),
        ("max_backward", 4, {"D": 8, "BR": 32, "BC": 64, "FEATURE": "fp16"}),
        ("softmax_forward", 2, SHARED | {"BC": 64}),
        ("softmax_forward", 1, NO_EDGES | {"BC": 32}),
        ("softmax_backward", 4, SHARED | {"BC": 64, "SLOTS": 64}),
        ("softmax_backward", 2, NO_EDGES | {"BC": 64, "SLOTS": 64}),
    ],
)
def test_kernels_compile_for_hopper_within_their_registers(name, num_warps, constants, tmp_path):
    number = constants.get("NUMBER", "fp32")
    reads = {"x": f"*{number}", "attr": f"*{constants.get('FEATURE', number)}"}
    constants = {key: value for key, value in constants.items() if key not in ("NUMBER", "FEATURE")}
    kernel = getattr(cuda, f"{name}_kernel")
    signature = {}
    for argument in kernel.arg_names:
        read = {**POINTERS, **NUMBERS, **reads}.get(argument, "*fp32")
        signature[argument] = "constexpr" if argument in constants else read
    source = ASTSource(kernel, signature, constants)
    compiled = triton.compile(source, target=HOPPER, options={"num_warps": num_warps, "enable_fp_fusion": True})
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    usage = subprocess.run([_cuobjdump(), "--dump-resource-usage", cubin], capture_output=True, text=True, check=True)
    stack = re.search(r"STACK:(\d+)", usage.stdout)
    assert stack is not None, usage.stdout
    assert int(stack[1]) == 0, usage.stdout


def _cuobjdump() -> Path:
    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
