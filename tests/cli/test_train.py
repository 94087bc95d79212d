"""``python -m fastloss train``: short real runs on small texts."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import fastloss
from fastloss._cli import corpus, files, model
from fastloss._cli.train import main

FILES = {"vectors.txt", "model.npz", "metrics.jsonl", "neighbours.txt"}


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "fastloss", "train", *map(str, args)]


def environment(*folders: object) -> dict[str, str]:
    here = Path(fastloss.__file__).parents[1]
    path = os.pathsep.join([*map(str, folders), str(here), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path}


def train(*args: object, status: int = 0, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(*args), capture_output=True, text=True, env=env or environment(), timeout=120)
    assert done.returncode == status, done.stdout + done.stderr
    return done


def records(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def contents(out: Path) -> dict[str, object]:
    """Every file of a run; from the metrics without the time."""
    found: dict[str, object] = {path.name: path.read_bytes() for path in out.iterdir()}
    found["metrics.jsonl"] = [{k: v for k, v in record.items() if k != "seconds"} for record in records(out)]
    return found


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve files of sentences whose words depend on the words before."""
    folder = tmp_path_factory.mktemp("text")
    rng = random.Random(0)
    animals, verbs, foods = ["cat", "dog", "fox", "owl"], ["eats", "likes", "sees"], ["bread", "fish", "rice"]
    for k in range(12):
        lines = []
        for _ in range(150):
            noise = f" {rng.choice('abcdefgh')}{rng.randrange(40)}" if rng.random() < 0.3 else ""
            lines.append(f"the {rng.choice(animals)} {rng.choice(verbs)} {rng.choice(foods)}{noise}.")
        (folder / f"{k:02}.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def run(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of 230 steps."""
    out = tmp_path_factory.mktemp("run") / "new" / "out"
    train(text, "--steps", 230, "--seed", 3, "--threads", 1, "--out", out)
    return out


def test_files(text: Path, run: Path) -> None:
    arrays = np.load(run / "model.npz")
    tokens = arrays["tokens"].tolist()
    counts = arrays["counts"]
    assert (np.diff(counts) <= 0).all()
    assert {"the", "cat", corpus.UNKNOWN, corpus.END} <= set(tokens)
    assert arrays["embeddings"].shape == arrays["weights"].shape == (len(tokens), 64)
    assert arrays["biases"].shape == (len(tokens),)
    assert arrays["embeddings"].dtype == np.float32

    lines = (run / "vectors.txt").read_text().splitlines()
    assert lines[0] == f"{len(tokens)} 64"
    assert [line.split(" ")[0] for line in lines[1:]] == tokens
    vectors = np.array([line.split(" ")[1:] for line in lines[1:]], float)
    np.testing.assert_allclose(vectors, arrays["embeddings"], rtol=1e-5)

    found = records(run)
    assert [r["step"] for r in found] == [100, 200, 230]
    assert [r["tokens"] for r in found] == [512 * r["step"] for r in found]
    assert set(found[0]) == {"step", "seconds", "tokens", "loss", "heldout_perplexity", "unigram_perplexity"}
    assert set(found[1]) == set(found[2]) == set(found[0]) - {"unigram_perplexity"}
    assert found[-1]["heldout_perplexity"] < 0.6 * found[0]["unigram_perplexity"]

    neighbours = dict(line.split(": ", 1) for line in (run / "neighbours.txt").read_text().splitlines())
    assert len(neighbours) <= 50
    assert set(word.split(" ")[0] for word in neighbours["cat"].split(", ")[:3]) == {"dog", "fox", "owl"}


def test_curve(run: Path) -> None:
    pytest.importorskip("matplotlib")
    svg = (run / "loss.svg").read_text()
    assert svg.startswith("<?xml")
    assert "unigram baseline" in svg
    assert "dc:date" not in svg


def test_perplexity_is_exact(text: Path, run: Path) -> None:
    c = corpus.load([str(text)], 5, print)
    a = {name: array.astype(float) for name, array in np.load(run / "model.npz").items() if array.dtype.kind == "f"}
    padded = [*[c.end] * 8, *c.heldout]
    total = 0.0
    for k, target in enumerate(c.heldout):
        hidden = np.mean([a["embeddings"][padded[k + p]] * a["positions"][p] for p in range(8)], axis=0)
        logits = a["weights"] @ hidden + a["biases"]
        total += np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[target]
    assert len(c.heldout) == len(c.targets)
    assert records(run)[-1]["heldout_perplexity"] == pytest.approx(np.exp(total / len(c.heldout)), rel=1e-5)
    shares = (np.bincount(c.train, minlength=len(c.tokens)) + 1) / (len(c.train) + len(c.tokens))
    unigram = np.exp(-np.log(shares[c.heldout]).mean())
    assert records(run)[0]["unigram_perplexity"] == pytest.approx(unigram, rel=1e-12)


def test_gradients_of_the_context() -> None:
    class Recorder(model.Adagrad):
        def update(self, where: object, gradient: np.ndarray) -> None:  # type: ignore[type-arg]
            self.gradient = np.zeros(self.value.shape)
            self.gradient[where] = gradient  # type: ignore[index]

    rng = np.random.default_rng(0)
    ids = rng.integers(5, size=(3, 8 + 4)).astype(np.int32)
    embeddings = Recorder(rng.standard_normal((5, 64), np.float32))
    positions = Recorder(rng.standard_normal((8, 64), np.float32))
    context = model.Context(embeddings, positions)
    cotangent = rng.standard_normal((12, 64), np.float32)
    _, embedded = context.forward(ids)
    context.backward(ids, embedded, cotangent)
    for parameter in (embeddings, positions):
        for row in range(len(parameter.value)):
            before = parameter.value[row].copy()
            values = []
            for sign in (1, -1):  # linear in each row: any step gives the derivative
                parameter.value[row] = before + sign
                values.append((context.forward(ids)[0][:, :64] * cotangent).astype(float))
            parameter.value[row] = before
            np.testing.assert_allclose((values[0] - values[1]).sum(0) / 2, parameter.gradient[row], atol=1e-4)


@pytest.mark.parametrize("n", [40, 41, 55, 300, 531, 544, 560, 2000])
def test_batches_of_short_texts(n: int, tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("a b c d e f g h i j " * (n // 10) + "k " * (n % 10))
    c = corpus.load([str(path)], 1, print)
    m = model.Model(c, model.OUTPUTS["full"], 0, 1)
    assert 0 < m.tokens_per_step <= min(model.BATCH, len(c.train))
    for step in range(1, 20):
        m.step()
        assert m.loss_tokens == step * m.tokens_per_step
    assert len(c.train) + len(c.heldout) == n + 1
    assert m.perplexity() > 1


def test_same_bytes_for_any_threads(text: Path, run: Path, tmp_path: Path) -> None:
    for threads in (2, 3):
        train(text, "--steps", 230, "--seed", 3, "--threads", threads, "--out", tmp_path)
        assert contents(tmp_path) == contents(run)


def test_another_seed(text: Path, run: Path, tmp_path: Path) -> None:
    train(text, "--steps", 1, "--seed", 4, "--out", tmp_path)
    assert not np.array_equal(np.load(tmp_path / "model.npz")["embeddings"], np.load(run / "model.npz")["embeddings"])


def test_resume_gives_the_same_bytes(text: Path, run: Path, tmp_path: Path) -> None:
    train(text, "--steps", 60, "--seed", 3, "--out", tmp_path)
    train("--resume", "--steps", 130, "--out", tmp_path)
    train("--resume", "--steps", 230, "--out", tmp_path)
    assert contents(tmp_path) == contents(run)
    seconds = [record["seconds"] for record in records(tmp_path)]
    assert seconds == sorted(seconds)
    train("--resume", "--steps", 230, "--out", tmp_path)
    assert contents(tmp_path) == contents(run)


@pytest.mark.parametrize("options", [("nce", "learned"), ("sampled_softmax", "unigram"), ("full", "uniform")], ids=str)
def test_losses_and_samplers(options: tuple[str, str], text: Path, tmp_path: Path) -> None:
    loss, sampler = options
    given = (text, "--loss", loss, "--sampler", sampler, "--num-sampled", 20, "--seed", 3)
    train(*given, "--steps", 40, "--threads", 1, "--out", tmp_path / "whole")
    train(*given, "--steps", 15, "--threads", 2, "--out", tmp_path / "parts")
    train("--resume", "--steps", 40, "--threads", 3, "--out", tmp_path / "parts")
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    found = records(tmp_path / "whole")
    assert found[-1]["heldout_perplexity"] < 0.95 * found[0]["unigram_perplexity"]


def test_candidates_differ_from_step_to_step(text: Path) -> None:
    c = corpus.load([str(text)], 5, print)
    m = model.Model(c, model.OUTPUTS["sampled_softmax"], 0, 1, "learned", 10**9)
    drawn = []
    for _ in range(3):
        before = m.state()["weights"].copy()
        m.step()
        drawn.append(tuple(np.flatnonzero((m.state()["weights"] != before).any(1))))
    assert len(set(drawn)) == 3
    assert m.state()["sampler_counts"].sum() == len(c.tokens) + m.steps * m.tokens_per_step


def test_compare(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = train(text, "--compare", "--seconds", 1.5, "--out", tmp_path)
    table = (tmp_path / "compare.txt").read_text()
    assert table in done.stdout
    lines = [line.split() for line in table.splitlines()]
    assert lines[0][-3:] == ["full", "nce", "sampled_softmax"]
    last = [f"{records(tmp_path / loss)[-1]['heldout_perplexity']:.1f}" for loss in lines[0][-3:]]
    assert lines[4][-3:] == last
    for option in (["--loss", "nce"], ["--steps", "3"], ["--resume"]):
        assert main(["train", "--compare", *option, "--out", str(tmp_path)]) == 2
        assert "--compare" in capsys.readouterr().err


def test_seconds(text: Path, tmp_path: Path) -> None:
    done = train(text, "--seconds", 0.5, "--out", tmp_path)
    assert "held-out perplexity" in done.stdout
    assert records(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_interrupt(text: Path, run: Path, tmp_path: Path) -> None:
    args = command(text, "--steps", 10**9, "--seed", 3, "--out", tmp_path)
    with subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()) as p:
        assert p.stdout is not None
        while not p.stdout.readline().startswith("step 100 "):
            assert p.poll() is None
        p.send_signal(signal.SIGINT)
        rest, errors = p.communicate(timeout=60)
    assert (p.returncode, errors) == (0, "")
    assert "Ctrl-C" in rest
    assert {path.name for path in tmp_path.iterdir()} >= FILES
    step = int(np.load(tmp_path / "model.npz")["steps"])
    assert records(tmp_path)[-1]["step"] == step
    train("--resume", "--steps", step + 1, "--out", tmp_path)
    assert records(tmp_path)[-1]["step"] == step + 1
    assert not list(tmp_path.glob("*.new"))


def test_bad_files_are_named(text: Path, run: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    (bad / "nothing").mkdir(parents=True)
    (bad / "binary").write_bytes(b"MZ\0\1" * 50)
    (bad / "latin").write_bytes("caf\xe9 ".encode("latin-1") * 50)
    (bad / "empty").write_text("")
    (bad / "blank").write_text(" \n\n")
    (bad / "link").symlink_to(bad / "gone")
    out = tmp_path / "out"
    done = train(bad, bad / "missing", bad / "nothing", text, "--steps", 230, "--seed", 3, "--out", out)
    for name, reason in {
        "binary": "binary",
        "latin": "UTF-8",
        "empty": "empty",
        "blank": "empty",
        "link": "No such file",
        "missing": "No such file",
        "nothing": "no files",
    }.items():
        assert any(str(bad / name) in line and reason in line for line in done.stderr.splitlines()), name
    assert len(done.stderr.splitlines()) == 7
    assert (out / "vectors.txt").read_bytes() == (run / "vectors.txt").read_bytes()


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(path: Path, most: int) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(files, "read", refuse)  # the owner's rights do not bind root, which may run the tests
    path = tmp_path / "secret.txt"
    path.write_text("a b c " * 50)
    assert main(["train", str(path), "--out", str(tmp_path / "out")]) == 2
    assert f"{path}: Permission denied" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["", "only a few words"])
def test_nothing_usable(words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "file"
    path.write_text(words)
    assert main(["train", str(path), str(tmp_path / "missing"), "--out", str(tmp_path / "out")]) == 2
    assert str(tmp_path / "missing") in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["walk"],
        ["train", "--steps", "0"],
        ["train", "--steps", "many"],
        ["train", "--seconds", "0"],
        ["train", "--seconds", "nan"],
        ["train", "--seconds", "inf"],
        ["train", "--threads", "0"],
        ["train", "--seed", "-1"],
        ["train", "--min-count", "0"],
        ["train", "--loss", "hinge"],
        ["train", "--sampler", "alias"],
        ["train", "--num-sampled", "0"],
        ["train", "--unknown"],
    ],
)
def test_bad_arguments(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(args)
    assert error.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_bad_resume(text: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(message: str, *args: object) -> None:
        assert main(["train", "--resume", *map(str, args)]) == 2
        assert message in capsys.readouterr().err

    before = contents(run)
    fails("model.npz: No such file", "--out", tmp_path)
    fails("--seed 4 was given", "--seed", 4, "--out", run)
    fails("--loss nce was given", "--loss", "nce", "--out", run)
    fails("--num-sampled 7 was given", "--num-sampled", 7, "--out", run)
    fails("--min-count 2 was given", "--min-count", 2, "--out", run)
    fails("the text is not the one", text / "00.txt", "--out", run)
    assert contents(run) == before
    (tmp_path / "model.npz").write_bytes((run / "model.npz").read_bytes()[:5000])
    fails("model.npz", "--out", tmp_path)
    np.savez(tmp_path / "model.npz", other=np.zeros(3))
    fails("model.npz", "--out", tmp_path)
    arrays = dict(np.load(run / "model.npz"))
    np.savez(tmp_path / "model.npz", **{**arrays, "weights": arrays["weights"][:3]})
    fails("model.npz", "--out", tmp_path)
    np.savez(tmp_path / "model.npz", **arrays)
    fails("metrics.jsonl: No such file", "--out", tmp_path)
    (tmp_path / "metrics.jsonl").write_text(json.dumps(records(run)[0]))
    fails("metrics.jsonl: 1 reports", "--out", tmp_path)
    for damaged in ("{}", "[]", "not JSON"):
        (tmp_path / "metrics.jsonl").write_text(damaged)
        fails("metrics.jsonl", "--out", tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals")
def test_live_line_on_a_terminal(text: Path, tmp_path: Path) -> None:
    pytest.importorskip("rich")
    leader, follower = os.openpty()
    args = command(text, "--steps", 5, "--out", tmp_path)
    with subprocess.Popen(args, stdout=follower, stderr=follower, env={**environment(), "TERM": "xterm"}) as p:
        os.close(follower)
        shown = b""
        try:
            while part := os.read(leader, 4096):
                shown += part
        except OSError:  # how Linux says that the other end is closed
            pass
    os.close(leader)
    assert p.returncode == 0
    assert b"held-out perplexity" in shown
    assert b"\x1b[" in shown


def test_without_matplotlib(text: Path, tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ImportError")
    out = tmp_path / "out"
    done = train(text, "--steps", 3, "--out", out, env=environment(tmp_path))
    assert "matplotlib is not installed" in done.stdout
    assert {path.name for path in out.iterdir()} == FILES


def test_import_of_the_library_leaves_the_command_alone() -> None:
    code = "import sys, fastloss; sys.exit(any(m.startswith('fastloss._cli') or m == 'rich' for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], env=environment()).returncode == 0


# ------------------------------------------------------------------ files and names that nobody vouches for


def test_text_without_spaces() -> None:
    tokens = corpus._TOKEN.findall
    assert tokens("今天天气很好。") == list("今天天气很好。")
    assert tokens("カタカナとひらがな") == list("カタカナとひらがな")
    assert tokens("ที่นี่") == ["ที่", "นี่"]  # marks stay on their letters
    assert tokens("Python的2.5年 déjà_vu") == ["Python", "的", "2.5", "年", "déjà_vu"]
    assert tokens("한국어 текст") == ["한국어", "текст"]
    words = re.compile(r"[^\W\d]\w*|\d[\w.]*|[^\w\s]")  # what cuts other scripts
    for sample in [Path(corpus.__file__).read_text(), "".join(map(chr, range(1, 0xE00))), "naïve ÀÉ x1.5e3_ 0xff..."]:
        if "今" not in sample and "\u0e00" not in sample:
            assert tokens(sample) == words.findall(sample)


def test_training_on_text_without_spaces(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("我喜欢猫。你喜欢狗。" * 200, encoding="utf-8")
    train(tmp_path / "text", "--steps", 3, "--out", tmp_path / "out")
    assert {"我", "喜", "欢", "猫"} <= set(np.load(tmp_path / "out" / "model.npz")["tokens"].tolist())


def refused(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """The one line that says why the command is refused."""
    capsys.readouterr()
    assert main(["train", *map(str, args)]) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert len(shown) < 600
    assert shown.strip().isprintable()
    return shown


def npy(shape: object, dtype: str = "<f4", data: bytes = b"", version: bytes = b"\1\0") -> bytes:
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY" + version + len(header).to_bytes(2, "little") + header + data


CRAFTED = {  # a member of the archive -> what it holds instead
    "too many": ("embeddings", npy("(10**12, 10**6)")),
    "many axes": ("embeddings", npy("(" + "1," * 70 + ")")),
    "negative": ("embeddings", npy("(-3, 64)")),
    "long header": ("embeddings", npy("(3,)", version=b"\2\0") + b"\xff" * 10),
    "deep header": ("weights", npy("(" * 3000)),
    "objects": ("biases", npy("(3,)", "|O", b"cos\nsystem\n(S'false'\ntR.")),
    "text": ("steps", npy("()", "<U9", b"\0" * 36)),
    "no array": ("steps", b"five"),
    "nothing": ("steps", b""),
    "settings of text": ("settings", npy("()", "<U4", "none".encode("utf-32-le"))),
    "settings of numbers": ("settings", npy("(3,)")),
    "huge settings": ("settings", npy("()", "<U2000000000")),
    "deep settings": ("settings", npy("()", "<U90000", ("[" * 90000).encode("utf-32-le"))),
}


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def crafted(copy: Path, changes: dict[str, bytes | None], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(copy / "model.npz") as archive:
        members = {name.removesuffix(".npy"): archive.read(name) for name in archive.namelist()} | changes
    with zipfile.ZipFile(copy / "model.npz", "w", method) as archive:
        for name, data in members.items():
            if data is not None:
                archive.writestr(f"{name}.npy", data)


@pytest.mark.parametrize("what", CRAFTED)
def test_crafted_models(what: str, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, data = CRAFTED[what]
    crafted(copy, {name: data})
    assert "model.npz: not the model of" in refused(capsys, "--resume", "--out", copy)


def test_crafted_numbers(copy: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = dict(np.load(run / "model.npz"))
    settings = json.loads(str(arrays["settings"]))
    nan = arrays["weights"].copy()
    nan[1, 2] = np.nan
    for change, words in [
        ({"weights": nan}, "weights is not finite"),
        ({"weights": arrays["weights"].astype(">f4")}, "weights has shape"),
        ({"weights": arrays["weights"][..., None]}, "weights has shape"),
        ({"adagrad_weights": -arrays["adagrad_weights"]}, "adagrad_weights is out of range"),
        ({"steps": np.array(-1)}, "steps is out of range"),
        ({"steps": np.array(2**62)}, "steps is out of range"),
        ({"settings": np.array(json.dumps(settings | {"loss": ["x"]}))}, "its loss cannot be used"),
        ({"settings": np.array(json.dumps(settings | {"seed": 1.5}))}, "its seed cannot be used"),
        ({"settings": np.array(json.dumps(settings | {"seed": True}))}, "its seed cannot be used"),
        ({"settings": np.array(json.dumps(settings | {"paths": ["a\0b"]}))}, "its paths cannot be used"),
        ({"settings": np.array(json.dumps(settings | {"num_sampled": 10**30}))}, "its num_sampled cannot be used"),
        ({"settings": np.array("[]")}, "no settings"),
    ]:
        np.savez(copy / "model.npz", **{**arrays, **change})
        assert words in refused(capsys, "--resume", "--out", copy), words


@pytest.mark.parametrize(
    ("member", "shape", "dtype"), [("settings", "()", "<U67108864"), ("weights", "(2**26,)", "<f4")]
)
def test_a_model_of_1000_times_its_packed_size_takes_no_memory(member: str, shape: str, dtype: str, copy: Path) -> None:
    crafted(copy, {member: npy(shape.replace("2**26", str(2**26)), dtype) + bytes(1 << 28)}, zipfile.ZIP_DEFLATED)
    assert (copy / "model.npz").stat().st_size < 1 << 20
    code = (
        "import resource, sys; from fastloss._cli.train import main; "
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; status = main(sys.argv[1:]); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before); sys.exit(status)"
    )
    args = [sys.executable, "-c", code, "train", "--resume", "--out", str(copy)]
    done = subprocess.run(args, capture_output=True, text=True, env=environment(), timeout=60)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert int(done.stdout) < 64 * 1024  # kilobytes


@pytest.mark.parametrize("content", [b"\xff\xfe", b'{"step": "x"}', b"[" * 100000, b'{"a": NaN}', b"\n\n", b"1" * 5000])
def test_crafted_metrics(content: bytes, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "metrics.jsonl").write_bytes(content)
    assert "metrics.jsonl: not the reports of a run" in refused(capsys, "--resume", "--out", copy)


@pytest.mark.skipif(os.name != "posix", reason="devices")
def test_no_file_at_all(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("model.npz", "metrics.jsonl"):
        kept = (copy / name).read_bytes()
        for make in [
            os.mkdir,
            os.mkfifo,
            lambda path: os.symlink("/dev/zero", path),
            lambda path: os.symlink(path, path),
        ]:
            (copy / name).unlink()
            make(copy / name)
            assert f"{name}: " in refused(capsys, "--resume", "--out", copy)
            (copy / name).rmdir() if make is os.mkdir else (copy / name).unlink()
            (copy / name).write_bytes(kept)
    os.mkfifo(tmp_path / "pipe")
    line = tmp_path / "line"
    line.write_text("x" * 10_000_000)
    for path in ("/dev/zero", "/proc/self/pagemap", tmp_path / "pipe", line):
        assert main(["train", str(path), "--out", str(tmp_path / "out")]) == 2


def test_names_cannot_move_the_cursor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = tmp_path / "a\x1b[2J\nb\x07\udcff"
    assert main(["train", str(name), "--out", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr().err
    assert "a\\x1b[2J\\nb\\x07\\udcff" in shown
    assert shown.replace("\n", "").isprintable()
    with pytest.raises(SystemExit):
        main(["train", "--\x1b[2J"])
    assert "\x1b" not in capsys.readouterr().err
    name.write_text("a b c " * 50)
    train(name, "--steps", 2, "--out", tmp_path / "b\x1b[2J")


@pytest.mark.skipif(os.name != "posix", reason="permissions")
def test_out_is_tried_before_the_text_is_read(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(corpus, "load", lambda *args: pytest.fail("the text is read"))
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "gone" / "gone")
    for out in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "link", "/proc/out", "x" * 300):
        for more in ([], ["--compare"]):
            assert "--out" in refused(capsys, text, "--out", out, *more)


class Full:
    """A disk with room for so many bytes."""

    def __init__(self, file: object, room: int) -> None:
        self._file, self._room = file, room

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)

    def write(self, data: bytes) -> int:
        self._room -= len(data)
        if self._room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._file.write(data)  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize("room", [0, 100, 5000])
def test_a_full_disk_leaves_the_former_files(
    room: int, copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    replacing = files.replacing

    @contextlib.contextmanager
    def full(path: Path) -> Iterator[object]:
        with replacing(path) as file:
            yield file if path.name.startswith(".") else Full(file, room)

    monkeypatch.setattr(files, "replacing", full)
    assert main(["train", "--resume", "--steps", "231", "--out", str(copy)]) == 1
    assert "No space left on device" in capsys.readouterr().err
    after = {path.name: path.read_bytes() for path in copy.iterdir()}
    assert after.keys() == before.keys()
    assert after["model.npz"] == before["model.npz"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full")
def test_a_full_standard_output(text: Path, tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        args = command(text, "--steps", 2, "--out", tmp_path)
        done = subprocess.run(args, stdout=full, stderr=subprocess.PIPE, text=True, env=environment(), timeout=60)
    assert done.returncode == 1
    assert done.stderr == "fastloss train: No space left on device\n"


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill", "Ctrl-C"])
def test_a_write_broken_off_leaves_the_former_files(number: int, copy: Path) -> None:
    before = (copy / "model.npz").read_bytes()
    code = (
        "import os, sys, numpy as np, signal; from fastloss._cli import report, train\n"
        "def half(file, **arrays):\n"
        "    file.write(b'half'); file.flush()\n"
        f"    os.kill(os.getpid(), {int(number)}); os.kill(os.getpid(), {int(number)})\n"
        "report.np = type('np', (), {**vars(np), 'savez': staticmethod(half)})\n"
        "sys.exit(train.main(sys.argv[1:]))"
    )
    args = [sys.executable, "-c", code, "train", "--resume", "--steps", "231", "--out", str(copy)]
    done = subprocess.run(args, capture_output=True, text=True, env=environment(), timeout=60)
    assert done.returncode == (-9 if number == signal.SIGKILL else 130), done.stderr
    assert "Traceback" not in done.stderr
    assert (copy / "model.npz").read_bytes() == before
    train("--resume", "--steps", 232, "--out", copy)  # what was left behind is no hindrance
    assert not list(copy.glob("*.new"))
