"""Every built instruction set in a process of its own: AVX2 and AVX-512 bit for bit, the baseline within rounding.

As a program, `python tests/kernels/test_isa.py [FILE]`, it prints a digest of every result.
What the results begin with is kept in FILE.
"""

import functools
import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from shared import python
from table import BFLOAT16, DTYPES, LOSSES

import fastloss as fl
from fastloss import _native

FLOATS = [np.dtype(t) for t in (np.float16, np.float32, np.float64)]
RTOL = {np.dtype(np.float16): 2e-3, BFLOAT16: 1.6e-2, np.dtype(np.float32): 2e-6, np.dtype(np.float64): 4e-15}


def the_table():
    """Every loss, gradient and Hessian."""
    for loss in LOSSES:
        for dtype in DTYPES:
            kwargs = loss.make(np.random.default_rng(7), 1013 if loss.elementwise else 150, dtype)
            yield f"{loss}", fl.value_and_grad(loss.function, loss.wrt)(**kwargs)
            for kind in loss.function.hessians:
                if kind == "upper" and kwargs.keys() & {"z_loss", "softcap"}:  # is not defined
                    continue
                yield f"{loss} {kind}", fl.value_grad_hess(loss.function, kind)(**kwargs)


def softmaxes():
    """Narrow rows go by tiles, others row by row; some hold nothing, and NaN."""
    both = [fl.value_and_grad(f) for f in (fl.sparse_softmax_cross_entropy_with_logits, fl.softmax_focal_loss)]
    dense = fl.value_and_grad(fl.softmax_cross_entropy_with_logits)
    rng = np.random.default_rng(0)
    for dtype in FLOATS:
        for c in (2, 10, 33, 64, 65, 1000, 5001):
            x = (8 * rng.standard_normal((70, c))).astype(dtype)
            x[5], x[6, 1:], x[7, 0] = -np.inf, -np.inf, np.nan
            y, z = rng.integers(0, c, 70), rng.random((70, c)).astype(dtype)
            yield f"softmaxes of {c}", (fl.softmax(x), fl.log_softmax(x), fl.logsumexp(x))
            yield f"sparse losses of {c}", [f(labels=y, logits=x) for f in both]
            yield f"dense losses of {c}", (dense(labels=z, logits=x), dense(labels=z, logits=x, label_smoothing=0.1))
            yield f"capped loss of {c}", dense(labels=z, logits=x, softcap=9.0, z_loss=0.1)


def elements():
    rng = np.random.default_rng(1)
    for dtype in FLOATS:
        x = np.concatenate([rng.standard_normal(1000) * 30, [0, -0.0, np.inf, -np.inf, np.nan]]).astype(dtype)
        yield "unary", [f(x) for f in (fl.sigmoid, fl.log_sigmoid, fl.softplus)]


def products():
    """Losses of layers: gradients to the tables, widths with remainders."""
    rng = np.random.default_rng(2)
    wrt = ("inputs", "weights")
    for dtype in FLOATS:
        for k in (5, 400, 1000):
            w, x = rng.standard_normal((k, 150)).astype(dtype), rng.standard_normal((70, 150)).astype(dtype)
            layer = {"inputs": x, "weights": w, "labels": rng.integers(0, k, 70)}
            f = fl.value_and_grad(fl.linear_cross_entropy, wrt)
            yield f"linear of {k}", (f(**layer), f(**layer, softcap=20.0, label_smoothing=0.1))
            sample = {"biases": w[:, 0], "num_sampled": k, "num_classes": k, "seed": 1}
            sample |= {**layer, "labels": layer["labels"][:, None]}
            for loss in (fl.sampled_softmax_loss, fl.nce_loss):
                value, (to_x, to_w) = fl.value_and_grad(loss, wrt)(**sample)
                yield f"{loss.__name__} of {k}", (value, to_x, to_w.indices, to_w.values)


def sequences():
    rng = np.random.default_rng(3)
    for dtype in FLOATS:
        x, y = (3 * rng.standard_normal((40, 9, 60))).astype(dtype), rng.integers(0, 60, (40, 9))
        w, length = rng.random((40, 9)) * (rng.random((40, 9)) > 0.2), rng.integers(20, 41, 9)
        speech = {"labels": rng.integers(1, 60, (9, 12)), "label_length": rng.integers(0, 10, 9)}
        for spread in (1, 30):
            kwargs = {**speech, "logits": (spread * x).astype(dtype), "logit_length": length}
            yield f"ctc, {spread}", fl.value_and_grad(fl.ctc_loss)(**kwargs)
        yield "greedy", fl.ctc_greedy_decode(x, length)
        yield "beams", fl.ctc_beam_search_decode(x, length, beam_width=8, top_paths=3)
        yield "sequence", fl.value_and_grad(fl.sequence_loss, ("logits", "weights"))(x, y, w)
        yield "packed", fl.value_and_grad(fl.packed_sequence_loss)(x[0], y[0], np.array([0, 4, 9]), w[0])
    yield "distances", fl.edit_distance(*rng.integers(0, 5, (2, 7, 30)), truth_length=rng.integers(1, 31, 7))


def draws():
    """Integers: the same on every instruction set."""
    uniform, log_uniform = fl.UniformSampler, fl.LogUniformSampler
    samplers = [uniform(10**6, seed=1), log_uniform(10**6, seed=1), log_uniform(2**45, seed=1)]
    samplers += [fl.LearnedUnigramSampler(10**5, seed=1), fl.FixedUnigramSampler(np.arange(5000.0), seed=1)]
    for i, sampler in enumerate(samplers):
        for unique in (False, True):
            yield f"draws {i}", sampler.sample(3000, unique)
    yield "alias", fl.AliasTable(np.arange(5000.0)).sample(10**5, 3)
    for i, sampler in enumerate(samplers):
        yield f"candidates {i}", sampler.candidates(np.arange(64)[:, None], 500, True)
    yield "negatives", fl.sample_negatives(log_uniform(1000, seed=4), np.arange(64)[:, None], 20)


def flat(result):
    for part in result if isinstance(result, (tuple, list)) else [result]:
        yield from flat(part) if isinstance(part, (tuple, list)) else [np.asarray(part)]


def results():
    """By name and dtype: arrays in float64, which holds every other exactly. A NaN has no sign and no payload."""
    for group in (the_table, softmaxes, elements, products, sequences, draws):
        for i, (name, result) in enumerate(group()):
            for j, a in enumerate(flat(result)):
                label = f"{group.__name__}|{i}|{j}|{name}|{a.dtype.name}"
                if a.dtype.kind not in "iub":
                    a = np.where(a != a, np.nan, a.astype(np.float64))
                yield label, a


def main(file=None):
    beginnings = {}
    for name, a in results():
        beginnings[name] = a.ravel()[:1000]
        print(hashlib.sha256(a.tobytes()).hexdigest(), name)
    if file:
        np.savez(file, **beginnings)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("isa")

    @functools.cache
    def run(isa):
        """Its digests, and what its results begin with."""
        file = folder / f"{isa}.npz"
        lines = python(__file__, str(file), PYTHONPATH=os.pathsep.join(sys.path), FASTLOSS_ISA=isa).split("\n")
        return set(lines), dict(np.load(file))

    return run


@pytest.mark.parametrize("isa", [isa for isa in _native.available if isa != "baseline"])
def test_an_instruction_set_agrees_with_the_baseline(isa, run):
    if "baseline" not in _native.available:
        pytest.skip("the baseline was not built")
    (_, got), (_, want) = run(isa), run("baseline")
    assert got.keys() == want.keys()
    coarsest = {}  # of the results of one call: a weight's gradient in float64 may be made of losses in float32
    for name in want:
        group, call, *_, dtype = name.split("|")
        rtol = RTOL.get(BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype), 0)
        if group == "products" and dtype == "float32":
            rtol *= 2  # long chains of products, which the baseline does not fuse
        coarsest[group, call] = max(rtol, coarsest.get((group, call), 0))
    for name, b in want.items():
        if b.dtype.kind in "iub":
            assert np.array_equal(got[name], b), name
            continue
        rtol = coarsest[tuple(name.split("|")[:2])]
        scale = np.abs(b[np.isfinite(b)]).max(initial=0)
        np.testing.assert_allclose(got[name], b, rtol=rtol, atol=rtol * scale, err_msg=name)


@pytest.mark.skipif(not {"avx2", "avx512"} <= set(_native.available), reason="needs a processor with AVX-512")
def test_avx2_and_avx512_give_the_same_bits(run):
    assert run("avx2")[0] ^ run("avx512")[0] == set()


def test_an_unknown_instruction_set_is_an_import_error():
    done = subprocess.run(
        [sys.executable, "-c", "import fastloss"],
        env=os.environ | {"FASTLOSS_ISA": "mmx"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "FASTLOSS_ISA='mmx', but this machine and build offer" in done.stderr


if __name__ == "__main__":
    main(*sys.argv[1:])
