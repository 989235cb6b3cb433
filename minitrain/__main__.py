"""`python -m minitrain`: one BLAS thread a rank, then the command line."""

import os
import sys

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # before NumPy is imported; several threads a rank fight for the cores

from minitrain.cli import main  # noqa: E402

sys.exit(main())
