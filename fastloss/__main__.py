"""``python -m fastloss COMMAND ...``."""

from __future__ import annotations

import os
import sys

_ONE_THREAD = dict.fromkeys(
    (
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "BLIS_NUM_THREADS",
        "VECLIB_MAXIMUM_THREADS",
    ),
    "1",
)


def _pin_blas() -> None:
    """Start this process anew with BLAS on one thread, which it settles when NumPy is imported.

    OpenBLAS's threads change last bits (measured: gradient of the logits times the table) and spin when idle.
    The commands split their products themselves, into blocks that do not depend on threads.
    """
    if os.name == "posix" and any(os.environ.get(name) != value for name, value in _ONE_THREAD.items()):
        os.environ.update(_ONE_THREAD)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


if __name__ == "__main__":
    _pin_blas()
    from fastloss._cli.train import main

    sys.exit(main())
