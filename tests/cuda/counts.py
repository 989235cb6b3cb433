"""What the tests counted: kernels that the GPU's compiler took, and kernels that ran on the CPU.

A kernel's name here is `ops/cuda/norm.cu:rms_norm_forward`.
"""

CUBINS: set[tuple[str, str, str]] = set()  # source, architecture, types
REGISTERS: dict[str, int] = {}  # kernel -> the most that a thread of it needs, in any of its cubins
THREADS: dict[str, int] = {}  # kernel -> the most of a block with which it ran


def compiled(source: str, arch: str, types: str, registers: dict[str, int]) -> None:
    CUBINS.add((source, arch, types))
    for kernel, count in registers.items():
        name = f"{source}:{kernel}"
        REGISTERS[name] = max(count, REGISTERS.get(name, 0))


def ran(source: str, kernel: str, threads: int) -> None:
    name = f"{source}:{kernel}"
    THREADS[name] = max(threads, THREADS.get(name, 0))


def summary() -> str:
    """One line of a report; empty if there is nothing to tell."""
    if not CUBINS and not THREADS:
        return ""
    archs = ", ".join(sorted({arch for _, arch, _ in CUBINS})) or "no architecture"
    n_sources = len({source for source, _, _ in CUBINS})
    return (
        f"cuda: {len(REGISTERS)} kernels of {n_sources} sources compiled for {archs} ({len(CUBINS)} cubins); "
        f"{len(THREADS)} checked on the CPU"
    )
