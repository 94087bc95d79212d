"""Compiled kernels: ``from fastloss._native import softmax``.

Every kernel is built once for each instruction set, in that set's folder
beside this file.  This package's search path is the folder of the best set
that the machine can run, or of the one that ``FASTLOSS_ISA`` names.
"""

import os

from fastloss import _host

_root = os.path.dirname(__file__)  # not pathlib: importing that would double what importing this package costs
available = [isa for isa in _host.isas() if os.path.isdir(f"{_root}/{isa}") and os.listdir(f"{_root}/{isa}")]
isa = os.environ.get("FASTLOSS_ISA") or (available[0] if available else "")
if isa not in available:
    raise ImportError(f"FASTLOSS_ISA={isa!r}, but this machine and build offer {available}")
__path__ = [os.path.join(_root, isa)]
