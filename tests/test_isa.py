"""Every built instruction set in a process of its own: AVX2 and AVX-512 bit for bit, the baseline within rounding."""

import functools
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from fastloss import _native

CODE = """
import hashlib, json, numpy as np
import fastloss as fl
from fastloss import _native
def digest(a):
    return hashlib.sha256(np.where(np.isnan(a), 0, a).tobytes()).hexdigest()  # a NaN's sign and payload mean nothing
result = {"isa": _native.isa, "bits": {}, "values": {}}
rng = np.random.default_rng(0)
for dtype in (np.float16, np.float32, np.float64):
    for c in (2, 10, 33, 64, 65, 1000, 5001):
        x = (8 * rng.standard_normal((70, c))).astype(dtype)
        x[5], x[6, 1:], x[7, 0] = -np.inf, -np.inf, np.nan
        y, z = rng.integers(0, c, 70), rng.random((70, c)).astype(dtype)
        out = [
            *fl.value_and_grad(fl.sparse_softmax_cross_entropy_with_logits)(labels=y, logits=x),
            *fl.value_and_grad(fl.softmax_cross_entropy_with_logits)(labels=z, logits=x, label_smoothing=0.1),
            *fl.value_and_grad(fl.softmax_cross_entropy_with_logits)(labels=z, logits=x),
            fl.softmax(x), fl.log_softmax(x), fl.logsumexp(x),
            *fl.value_and_grad(fl.softmax_focal_loss)(labels=y, logits=x),
            *fl.value_grad_hess(fl.poly1_cross_entropy)(labels=z, logits=x),
            *fl.value_and_grad(fl.sparse_softmax_cross_entropy_with_logits)(labels=y, logits=x, z_loss=0.1),
            *fl.value_and_grad(fl.softmax_cross_entropy_with_logits)(labels=z, logits=x, softcap=9.0, z_loss=0.1),
        ]
        name = f"{np.dtype(dtype).name}-{c}"
        result["bits"][name] = [digest(a) for a in out]
        result["values"][name] = [np.nan_to_num(a.astype(float).reshape(-1)[:2000]).tolist() for a in out]
    for k in (5, 1000):
        w, x = rng.standard_normal((k, 150)).astype(dtype), rng.standard_normal((70, 150)).astype(dtype)
        sample = {"labels": rng.integers(0, k, (70, 1)), "num_sampled": k, "num_classes": k, "seed": 1}
        for loss in (fl.sampled_softmax_loss, fl.nce_loss):
            f = fl.value_and_grad(loss, ("inputs", "weights"))
            value, (to_x, to_w) = f(weights=w, biases=w[:, 0], inputs=x, **sample)
            result["bits"][f"{np.dtype(dtype).name}-{loss.__name__}-{k}"] = [*map(digest, (value, to_x, to_w.values))]
print(json.dumps(result))
"""


@functools.cache
def run(isa):
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=os.environ | {"FASTLOSS_ISA": isa}, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("isa", _native.available)
def test_every_instruction_set_agrees_with_the_baseline(isa):
    got, want = run(isa), run("baseline")
    assert got["isa"] == isa
    for name, values in want["values"].items():
        rtol = {"float16": 2e-3, "float32": 2e-6, "float64": 4e-15}[name.split("-")[0]]
        for a, b in zip(got["values"][name], values, strict=True):
            np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)


@pytest.mark.skipif(not {"avx2", "avx512"} <= set(_native.available), reason="needs a processor with AVX-512")
def test_avx2_and_avx512_give_the_same_bits():
    assert run("avx2")["bits"] == run("avx512")["bits"]


def test_an_unknown_instruction_set_is_an_import_error():
    done = subprocess.run(
        [sys.executable, "-c", "import fastloss"],
        env=os.environ | {"FASTLOSS_ISA": "mmx"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "FASTLOSS_ISA='mmx', but this machine and build offer" in done.stderr
