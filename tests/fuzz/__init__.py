"""A differential fuzzer: random valid calls of every public function, against oracles and against themselves.

``python -m tests.fuzz --minutes 3`` runs it from a checkout.  A case is made from a seed and its number alone:

draws      random shapes, values and options
layouts    the same numbers, laid out in memory in every way
calls      one call as data: run it, and see what it touched
softmaxes, elements, products, samples, sequences, alignments, samplers
           calls of each kind of function, and what they must give
bounds     how far a result may lie from its oracle
checks     what must hold of every call
shrinking  a smaller call that fails alike, as Python
workers    the process that runs the cases, with its heap poisoned
runner     starts workers, notes crashes, reports
misuse     instead of all that: random wrong calls, which must be refused
"""

import sys
from pathlib import Path

_HELPERS = str(Path(__file__).resolve().parents[1] / "helpers")
if _HELPERS not in sys.path:  # as a pytest run has it: the oracles lie there
    sys.path.insert(0, _HELPERS)
