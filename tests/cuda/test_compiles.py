"""Every CUDA source compiles for every set of types and every architecture, without a GPU (compiler.py)."""

import re
import shutil
from pathlib import Path

import pytest
from cuda import compiler, counts
from cuda.compiler import Kernel, RefusedError, combinations, kernels

import minitrain.arrays.kernels as module
from minitrain.arrays.kernels import PACKAGE, options

SOURCES = compiler.sources()
REGISTERS = 65536  # of a multiprocessor: a block that needs more cannot be launched
needs_compiler = pytest.mark.skipif(bool(compiler.missing()), reason=compiler.missing())

GOOD = """\
// types: T = double | float | __half | __nv_bfloat16
extern "C" __global__ void scale(const T* x, T* y, double factor) {
    y[threadIdx.x] = T(float(x[threadIdx.x]) * float(factor));
}
extern "C" __global__ void __launch_bounds__(1024)
    copy(const T* x, T* y) {
    y[threadIdx.x] = x[threadIdx.x];
}
"""
SPILLS = """\
// types: T = float
// no spills
extern "C" __global__ void __launch_bounds__(1024) shuffle(const T* x, T* y, long long n) {
    T kept[200], sum = 0;
    for (int i = 0; i < 200; i++) kept[i] = x[i * n];
    for (int k = 0; k < n; k++)
        for (int i = 0; i < 200; i++) sum += kept[i] = kept[i] * kept[(i + 7) % 200] + sum;
    y[threadIdx.x] = sum;
}
"""


@pytest.mark.parametrize(
    "source, arch",
    [(source, arch) for source in SOURCES for arch in compiler.architectures((PACKAGE / source).read_text())],
)
@needs_compiler
def test_compiles(source: str, arch: str) -> None:
    text = (PACKAGE / source).read_text()
    for types in combinations(text):
        found = compiler.compiled(text, types, arch, source)
        assert found and sorted(found) == sorted(kernels(text)), f"a kernel is not found by its line: {types}"
        spilling = {name: kernel.spilled for name, kernel in found.items() if kernel.spilled}
        assert compiler.may_spill(text) or not spilling, f"{arch}, {types}: bytes spilled: {spilling}"
        counts.compiled(source, arch, str(types), {name: kernel.registers for name, kernel in found.items()})


@pytest.mark.usefixtures("whole_folder")
@pytest.mark.skipif(shutil.which("g++") is None, reason="kernels run on the CPU by g++")
def test_every_kernel_ran_on_the_cpu() -> None:
    written = {
        f"{source}:{kernel}" for source in SOURCES for kernel in kernels((PACKAGE / source).read_text())
    }
    assert written == set(counts.THREADS)


@pytest.mark.usefixtures("whole_folder")
@needs_compiler
def test_every_block_has_registers_enough() -> None:
    """ptxas does not know the threads of a launch, and a GPU refuses one that asks for too many registers."""
    eights = {name: (count + 7) // 8 * 8 for name, count in counts.REGISTERS.items()}  # as they are given out
    needed = {name: eights[name] * threads for name, threads in counts.THREADS.items() if name in eights}
    assert {name: count for name, count in needed.items() if count > REGISTERS} == {}


def test_combinations() -> None:
    def found(*lines: str) -> list[str]:
        sets = combinations("\n".join(["// Gains.", *lines, "extern ..."]))
        return [", ".join(f"{name}={value}" for name, value in types.items()) for types in sets]

    assert found("// types: T = float") == ["T=float"]
    assert found("// types: T = double | float; G = T | float") == [
        "T=double, G=double",
        "T=double, G=float",
        "T=float, G=float",  # once
    ]
    assert found("// types: T = double; G = T", "// types: T = __half; G = T | float; I = long long") == [
        "T=double, G=double",
        "T=__half, G=__half, I=long long",
        "T=__half, G=float, I=long long",
    ]
    assert found("// types: none") == [""]
    with pytest.raises(ValueError, match="no line like"):
        found("// Types that it is for: T = float")


def test_a_source_may_refuse_fused_operations() -> None:
    assert options(GOOD) == () and options(GOOD + "// no fma\n") == ("-fmad=false",)


def test_what_is_compiled_is_known_by_all_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CuPy takes a kernel from its cache if the text is the same, which therefore tells of each header."""
    monkeypatch.setattr(module, "INCLUDED", tmp_path)
    texts = []
    for name in ("common.cuh", "tensor_core.cuh"):
        for content in ("// one", "// two"):
            (tmp_path / name).write_text(content)
            module._digest.cache_clear()
            texts.append(module.preamble({}, "a.cu"))
    module._digest.cache_clear()
    assert len(set(texts)) == len(texts)


def test_architectures() -> None:
    assert compiler.architectures(GOOD) == ("sm_80", "sm_90")
    assert compiler.architectures("// needs: sm_90a\n") == ("sm_90a",)


@needs_compiler
def test_kernels_and_registers_are_told() -> None:
    assert kernels(GOOD) == ["scale", "copy"]
    for types in combinations(GOOD):
        found = compiler.compiled(GOOD, types, "sm_90")
        assert sorted(found) == ["copy", "scale"]
        assert all(4 <= kernel.registers <= 32 and kernel.spilled == 0 for kernel in found.values())


@needs_compiler
def test_whole_numbers_are_constants() -> None:
    text = GOOD + 'static_assert(N == 64, "N");\n'
    compiler.compiled(text, {"T": "float", "N": "64"}, "sm_80")


@needs_compiler
def test_spills_are_found() -> None:
    assert not compiler.may_spill(SPILLS) and compiler.may_spill(GOOD)
    spilled = compiler.compiled(SPILLS, {"T": "float"}, "sm_80")["shuffle"].spilled
    assert spilled > 1000


@needs_compiler
@pytest.mark.parametrize(
    "old, new, said",
    [
        ("    y[threadIdx.x] = x[", "    z[threadIdx.x] = x[", r'scale\.cu\(7\): error: identifier "z"'),
        ("    y[threadIdx.x] = x[", "    int unused;\n    y[threadIdx.x] = x[", r"scale\.cu\(7\): warning"),
        (
            "const T* x, T* y) {\n",
            "const T* x, T* y) {\n    __shared__ volatile T s[20000];\n    s[0] = x[0];\n",
            "too much shared",
        ),
        ("const T* x, T* y) {\n", 'const T* x, T* y) {\n    asm("wgmma.fence.sync.aligned;");\n', "wgmma"),
    ],
    ids=["error", "warning", "shared memory", "instruction of another architecture"],
)
def test_errors_are_told_with_their_line(old: str, new: str, said: str) -> None:
    assert old in GOOD
    with pytest.raises(RefusedError) as refused:
        compiler.compiled(GOOD.replace(old, new, 1), {"T": "float"}, "sm_90", "ops/cuda/scale.cu")
    assert re.search(said, str(refused.value)), refused.value


@needs_compiler
def test_what_needs_hopper_s_own_instructions_compiles_for_them() -> None:
    text = GOOD.replace(
        "const T* x, T* y) {\n", 'const T* x, T* y) {\n    asm("wgmma.fence.sync.aligned;");\n'
    )
    assert compiler.compiled(text, {"T": "float"}, "sm_90a")["copy"] == Kernel(registers=10, spilled=0)
