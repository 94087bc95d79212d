"""Starts workers with a poisoned heap, notes what they find and where they crash, and says what was exercised."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import platform
import random
import selectors
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from . import kinds
from .shrinking import shrink, source

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = ("MALLOC_PERTURB_", "FASTLOSS_POISON", "LD_PRELOAD", "MALLOC_CHECK_", "FASTLOSS_ISA")
HANGS = 60.0  # seconds without a new case
GROUPS = ("function", "option", "dtype", "labels", "ignore_index", "values", "layout", "split", "buffer", "wrt",
          "hessian", "cotangent", "threads", "axes", "sampler", "ended", "memory,")  # fmt: skip


def environment(isa: str | None, poison: int) -> dict[str, str]:
    """Of a worker: fresh memory holds this byte, freed memory its complement, scratch NaN; what is freed is checked."""
    more = {"MALLOC_PERTURB_": str(poison), "FASTLOSS_POISON": "1"}
    if platform.libc_ver()[0] == "glibc" and "LD_PRELOAD" not in os.environ:
        more |= {"LD_PRELOAD": "libc_malloc_debug.so.0", "MALLOC_CHECK_": "3"}
    if isa is not None:
        more["FASTLOSS_ISA"] = isa
    return {**os.environ, **more}


class Run:
    """One campaign."""

    program = (sys.executable, "-m", "tests.fuzz")

    def __init__(self, seed: int, minutes: float, only: str | None = None, isa: str | None = None, most: int = 40,
                 shrinking: float = 10.0, last: int = 2**62) -> None:  # fmt: skip
        self.seed, self.only, self.isa, self.most, self.shrinking, self.last = seed, only, isa, most, shrinking, last
        self.seconds = 60 * minutes
        self.poison = random.Random(seed).randrange(1, 256)
        self.met: Counter[str] = Counter()
        self.findings: list[dict[str, Any]] = []
        self.cases = 0

    def command(self, number: int) -> str:
        """What runs one case again."""
        more = f" --only {self.only}" if self.only else ""
        given = environment(self.isa, self.poison)
        with_ = " ".join(f"{k}={given[k]}" for k in SETTINGS if k in given)
        return f"{with_} python -m tests.fuzz --seed {self.seed} --case {number}{more}"

    def known(self) -> list[list[str]]:
        return [[f["function"], f["check"], f["result"].split("[")[0]] for f in self.findings]

    def note(self, finding: dict[str, Any]) -> None:
        self.findings.append(finding)
        show(finding, self.command(finding["number"]))

    def go(self, start: int = 0) -> None:
        end = time.monotonic() + self.seconds
        with tempfile.TemporaryDirectory() as folder:
            status = Path(folder) / "number"
            status.write_bytes(struct.pack("<q", start))
            while time.monotonic() < end and len(self.findings) < self.most:
                arguments = {"seed": self.seed, "start": start, "seconds": end - time.monotonic(), "only": self.only,
                             "status": str(status), "most": self.most, "known": self.known(),
                             "shrinking": self.shrinking, "last": self.last}  # fmt: skip
                if self._worker(arguments):
                    break
                number = struct.unpack("<q", status.read_bytes())[0]
                self.cases = number + 1
                self._crashed(number, folder)
                start = number + 1

    def _worker(self, arguments: dict[str, Any]) -> bool:
        """Whether a worker came to its end."""
        self.ending = ""
        process = subprocess.Popen(
            [*self.program, "--worker", json.dumps(arguments)], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(self.isa, self.poison),
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        os.set_blocking(process.stderr.fileno(), False)
        reader = selectors.DefaultSelector()
        reader.register(process.stdout, selectors.EVENT_READ)
        status, last, since = Path(arguments["status"]), b"", time.monotonic()
        done = False
        try:
            while True:
                if reader.select(1.0):
                    line = process.stdout.readline()
                    if not line:
                        break
                    done = self._line(json.loads(line)) or done
                now = status.read_bytes()
                if now != last:
                    last, since = now, time.monotonic()
                elif time.monotonic() - since > HANGS + 3 * self.shrinking:
                    self.ending = f"hung for {HANGS:.0f} s"
                    process.send_signal(signal.SIGABRT)  # so that it says where
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(5)
                    process.kill()
                    break
        except BaseException:
            process.kill()
            raise
        finally:
            code = process.wait()
        said = (process.stderr.read() or "").strip().splitlines()
        process.stdout.close()
        process.stderr.close()
        if self.ending:
            self.ending += ": " + " | ".join(line for line in said if line.lstrip().startswith("File"))[:600]
        if not done and not self.ending:
            name = signal.Signals(-code).name if code < 0 else f"exit status {code}"
            self.ending = f"{name}: " + " | ".join(said[-12:])[-600:]
        return done

    def _line(self, line: dict[str, Any]) -> bool:
        if "met" in line:
            self.met += Counter(line["met"])
            self.cases = max(self.cases, line["next"])
            return bool(line.get("done"))
        self.note(line)
        return False

    def _crashed(self, number: int, folder: str) -> None:
        """A finding of its own: shrunk in processes that may crash too."""
        kind = self.ending.split(":")[0]
        try:
            call, _ = kinds.make(self.seed, number, self.only)
        except Exception as error:
            finding = {"function": "make", "check": "the fuzzer itself", "result": type(error).__name__}
            self.note({"number": number, "detail": self.ending, **finding})
            return
        if [call.function, "crash", kind] in self.known():
            return
        small = call
        if self.shrinking and not self.ending.startswith("hung"):
            path = Path(folder) / "call"

            def crashes(simpler: Any) -> bool:
                path.write_bytes(pickle.dumps(simpler))
                done = subprocess.run(
                    [*self.program, "--attempt", str(path)], cwd=ROOT, capture_output=True,
                    env=environment(self.isa, self.poison), timeout=HANGS, check=False,
                )  # fmt: skip
                return done.returncode != 0

            small = shrink(call, crashes, 3 * self.shrinking)
        self.note({"number": number, "function": call.function, "check": "crash", "result": kind, "kind": call.kind,
                   "detail": self.ending, "source": source(small), "small": ""})  # fmt: skip


def show(finding: dict[str, Any], command: str) -> None:
    """A failure as people read it."""
    print(f"\nFAILED {finding['function']}: {finding['check']}, {finding['result']}\n  {finding['detail']}")
    print(f"  again: {command}")
    if "source" in finding:
        print("  shrunk" + (f" ({finding['small']})" if finding["small"] else "") + ":")
        print("\n".join("    " + line for line in finding["source"].splitlines()), flush=True)


def summary(run: Run, seconds: float) -> str:
    """How much was run of what."""
    lines = [f"{run.cases} cases in {seconds:.0f} s, {run.cases / max(seconds, 1e-9):.0f} a second; "
             f"{len(run.findings)} failures; seed {run.seed}, MALLOC_PERTURB_={run.poison}"]  # fmt: skip
    for group in GROUPS:
        met = {k[len(group) :].strip() or "given": n for k, n in sorted(run.met.items()) if k.split()[0] == group}
        if met:
            lines.append(f"  {group}: " + ", ".join(f"{k} {n}" for k, n in met.items()))
    return "\n".join(lines)
