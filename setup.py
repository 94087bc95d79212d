"""The build matrix: every kernel becomes C once, which is compiled once per instruction set.

``FASTLOSS_BUILD_ISAS`` says for which: ``native`` (the default) is the best that this machine runs, and the baseline,
compiled quickly, for a machine that the folder may be copied to; ``all`` is for wheels; or names, ``avx2,baseline``.
"""

import copy
import os
import platform
import shlex
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# every .pyx in a folder of kernels/ is a module of its own, found by its file's name
KERNELS = sorted(Path("fastloss/kernels").glob("*/*.pyx"))

ISAS = {"baseline": {"unix": [], "msvc": []}}
if platform.machine().lower() in ("x86_64", "amd64") and sys.platform != "darwin":
    ISAS["avx2"] = {"unix": ["-march=x86-64-v3"], "msvc": ["/arch:AVX2"]}
    ISAS["avx512"] = {"unix": ["-march=x86-64-v4", "-mprefer-vector-width=512"], "msvc": ["/arch:AVX512"]}
WANTED = os.environ.get("FASTLOSS_BUILD_ISAS") or "native"

# No flag here may change the value of an expression: no -ffast-math, no reassociation, and contraction only where
# the source says fma, so that the instruction sets agree bit for bit.
COMPILE = {
    "unix": [
        "-O3",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-ffp-contract=off",
        "-fno-strict-aliasing",
        "-g0",
    ],
    "msvc": ["/O2", "/fp:precise"],
}
QUICK = {"unix": ["-O1"], "msvc": []}  # the same bits; half of the compiler's time, loops several times slower
OPENMP = {"unix": ["-fopenmp"], "msvc": ["/openmp"]}
# For developers' builds, sanitizers say: after all other flags, for the compiler and the linker.
EXTRA = shlex.split(os.environ.get("FASTLOSS_BUILD_FLAGS", ""))
# Long chains of vector operations gain by being interleaved, by copies that stay in registers instead of becoming
# memcpy, and by loops in functions of their own; the scalar loops of draws lose a tenth by it, and a twentieth, on
# Intel's cores before Ice Lake, if a branch of theirs lies across 32 bytes.
SCALAR = {"alias", "candidates", "samplers", "unigram"}
INTERLEAVED = {
    "unix": [
        "-fschedule-insns",
        "-fsched-pressure",
        "-fno-tree-loop-distribute-patterns",
        "-fno-inline-functions-called-once",
        "-fno-wrapv",  # Python's own flags have it, for code that overflows
    ],
    "msvc": [],
}
STRICT = {"unix": ["-Werror"], "msvc": []}  # clang only warns of what it ignores
ALIGNED = {"unix": ["-Wa,-mbranches-within-32B-boundaries"], "msvc": []}
LONGEST = ["elementwise", "softmax"]  # compiled first, so that no processor is left with one of them at the end
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
    "freethreading_compatible": True,
}
UTILITY = "fastloss._cython_utility"  # what Cython needs for typed memoryviews: once, not in every kernel


# With FASTLOSS_BUILD_ABI3=1 one wheel serves every CPython from 3.11 on, but for those without a global lock, whose
# objects differ. It is slower to take tuples and lists apart: small samples take 2.3 us instead of 1.8.
ABI3 = os.environ.get("FASTLOSS_BUILD_ABI3") == "1" and not sysconfig.get_config_var("Py_GIL_DISABLED")
LIMITED = {"define_macros": [("Py_LIMITED_API", "0x030B0000")], "py_limited_api": True} if ABI3 else {}


def extensions():
    """What all instruction sets share, and one extension per kernel and instruction set."""
    common = [
        Extension(
            f"fastloss.{name}",
            [f"fastloss/{name}.pyx"],
            include_dirs=["fastloss"],
            depends=[f"fastloss/{name}.h"],
            **LIMITED,
        )
        for name in ("_host", "_parallel")
    ]
    options = {
        "build_dir": "build/cython",
        "compiler_directives": DIRECTIVES,
        "nthreads": os.cpu_count() if sys.platform == "linux" else 0,
    }
    Path("build/cython").mkdir(parents=True, exist_ok=True)
    yield from cythonize(common, **options)  # apart: importing fastloss needs no memoryviews
    utility = Extension(UTILITY, ["build/cython/_cython_utility.c"], **LIMITED)
    kernels = [Extension(f"fastloss._native.{kernel.stem}", [str(kernel)]) for kernel in KERNELS]
    utility, *kernels = cythonize([utility, *kernels], shared_utility_qualified_name=UTILITY, **options)
    yield utility
    headers = [str(p) for ending in ("h", "pxd", "pxi") for p in sorted(Path("fastloss/kernels").glob(f"*/*.{ending}"))]
    for isa in ISAS:
        Path("fastloss/_native", isa).mkdir(exist_ok=True)  # in-place builds need it
        for kernel in kernels:
            yield Extension(
                f"fastloss._native.{isa}.{kernel.name.rpartition('.')[2]}",
                kernel.sources,
                include_dirs=["fastloss/kernels"],
                depends=headers,
                **LIMITED,
            )


class BuildExt(build_ext):
    """Chooses instruction sets, adds the flags of each; builds without OpenMP where the compiler has none."""

    def finalize_options(self):
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()
        self.lock = threading.Lock()
        self.built = 0

    def build_extensions(self):
        self.kind = "msvc" if self.compiler.compiler_type == "msvc" else "unix"
        # macOS stays serial: a second OpenMP runtime in one process aborts it there
        openmp = "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n"
        link = OPENMP[self.kind] if self.kind == "unix" else []
        serial = sys.platform == "darwin" or not self._compiles(openmp, OPENMP[self.kind], link)
        self.openmp = [] if serial else OPENMP[self.kind]
        nothing = "int main(void) { return 0; }\n"  # what a compiler does not know it does without
        self.styles = {
            name: [flag for flag in flags[self.kind] if self._compiles(nothing, [*STRICT[self.kind], flag])]
            for name, flags in (("scalar", ALIGNED), ("interleaved", INTERLEAVED))
        }
        isas = self._isas()
        chosen = [e for e in self.extensions if e.name.split(".")[-2] in isas or e.name.count(".") == 1]
        self.extensions = sorted(chosen, key=lambda e: e.name.rpartition(".")[2] not in LONGEST)
        fallback = WANTED == "native" and len(isas) > 1
        for ext in self.extensions:
            self._set_flags(ext, QUICK[self.kind] if fallback and ".baseline." in ext.name else [])
        print(f"fastloss: {len(self.extensions)} modules for {', '.join(isas)}", flush=True)
        super().build_extensions()

    def _isas(self):
        if WANTED == "all":
            return list(ISAS)
        if WANTED != "native":
            return WANTED.split(",")
        program = '#include "fastloss/_host.h"\nint main(void) { return fl_has_avx2() + fl_has_avx512(); }\n'
        runs = self._run(program)
        best = ["baseline", "avx2", "avx512"][runs] if runs in (1, 2) else "baseline"
        return ["baseline", best] if best in ISAS and best != "baseline" else ["baseline"]

    def _compiles(self, program, flags, link=None):
        return self._made(program, flags, link, run=False) == 0

    def _run(self, program):
        """Exit status of a program; None where it cannot be built or run, as in a cross build."""
        return self._made(program, [], [], run=True)

    def _made(self, program, flags, link, run):
        with tempfile.TemporaryDirectory() as folder:
            source, made = Path(folder, "probe.c"), Path(folder, "probe")
            source.write_text(program)
            try:
                objects = self.compiler.compile(
                    [str(source)], output_dir=folder, include_dirs=["."], extra_postargs=flags + EXTRA
                )
                if link is not None:
                    self.compiler.link_executable(objects, str(made), extra_postargs=link + EXTRA)
                return subprocess.run([str(made)], timeout=60).returncode if run else 0
            except Exception as error:  # compilers' errors have no common base
                print(f"building without {' '.join(flags) or 'a probe'}: {error}", file=sys.stderr)
                return None

    def _set_flags(self, ext, quick):
        *_, isa, kernel = ext.name.split(".")
        style = self.styles["scalar" if kernel in SCALAR else "interleaved"]
        openmp = self.openmp if kernel == "_parallel" else []
        isa_flags = ISAS.get(isa, {}).get(self.kind, [])
        ext.extra_compile_args = COMPILE[self.kind] + style + isa_flags + openmp + quick + EXTRA
        ext.extra_link_args = (openmp if self.kind == "unix" else []) + EXTRA
        made_with = Path("build/flags", ext.name)  # a file that is new when they are: other flags, other objects
        text = shlex.join([*ext.extra_compile_args, *ext.extra_link_args])
        if not made_with.exists() or made_with.read_text() != text:
            made_with.parent.mkdir(parents=True, exist_ok=True)
            made_with.write_text(text)
        ext.depends = [*ext.depends, str(made_with)]

    def build_extension(self, ext):
        apart = copy.copy(self)  # the same C file makes an object file for each instruction set
        apart.build_temp = os.path.join(self.build_temp, ext.name)
        start = time.monotonic()
        super(BuildExt, apart).build_extension(ext)
        if (seconds := time.monotonic() - start) > 0.1:
            with self.lock:
                self.built += 1
                print(f"fastloss: {self.built:2} {ext.name.removeprefix('fastloss.')}, {seconds:.0f} s", flush=True)


setup(
    ext_modules=list(extensions()),
    cmdclass={"build_ext": BuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if ABI3 else {},
)
