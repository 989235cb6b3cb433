import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import numpy as np
from minitrain.arrays.heap import keep_freed_memory

def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.ones(2**20) for _ in range(8)]  # 64 MiB, 16384 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "keep":
    assert keep_freed_memory()
new_pages()
print(new_pages())
"""


def pages_of_the_second_step(mode):
    env = {**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0"}  # else a fault may bring 2 MiB at once
    command = [sys.executable, "-c", SCRIPT, mode]
    run = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return int(run.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_the_second_step_needs_no_new_pages():
    assert pages_of_the_second_step("default") > 1000
    assert pages_of_the_second_step("keep") < 100
