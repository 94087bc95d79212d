"""Processes: forks, limits of threads and memory, busy processors, and Ctrl-C while a kernel runs."""

import os
import resource
import signal
import statistics
import subprocess
import sys
import time

import pytest
import shared

from fastloss import _parallel

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks, limits and signals of POSIX")
openmp = pytest.mark.skipif(_parallel.openmp_max_threads() == 0, reason="built without OpenMP")

CLEAN = {k: v for k, v in os.environ.items() if k == "OMP_TOOL_LIBRARIES" or not k.startswith(("OMP_", "GOMP_"))}
SPARSE = """
import os, threading, time
import numpy as np, fastloss as fl
r = np.random.default_rng(0)
x, y = r.standard_normal((512, 1000)), r.integers(0, 1000, 512)
def loss(n_threads=None):
    return fl.sparse_softmax_cross_entropy_with_logits(labels=y, logits=x, n_threads=n_threads).tobytes()
"""


def python(code, **options):
    return shared.python(code, base=CLEAN, timeout=100, **options)


# ------------------------------------------------------------------ forks


def forking(how, parent):
    """A child that is forked while or after its parent computes: one thread, the same bits, and an end."""
    return f"""{SPARSE}
from fastloss._core import threads as _threads
want = loss(1)
{parent}
def child():
    ok = loss(2) == want and loss() == want and _threads.resolve() == _threads.resolve(2) == 1
    os._exit(0 if ok else 3)
def fork():
    pid = os.fork()
    if pid == 0:
        child()
    end = time.monotonic() + 60
    while time.monotonic() < end:
        gone, status = os.waitpid(pid, os.WNOHANG)
        if gone:
            codes.append(os.waitstatus_to_exitcode(status))
            return
        time.sleep(0.005)
    os.kill(pid, 9)
    codes.append("hangs")
codes = []
{how}
assert loss(2) == want
print(*codes)
"""


IN_A_THREAD = "t = threading.Thread(target=fork); t.start(); t.join()"
WHILE_OTHERS_COMPUTE = """
stop = False
def calls():
    while not stop:
        assert loss(3) == want
others = [threading.Thread(target=calls) for _ in range(16)]
for t in others: t.start()
for _ in range(5): fork()
stop = True
for t in others: t.join()
"""


@openmp
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize(
    ("how", "parent", "children"),
    [
        ("fork()", "", 1),
        ("fork()", "loss(2)", 1),
        (IN_A_THREAD, "loss(2)", 1),
        (IN_A_THREAD.replace("target=fork", "target=lambda: (loss(2), fork())"), "", 1),
        (WHILE_OTHERS_COMPUTE, "", 5),
    ],
    ids=["fresh", "after a team", "in a thread", "in a thread with a team", "while 16 threads compute"],
)
def test_forked_children(how, parent, children):
    assert python(forking(how, parent)) == " ".join(["0"] * children)


# ------------------------------------------------------------------ limits

LOSSES = (
    SPARSE
    + """
want = loss(1)
assert loss(8) == want and loss() == want
other = threading.Thread(target=lambda: print(loss(8) == want))
other.start()
other.join()
"""
)


DEEP = """
deep = fl.value_and_grad(fl.tweedie_loss)       # of all kernels the one with the most on its stack
deep = [deep(labels=x*x, predictions=x*x, power=1.3, sample_weight=x*x, n_threads=k)[1].tobytes() for k in (1, 8)]
assert deep[0] == deep[1]
"""


@openmp
@pytest.mark.parametrize(
    "environment",
    [
        {"OMP_NUM_THREADS": "100000"},
        {"OMP_NUM_THREADS": "33000"},
        {"OMP_STACKSIZE": "16k"},
        {"OMP_STACKSIZE": "16"},
        {"OMP_STACKSIZE": "20000B"},
        {"GOMP_STACKSIZE": "16k"},
        {"OMP_STACKSIZE": "200G"},
        {"OMP_STACKSIZE": "nonsense"},
        {"OMP_THREAD_LIMIT": "2"},
        {"OMP_THREAD_LIMIT": "1"},
        {"OMP_DYNAMIC": "true"},
        {"OMP_NESTED": "true", "OMP_MAX_ACTIVE_LEVELS": "4"},
        {"OMP_WAIT_POLICY": "passive"},
        {"OMP_PROC_BIND": "true"},
    ],
    ids=lambda e: ",".join(f"{k}={v}" for k, v in e.items()),
)
def test_settings_of_openmp(environment):
    assert python(LOSSES + DEEP, **environment) == "True"


def limits(what, size):
    def before():
        resource.setrlimit(what, (size, size))

    return before


@openmp
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of Linux")
@pytest.mark.parametrize("more", [0, 1, 2, 5])
def test_a_limit_of_processes(more):
    if os.getuid() != 0:
        pytest.skip("only root can become somebody without processes")
    code = LOSSES.replace("want = loss(1)", f"""
import resource
want = loss(1)
os.setgid(65534)
os.setuid(65534)    # root is exempt
resource.setrlimit(resource.RLIMIT_NPROC, (1 + {more},)*2)
""").replace("other.start()\nother.join()", "print(loss(8) == want)")  # fmt: skip
    assert python(code, OPENBLAS_NUM_THREADS="1") == "True"


@openmp
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of Linux")
@pytest.mark.parametrize("megabytes", [0, 6, 20, 50, 150])
def test_a_limit_of_memory(megabytes):
    """So much more address space than the process has: a thread's stack takes 8 MB."""
    code = LOSSES.replace("want = loss(1)", f"""
import resource
want = loss(1)
size = int(open('/proc/self/statm').read().split()[0])*4096 + ({megabytes} << 20)
resource.setrlimit(resource.RLIMIT_AS, (size, size))
def loss(n_threads, loss=loss):
    try:
        return loss(n_threads)
    except MemoryError:
        return want
""").replace("loss() == want", "True").replace("other.start()\nother.join()", "print(loss(8) == want)")  # fmt: skip
    assert python(code, OPENBLAS_NUM_THREADS="1") == "True"


@openmp
def test_a_small_stack_of_all_threads():
    assert python(LOSSES, before=limits(resource.RLIMIT_STACK, 100 << 10)) == "True"


# ------------------------------------------------------------------ who has the team


def test_one_python_thread_has_the_team():
    code = """
import threading, time
from fastloss._core import threads as _threads
_threads._CPUS = 4
_threads._parallel.openmp_max_threads = lambda: 4
found = []
def ask(): found.append(_threads.resolve())
def in_a_thread():
    t = threading.Thread(target=ask); t.start(); t.join()
in_a_thread()       # the first; it ends, some time after join()
while _threads.resolve() == 1: time.sleep(0.001)
ask()               # the next one has it now
in_a_thread()
found.append(_threads.resolve(3))
print(found)
"""
    assert python(code) == "[4, 4, 1, 3]"


@pytest.mark.parametrize(
    "worker",
    [
        "sys.modules['__main__'].__spec__ = type('S', (), {'name': 'pyspark.daemon'})()",
        "sys.modules['__main__'].__spec__ = type('S', (), {'name': 'pyspark.worker'})()",
        "m = sys.modules['ray._private.worker'] = type(sys)('w'); m.global_worker = type('W', (), {'mode': 1})()",
        "m = sys.modules['distributed.worker'] = type(sys)('w'); m.thread_state = sys.implementation; "
        "m.thread_state.execution_state = {}",
    ],
    ids=["Spark's daemon", "Spark", "Ray", "Dask"],
)
def test_workers_of_engines(worker):
    code = f"import sys\n{worker}\nfrom fastloss._core import threads as _threads\n_threads._CPUS = 4\n"
    code += "_threads._parallel.openmp_max_threads = lambda: 4\nprint(_threads.resolve(), _threads.resolve(3))"
    assert python(code) == "1 3"
    for told, other in [("'mode': 1", "'mode': 0"), ("execution_state", "none"), ("pyspark", "p")]:
        code = code.replace(told, other)
    assert python(code) == "4 3"


# ------------------------------------------------------------------ busy processors


@openmp
@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="counts the processors it may use")
def test_default_calls_beside_busy_processes():
    """As many busy processes as processors: a default call takes about one thread's time."""
    n = len(os.sched_getaffinity(0))
    if not 2 <= n <= 16:
        pytest.skip("as many busy processes as processors")
    code = f"""{SPARSE}
def median(n_threads):
    times = []
    for _ in range(150):
        began = time.perf_counter()
        loss(n_threads)
        times.append(time.perf_counter() - began)
        time.sleep(0.001)
    return sorted(times)[75]
loss(), loss(1)
print(median(1), median(None), median(1), median(None))
"""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True) for _ in range(n)]
    try:
        ratios = []
        for _ in range(3):
            one, default, again, twice = map(float, python(code).split())
            ratios.append((default + twice) / (one + again))
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert statistics.median(ratios) < 2, ratios


# ------------------------------------------------------------------ Ctrl-C

LONG = {
    "ctc_loss": "x = np.broadcast_to(r.standard_normal((2000, 1, 128), np.float32), (2000, 400, 128)); "
    "y = r.integers(1, 128, (400, 600)); n, m = [600]*400, [2000]*400; "
    "f = lambda: fl.value_and_grad(fl.ctc_loss)(labels=y, logits=x, label_length=n, logit_length=m, **k)",
    "one long entry": "x = r.standard_normal((20000, 1, 64), np.float32); y = r.integers(1, 64, (1, 4000)); "
    "f = lambda: fl.ctc_loss(labels=y, logits=x, label_length=[4000], logit_length=[20000], **k)",
    "edit_distance": "a, b = r.integers(0, 9, (2, 1, 70000)); f = lambda: fl.edit_distance(a, b, **k)",
    "beam search": "x = r.standard_normal((4000, 2, 512), np.float32); "
    "f = lambda: fl.ctc_beam_search_decode(x, [4000, 4000], beam_width=500, **k)",
    "greedy": "x = np.broadcast_to(np.float32(1), (10**6, 8, 300)); "
    "f = lambda: fl.ctc_greedy_decode(x, [10**6]*8, **k)",
    "linear": "x = r.standard_normal((1024, 1024), np.float32); w = r.standard_normal((64000, 1024), np.float32); "
    "y = r.integers(0, 64000, 1024); "
    "f = lambda: fl.value_and_grad(fl.linear_cross_entropy, ('inputs', 'weights'))(inputs=x, weights=w, labels=y, **k)",
    "sparse": "x = np.broadcast_to(np.float32(1), (10**7, 1000)); y = np.zeros(10**7, int); "
    "f = lambda: fl.sparse_softmax_cross_entropy_with_logits(labels=y, logits=x, **k)",
    "dense": "x = np.broadcast_to(np.float32(1), (10**7, 1000)); "
    "f = lambda: fl.softmax_cross_entropy_with_logits(labels=x, logits=x, **k)",
    "focal": "x = np.broadcast_to(np.float32(1), (10**7, 1000)); y = np.zeros(10**7, int); "
    "f = lambda: fl.softmax_focal_loss(labels=y, logits=x, **k)",
    "capped": "x = np.broadcast_to(np.float32(1), (10**7, 1000)); y = np.zeros(10**7, int); "
    "f = lambda: fl.sparse_softmax_cross_entropy_with_logits(labels=y, logits=x, softcap=9, **k)",
    "wide capped row": "x = np.zeros((1, 3*10**7), np.float32); t = np.broadcast_to(np.float32(1), x.shape); "
    "f = lambda: [fl.value_and_grad(fl.softmax_focal_loss)(labels=t, logits=x, gamma=1.5, **k) for _ in range(99)]",
    "few classes": "x = np.broadcast_to(np.float32(1), (10**9, 3)); y = np.broadcast_to(np.int64(1), (10**9,)); "
    "f = lambda: fl.sparse_softmax_cross_entropy_with_logits(labels=y, logits=x, reduction='sum', ignore_index=0, **k)",
    "wide row": "x = np.zeros((1, 10**8), np.float32); g = np.zeros_like(x); g[:] = 1; "
    "f = lambda: [fl.value_and_grad(fl.sparse_softmax_cross_entropy_with_logits)(labels=[3], logits=x, grad_out=g, **k)"
    " for _ in range(99)]",
    "elementwise": "x = np.broadcast_to(np.float32(1), (10**10,)); "
    "f = lambda: fl.mean_squared_error(labels=x, predictions=x, **k)",
    "weighted": "x = np.broadcast_to(np.float64(1), (10**10,)); "
    "f = lambda: fl.tweedie_loss(labels=x, predictions=x, power=1.3, sample_weight=x, **k)",
    "sampled": "x = r.standard_normal((4096, 256), np.float32); w = r.standard_normal((200000, 256), np.float32); "
    "y = r.integers(0, 200000, (4096, 1)); b = np.zeros(200000, np.float32); "
    "g = fl.value_and_grad(fl.sampled_softmax_loss, ('inputs', 'weights')); "
    "f = lambda: g(w, b, y, x, 100000, 200000, seed=1, **k)",
    "in batch": "x = r.standard_normal((40000, 256), np.float32); "
    "f = lambda: fl.value_and_grad(fl.in_batch_softmax_loss)(x, x, **k)",
    "alias": "t = fl.AliasTable(r.random(1000)); f = lambda: t.sample(10**9, 1, **k)",
}
CTRL_C = """
import time
import numpy as np, fastloss as fl
r = np.random.default_rng(0)
k = {{"n_threads": {}}}
{}
print("ready", flush=True)
try:
    f()
    print("done")
except KeyboardInterrupt:
    print(time.monotonic())
"""


def latency(setup, n_threads):
    """Seconds from the signal to the exception."""
    process = subprocess.Popen(
        [sys.executable, "-c", CTRL_C.format(n_threads, setup)], env=CLEAN, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.4)
        sent = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert out != "done\n", "the call was too short for this test"
    return float(out) - sent


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("name", LONG)
def test_ctrl_c(name, n_threads):
    """0.2 s where nothing else runs; the bound leaves room for a busy machine."""
    assert min(latency(LONG[name], n_threads) for _ in range(2)) < 1


def test_a_handler_may_call_and_the_call_goes_on():
    """A handler that raises nothing changes nothing, even if it calls a kernel in the middle of another."""
    code = (
        SPARSE
        + """
import signal
x, y = np.tile(x, (60, 1)), np.tile(y, 60)
want = loss(1)
seen = []
def handler(*_):
    seen.append(fl.softmax(np.ones((400, 1000)), n_threads=2).sum())
    signal.setitimer(signal.ITIMER_REAL, 0.01)
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.01)
end = time.monotonic() + 2
while time.monotonic() < end:
    assert loss(2) == loss(1) == want
signal.signal(signal.SIGALRM, signal.SIG_IGN)
print(len(seen) > 2)
"""
    )
    assert python(code) == "True"


def test_other_threads_go_on_after_ctrl_c():
    code = (
        SPARSE
        + """
import _thread, signal
want = loss(1)
found = []
def calls():
    for _ in range(200): found.append(loss(2) == want)
t = threading.Thread(target=calls)
z = np.broadcast_to(np.float32(1), (10**10,))
def interrupt():
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt).start()
t.start()
try:
    fl.mean_squared_error(labels=z, predictions=z, n_threads=2)
except KeyboardInterrupt:
    t.join()
    print(len(found), all(found))
"""
    )
    assert python(code) == "200 True"
