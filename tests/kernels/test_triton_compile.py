"""Every kernel, as the launcher would launch it, compiled ahead of time for sm_80 and sm_90: types and resources.

Processes of their own compile: in this one the kernels may be interpreted. The launches are recorded, not written down
here, so that what is compiled is what runs. `make test-oldest-triton` runs this file under another version of Triton.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from emcl_kernels import reference

pytest.importorskip("triton")

PARTS = 2  # processes, each of which compiles every second kernel
# compute capability → bytes of shared memory that one program can have
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
# (batch, rows, width, bases), dtype, compute capabilities
SHAPES = [
    ((1, 4000, 512, 32), torch.float32, (80, 90)),
    ((1, 4000, 512, 32), torch.bfloat16, (80, 90)),
    ((1, 40000, 512, 32), torch.float16, (90,)),
    ((1, 41, 63, 7), torch.float32, (90,)),
]
# (texts, videos, frames, width, bases), dtype, compute capabilities
POOLED_SHAPES = [
    ((128, 128, 12, 512, 32), torch.float32, (80, 90)),
    ((128, 128, 12, 512, 32), torch.bfloat16, (80, 90)),
    ((128, 128, 64, 512, 32), torch.float32, (90,)),
    ((128, 128, 64, 512, 32), torch.float16, (80,)),
    ((41, 3, 7, 63, 7), torch.float32, (90,)),
]
# Each size once as 1, which the launcher compiles in as a number of Python; more than 256 rows are split and added up.
# Read by Triton's front end and not compiled to the end, which is what takes time.
ONES = [(1, 300, 1, 7), (2, 1, 24, 7), (2, 300, 24, 1)]
POOLED_ONES = [(1, 3, 5, 24, 7), (9, 1, 5, 24, 7), (9, 3, 1, 24, 7), (9, 3, 5, 1, 7), (9, 3, 5, 24, 1)]
KERNELS = {
    "moments_kernel",
    "moments_sum_kernel",
    "moments_backward_kernel",
    "fit_step_kernel",
    "fit_scale_kernel",
    "fit_backward_step_kernel",
    "fit_backward_start_kernel",
    "reconstruct_kernel",
    "reconstruct_backward_kernel",
    "responsibilities_gradient_kernel",
    "pooled_moments_kernel",
    "pooled_moments_backward_kernel",
    "pooled_cosine_kernel",
    "pooled_cosine_backward_kernel",
}


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What `main` says of each kernel."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    # The new process imports the same emcl_kernels as this one.
    here = Path(reference.__file__).parents[1]
    environment["PYTHONPATH"] = os.pathsep.join([str(here), os.environ.get("PYTHONPATH", "")])
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))

    def run(part: int) -> str:
        command = [sys.executable, __file__, str(part)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with ThreadPoolExecutor(PARTS) as pool:
        return [json.loads(line) for output in pool.map(run, range(PARTS)) for line in output.splitlines()]


@pytest.fixture(scope="module")
def compiled(printed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The kernels that were compiled to the end."""
    return [entry for entry in printed if "capability" in entry]


def test_every_kernel_compiles_for_both_architectures(compiled: list[dict[str, Any]]) -> None:
    for capability in SHARED_MEMORY:
        assert {entry["kernel"] for entry in compiled if entry["capability"] == capability} == KERNELS


def test_shared_memory_fits(compiled: list[dict[str, Any]]) -> None:
    assert [entry for entry in compiled if entry["shared"] > SHARED_MEMORY[entry["capability"]]] == []


def test_no_kernel_spills_registers(compiled: list[dict[str, Any]]) -> None:
    assert [entry for entry in compiled if entry["stack"] > 0] == []


def test_bfloat16_reaches_the_tensor_cores(compiled: list[dict[str, Any]]) -> None:
    for kernel in ("moments_kernel", "pooled_moments_kernel"):
        gram = [entry for entry in compiled if entry["kernel"] == kernel and entry["pointer"] == "*bf16"]
        assert {entry["capability"] for entry in gram} == set(SHARED_MEMORY)
        assert all(entry["tensor_cores"] for entry in gram)


def test_bfloat16_moments_are_products_of_warp_groups(compiled: list[dict[str, Any]]) -> None:
    """Hopper's own instruction, by which Triton's Gram matrix is ahead of the one in CUDA C++."""
    for pointer in ("*bf16", "*fp16"):
        found = [entry for entry in compiled if (entry["kernel"], entry["pointer"]) == ("moments_kernel", pointer)]
        assert {entry["wgmma"] for entry in found if entry["capability"] == 90} == {True}
        assert not any(entry["wgmma"] for entry in found if entry["capability"] < 90)


def test_any_size_may_be_one(printed: list[dict[str, Any]]) -> None:
    read = [entry for entry in printed if "capability" not in entry]
    assert {entry["kernel"] for entry in read} == KERNELS
    assert [entry for entry in read if entry["error"]] == []


def test_kernels_compile_with_kept_products_and_without(compiled: list[dict[str, Any]]) -> None:
    for kernel in ("pooled_cosine_kernel", "pooled_moments_backward_kernel", "pooled_cosine_backward_kernel"):
        variants = {entry["constexprs"] for entry in compiled if entry["kernel"] == kernel}
        without = {variant for variant in variants if "'KEPT': False" in variant}
        assert len(variants) == 2 * len(without) > 0


def test_float32_products_are_exact(compiled: list[dict[str, Any]]) -> None:
    assert not any(entry["tensor_cores"] for entry in compiled if entry["pointer"] == "*fp32")


def record_launches(
    functions: Callable[..., None], shape: tuple[int, ...], dtype: torch.dtype
) -> list[tuple[Any, ...]]:
    """(kernel, signature, constexprs, attributes, options) of every distinct launch of some functions at one shape."""
    import triton

    launches: dict[str, tuple[Any, ...]] = {}

    def record(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name) for name in ("num_warps", "num_stages") if name in kwargs}
        values = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
        signature, constexprs, attributes = {}, {}, {}
        for position, parameter in enumerate(kernel.params):
            value = values[parameter.name]
            # The launcher compiles an argument of 1 in, and tells the compiler what is divisible by 16.
            if parameter.is_constexpr or (isinstance(value, int) and value == 1):
                signature[parameter.name], constexprs[(position,)] = "constexpr", value
            elif isinstance(value, torch.Tensor):
                signature[parameter.name] = POINTERS[value.dtype]
                attributes[(position,)] = [["tt.divisibility", 16]]
            else:
                signature[parameter.name] = "i32" if isinstance(value, int) else "fp32"
                if isinstance(value, int) and value % 16 == 0:
                    attributes[(position,)] = [["tt.divisibility", 16]]
        launch = (kernel, signature, constexprs, attributes, options)
        launches.setdefault(f"{kernel.__name__} {launch[1:]}", launch)

    run, triton.JITFunction.run = triton.JITFunction.run, record
    try:
        functions(shape, dtype)
    finally:
        triton.JITFunction.run = run
    return list(launches.values())


def rows_functions(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    from emcl_kernels.backends import triton as triton_backend

    batch, rows, width, num_bases = shape
    x = torch.zeros(batch, rows, width, dtype=dtype)
    gram, colsum = torch.zeros(batch, width, width), torch.zeros(batch, width)
    responsibilities, scale = torch.zeros(batch, width, num_bases), torch.zeros(batch, num_bases)
    triton_backend.moments(x)
    triton_backend.moments_backward(gram, colsum, x)
    triton_backend.reconstruct(x, responsibilities, scale, 3.0)
    triton_backend.reconstruct_backward(x, x, responsibilities, scale, 3.0)
    if dtype == torch.float32:
        triton_backend.fit(gram, responsibilities, 3, 1.0, 1e-6)
        triton_backend.fit_backward(responsibilities, scale, gram, responsibilities, 2, 1.0, 1e-6)


def pooled_functions(shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> None:
    from emcl_kernels.backends import triton as triton_backend

    texts, videos, frames, width, num_bases = shape
    inputs = (
        torch.zeros(texts, width, dtype=dtype),
        torch.zeros(videos, frames, width, dtype=dtype),
        torch.ones(videos, frames),
    )
    map_ = torch.zeros(width, num_bases), torch.zeros(num_bases), 3.0
    gram, colsum, kept = triton_backend.pooled_moments(*inputs, 3.0, True)
    for known in (kept, torch.empty(0)):
        triton_backend.pooled_moments_backward(gram, colsum, *inputs, known, 3.0, True, True, True)
        cosine, length = triton_backend.pooled_cosine(*inputs, known, *map_, 3.0, False)
        triton_backend.pooled_cosine_backward(
            cosine, *inputs, known, *map_[:2], cosine, length, map_[2], 3.0, True, True, True, True
        )


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack of each thread; a stack is where spilled registers go."""
    import triton

    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        output = subprocess.run([cuobjdump, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", output)
    assert found is not None, output
    return int(found[1]), int(found[2])


Work = list[tuple[Callable[..., None], tuple[int, ...], torch.dtype, tuple[int, ...]]]


def launches_of(work: Work, part: int) -> Iterator[tuple[tuple[Any, ...], int]]:
    """The launches of this process, each with the architecture that it is compiled for."""
    found = []
    for functions, shape, dtype, capabilities in work:
        for launch in record_launches(functions, shape, dtype):
            # Others are the moments of the texts, which are among the functions of rows.
            if (functions is pooled_functions) == launch[0].__name__.startswith("pooled"):
                found += [(launch, capability) for capability in capabilities]
    yield from found[part::PARTS]


def main(part: int) -> None:
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    class Read(Exception):
        """Triton's front end is through."""

    class FrontEnd(ASTSource):
        def make_ir(self, *args: Any, **kwargs: Any) -> Any:
            super().make_ir(*args, **kwargs)
            raise Read

    work: Work = [(rows_functions, *entry) for entry in SHAPES] + [
        (pooled_functions, *entry) for entry in POOLED_SHAPES
    ]
    for (kernel, signature, constexprs, attributes, options), capability in launches_of(work, part):
        source = ASTSource(kernel, signature, constexprs, attributes)
        binary = compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        registers, stack = resources(binary.asm["cubin"])
        entry = {
            "kernel": kernel.__name__,
            "pointer": next(iter(signature.values())),
            "capability": capability,
            "constexprs": str({kernel.arg_names[position]: value for (position,), value in constexprs.items()}),
            "shared": binary.metadata.shared,
            "registers": registers,
            "stack": stack,
            "tensor_cores": "mma.sync" in binary.asm["ptx"] or "wgmma" in binary.asm["ptx"],
            "wgmma": "wgmma" in binary.asm["ptx"],
        }
        print(json.dumps(entry), flush=True)

    work = [(rows_functions, shape, torch.float32, (90,)) for shape in ONES]
    work += [(pooled_functions, shape, torch.float32, (90,)) for shape in POOLED_ONES]
    for (kernel, signature, constexprs, attributes, options), capability in launches_of(work, part):
        error = ""
        try:
            source = FrontEnd(kernel, signature, constexprs, attributes)
            compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        except Read:
            pass
        except Exception as reason:
            error = str(reason)
        sizes = {kernel.arg_names[position]: value for (position,), value in constexprs.items()}
        print(json.dumps({"kernel": kernel.__name__, "constexprs": str(sizes), "error": error}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
