"""Under limits of memory: what does not fit is a MemoryError that names the bytes; nothing grows from call to call."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastloss as fl
from fastloss._core import memory as _memory

TESTS = Path(__file__).parents[1] / "helpers"
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def start(script, **options):
    one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    environment = os.environ | one | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=500, env=environment, **options
    )


def run(script, **options):
    done = start(script, **options)
    assert done.returncode == 0, (done.returncode, done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout


# ------------------------------------------------------------------ requests that no machine can meet

X = np.zeros((2, 3), np.float32)
HUGE = np.broadcast_to(np.float32(0), (2**30, 2**30))


REQUESTS = [
    ("all_candidate_sampler", "num_sampled", 2**40, lambda n: fl.all_candidate_sampler([[1]], 1, n, True)),
    ("AliasTable.sample", "size", 2**60, lambda n: fl.AliasTable([1.0, 2.0]).sample(n)),
    ("AliasTable.sample, shape", "size", (2**30, 2**30), lambda n: fl.AliasTable([1.0, 2.0]).sample(n)),
    ("sample", "num_sampled", 2**40, lambda n: fl.UniformSampler(2**50).sample(n)),
    ("sample, repeats", "num_sampled", 2**40, lambda n: fl.LogUniformSampler(9).sample(n, False)),
    ("candidates", "num_sampled", 2**60, lambda n: fl.UniformSampler(9).candidates([1], n, False)),
    ("function", "num_sampled", 2**40, lambda n: fl.log_uniform_candidate_sampler([[1]], 1, n, False, 9)),
    ("sample_negatives", "num_sampled", 2**40, lambda n: fl.sample_negatives(fl.UniformSampler(2**50), [[1]], n)),
    ("negatives, most", "num_sampled", 2**62, lambda n: fl.sample_negatives(fl.UniformSampler(2**63 - 1), [[1]], n)),
    ("learned", "range_max", 2**40, lambda n: fl.LearnedUnigramSampler(n)),
    ("top_paths", "top_paths", 2**31, lambda n: fl.ctc_beam_search_decode(np.zeros((9, 9, 3)), None, n, n)),
    ("beam_width", "beam_width", 2**31, lambda n: fl.ctc_beam_search_decode(np.zeros((99, 1, 3)), beam_width=n)),
    ("to_dense", "shape", (2**40, 3), lambda n: fl.SparseRows(np.array([1, 2]), X, n).to_dense()),
]  # fmt: skip


@pytest.mark.parametrize(("name", "argument", "value", "call"), REQUESTS, ids=[r[0] for r in REQUESTS])
def test_a_number_that_asks_for_more_than_there_is(name, argument, value, call):
    with pytest.raises(MemoryError, match=rf"^{argument} .*\b\d{{9,}} bytes") as error:
        call(value)
    assert str(value) in str(error.value)


def test_reserved_ids_take_what_there_is_at_most(monkeypatch):
    monkeypatch.setattr(_memory, "most", lambda **_: 10**9)
    with pytest.raises(MemoryError, match=r"^num_reserved_ids .*1000000000 bytes; got 2000000000: 80000000080 bytes"):
        fl.FixedUnigramSampler([1.0, 2.0], num_reserved_ids=2 * 10**9)


SHAPES = [
    ("softmax", lambda: fl.softmax(HUGE)),
    ("elementwise", lambda: fl.mean_squared_error(labels=HUGE, predictions=HUGE, reduction="none")),
    ("sigmoid", lambda: fl.sigmoid(HUGE)),
    ("ctc", lambda: fl.value_and_grad(fl.ctc_loss)(
        labels=[[1]] * 2, logits=np.broadcast_to(X, (2**50, 2, 3)), label_length=[1, 1], logit_length=[2, 2])),
    ("table", lambda: fl.value_and_grad(fl.linear_cross_entropy, "weights")(
        inputs=X, weights=np.broadcast_to(X[:1], (2**45, 3)), labels=[0, 1])),
]  # fmt: skip


@pytest.mark.parametrize(("name", "call"), SHAPES, ids=[s[0] for s in SHAPES])
def test_a_broadcast_array_whose_results_fit_nowhere(name, call):
    with pytest.raises(MemoryError, match=r"\d{9,} bytes"):
        call()


# ------------------------------------------------------------------ limits of the process, and of its memory cgroup

# small ones, then one that does not fit, then small ones again
DOES_NOT_FIT = """
import numpy as np, fastloss as fl
def small():
    x = np.ones((30, 20), np.float32)
    loss, grad = fl.value_and_grad(fl.sparse_softmax_cross_entropy_with_logits)(labels=np.zeros(30, int), logits=x)
    assert abs(loss[0] - np.log(20)) < 1e-5 and abs(grad[0, 1] - 0.05) < 1e-6
    assert fl.UniformSampler(9, seed=1).sample(3).shape == (3,)
small()
LIMIT
big = np.broadcast_to(np.float32(1), (1 << 28, 1))
calls = [
    lambda: fl.value_and_grad(fl.mean_squared_error)(labels=big, predictions=big),
    lambda: fl.value_and_grad(fl.softmax_cross_entropy_with_logits)(labels=big, logits=big),
    lambda: fl.softmax(big), lambda: fl.log_sigmoid(big),
    lambda: fl.value_and_grad(fl.linear_cross_entropy)(
        inputs=np.ones((9000, 8), np.float32), weights=np.ones((40000, 8), np.float32), labels=np.zeros(9000, int),
        max_memory=1 << 40),
    lambda: fl.all_candidate_sampler([[1]], 1, 1 << 26, True),
    lambda: fl.AliasTable([1.0, 2.0]).sample(1 << 27),
    lambda: fl.UniformSampler(9).sample(1 << 27, False),
    lambda: fl.UniformSampler(1 << 40).sample(1 << 26),
    lambda: fl.sample_negatives(fl.UniformSampler(9), [[1]], 1 << 27, unique=False),
    lambda: fl.FixedUnigramSampler([1.0], num_reserved_ids=1 << 27),
]
for k, call in enumerate(calls):
    try:
        call()
    except MemoryError as error:
        assert "bytes" in str(error), (k, str(error))
    else:
        raise SystemExit(f"call {k} fitted")
    small()
print("lives")
"""
ADDRESS_SPACE = """
import resource
now = int(open("/proc/self/statm").read().split()[0])*resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (300 << 20), now + (300 << 20)))
"""


@linux
def test_a_call_that_does_not_fit_the_address_space_raises_and_the_process_lives():
    assert run(DOES_NOT_FIT.replace("LIMIT", ADDRESS_SPACE)) == "lives\n"


@pytest.fixture
def cgroup():
    """A function that makes a memory cgroup with so many bytes, below this process's own."""
    made = []

    def make(limit):
        try:
            groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
            path = next(path for _, kind, path in groups if "memory" in kind.split(","))
            folder, file = Path("/sys/fs/cgroup/memory" + path), "memory.limit_in_bytes"
        except (OSError, StopIteration):
            folder, file = Path("/sys/fs/cgroup"), "memory.max"
        folder = folder / f"fastloss-test-{os.getpid()}-{len(made)}"
        try:
            folder.mkdir()
            made.append(folder)
            (folder / file).write_text(str(limit))
        except OSError as error:
            pytest.skip(f"no memory cgroup can be made: {error}")
        return folder

    yield make
    for folder in made:
        folder.rmdir()


ENTER = """
import os
open("FOLDER/cgroup.procs", "w").write(str(os.getpid()))
"""


@linux
def test_a_call_that_does_not_fit_the_container_raises_and_the_process_lives(cgroup):
    enter = ENTER.replace("FOLDER", str(cgroup(400 << 20)))
    assert run(DOES_NOT_FIT.replace("LIMIT", enter)) == "lives\n"


ROOM_AGAIN = """
import numpy as np, fastloss as fl
ENTER
x = np.ones(25 << 20, np.float32)
for _ in range(3):
    both = fl.value_and_grad(fl.mean_squared_error)(labels=x, predictions=x, reduction="none")
    del both
y = np.ones(65 << 20, np.float32)  # 260 MB of 400, with the 100 that x has
print("lives")
"""


@linux
def test_in_a_container_dropped_results_leave_room_for_numpy(cgroup):
    assert run(ROOM_AGAIN.replace("ENTER", ENTER.replace("FOLDER", str(cgroup(400 << 20))))) == "lives\n"


# ------------------------------------------------------------------ flat

RESIDENT = """
import gc, resource
def resident():
    gc.collect()
    return int(open("/proc/self/statm").read().split()[1])*resource.getpagesize()
"""
IN_BATCH = """
import numpy as np, fastloss as fl
x = np.random.default_rng(0).standard_normal((300, 100), np.float32)
both = fl.value_and_grad(fl.in_batch_softmax_loss, ("queries", "keys"))
for _ in range(20):
    both(x, x)
before = resident()
for _ in range(600):
    both(x, x)
print(resident() - before)
"""


@linux
def test_equal_calls_of_middling_size_stay_flat():
    assert int(run(RESIDENT + IN_BATCH)) < 8 << 20


EVERYTHING = """
import sys
sys.path.insert(0, "TESTS")
import numpy as np, fastloss as fl
from table import LOSSES

rng = np.random.default_rng(0)
small, large = [], []
for loss in LOSSES:
    both = fl.value_and_grad(loss.function, loss.wrt)
    for calls, n in ((small, 3), (large, 700)):
        kwargs = loss.make(rng, n, np.dtype(np.float32))
        calls += [lambda f=both, k=kwargs: f(**k), lambda f=loss.function, k=kwargs: f(**k)]
steps = [x for x in np.log(rng.dirichlet(np.ones(5), (4, 3)))]
logits = rng.standard_normal((6, 2, 5))
rows = fl.SparseRows(np.array([2, 0, 2]), np.ones((3, 4), np.float32), (9, 4))
samplers = [fl.UniformSampler(99, seed=0), fl.LogUniformSampler(99, seed=0), fl.LearnedUnigramSampler(99, seed=0),
            fl.FixedUnigramSampler(np.arange(1.0, 100), seed=0)]
table = fl.AliasTable(np.arange(1.0, 100))
part = {"inputs": np.ones((3, 4)), "weights": np.ones((5, 4)), "labels": [0, 1, 2]}
small += [
    lambda: fl.softmax(logits), lambda: fl.log_softmax(logits, (0, 2)), lambda: fl.logsumexp(logits),
    lambda: fl.sigmoid(logits), lambda: fl.log_sigmoid(logits), lambda: fl.softplus(logits),
    lambda: fl.ctc_greedy_decode(logits), lambda: fl.ctc_beam_search_decode(logits, beam_width=5, top_paths=2),
    lambda: fl.edit_distance([[1, 2, 3]], [[1, 3, 3]]),
    lambda: fl.sequence_loss(logits, np.zeros((6, 2), int), np.ones((6, 2))),
    lambda: fl.value_and_grad(fl.sequence_loss_by_example)(steps, [[0, 1, 2]]*4, [[1.0, 1.0, 1.0]]*4),
    lambda: fl.value_and_grad(fl.packed_sequence_loss)(logits[:, 0], np.zeros(6, int), [0, 2, 6]),
    lambda: fl.value_grad_hess(fl.mean_squared_error)(labels=logits, predictions=logits),
    lambda: fl.loss_from_partials(fl.merge_partials(*[fl.linear_partials(**part, first_class=k) for k in (0, 5)])),
    lambda: rows.coalesce(), lambda: rows.to_dense(), lambda: rows.add_to(np.ones((9, 4), np.float32)),
    lambda: table.sample(50, 1), lambda: table.sample_unique(20, 1), lambda: table.probability([1, 2]),
    lambda: fl.AliasTable([1.0, 2.0]), lambda: fl.sample_negatives(table, [[1, 2]], 20, seed=1),
    lambda: fl.compute_accidental_hits([[1, 2]], [2, 2, 3], 2), lambda: fl.all_candidate_sampler([[1]], 1, 9, True),
    lambda: fl.uniform_candidate_sampler([[1]], 1, 9, True, 99),
    lambda: fl.log_uniform_candidate_sampler([[1]], 1, 9, True, 99),
    lambda: fl.learned_unigram_candidate_sampler([[1]], 1, 9, True, 99),
    lambda: fl.fixed_unigram_candidate_sampler([[1]], 1, 3, True, 4, unigrams=[1, 2, 3, 4]),
]
for s in samplers:
    small += [lambda s=s: s.sample(30), lambda s=s: s.sample(99), lambda s=s: s.candidates([[1, 2]], 30),
              lambda s=s: s.probability([3]), lambda s=s: s.expected_count([3], 30, True, 40.0),
              lambda s=s: setattr(s, "state", s.state), lambda s=s: fl.sample_negatives(s, [[1]], 20)]
small += [lambda: samplers[2].update([1, 2]), lambda: samplers[2].counts, lambda: samplers[3].global_ids([1])]
def turn():
    for _ in range(ROUNDS):
        for call in small:
            call()
    for _ in range(3):
        for call in large:
            call()
turn()
before = resident()
for _ in range(4):
    turn()
print(4*(ROUNDS*len(small) + 3*len(large)), resident() - before)
"""


@linux
def test_calls_of_every_function_stay_flat():
    calls, growth = map(int, run(RESIDENT + EVERYTHING.replace("TESTS", str(TESTS)).replace("ROUNDS", "190")).split())
    assert calls > 1e5
    assert growth < 6 << 20
