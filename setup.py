"""The build matrix: every kernel is compiled once per instruction set."""

import os
import platform
import shlex
import sys
import tempfile
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
if only := os.environ.get("FASTLOSS_BUILD_ISAS"):  # for faster developer builds
    ISAS = {isa: ISAS[isa] for isa in only.split(",")}

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
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
    "freethreading_compatible": True,
}


def extensions():
    """Host facts, the parallel loop, and one extension per kernel and instruction set."""
    # each instruction set has a build folder of its own: distinct C and object files, safe in parallel
    jobs = {"compiler_directives": DIRECTIVES, "nthreads": os.cpu_count() if sys.platform == "linux" else 0}
    headers = [str(p) for ending in ("h", "pxd", "pxi") for p in sorted(Path("fastloss/kernels").glob(f"*/*.{ending}"))]
    parallel = Extension(
        "fastloss._parallel",
        ["fastloss/_parallel.pyx"],
        include_dirs=["fastloss"],
        depends=["fastloss/_parallel.h"],
    )
    yield from cythonize(
        [Extension("fastloss._host", ["fastloss/_host.pyx"]), parallel], build_dir="build/host", **jobs
    )
    for isa in ISAS:
        Path("fastloss/_native", isa).mkdir(exist_ok=True)  # in-place builds need it
        yield from cythonize(
            [
                Extension(
                    f"fastloss._native.{isa}.{kernel.stem}",
                    [str(kernel)],
                    include_dirs=["fastloss/kernels"],
                    depends=headers,
                )
                for kernel in KERNELS
            ],
            build_dir=f"build/{isa}",
            **jobs,
        )


class BuildExt(build_ext):
    """Adds the flags of compiler and instruction set; builds without OpenMP where the compiler has none."""

    def finalize_options(self):
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

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
        super().build_extensions()

    def _compiles(self, program, flags, link=None):
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text(program)
            try:
                objects = self.compiler.compile([str(source)], output_dir=folder, extra_postargs=flags + EXTRA)
                if link is not None:
                    self.compiler.link_executable(objects, str(Path(folder, "probe")), extra_postargs=link + EXTRA)
            except Exception as error:  # compilers' errors have no common base
                print(f"building without {' '.join(flags)}: {error}", file=sys.stderr)
                return False
        return True

    def build_extension(self, ext):
        *_, isa, kernel = ext.name.split(".")
        style = self.styles["scalar" if kernel in SCALAR else "interleaved"]
        openmp = self.openmp if kernel == "_parallel" else []
        isa_flags = ISAS.get(isa, {}).get(self.kind, [])
        ext.extra_compile_args = COMPILE[self.kind] + style + isa_flags + openmp + EXTRA
        ext.extra_link_args = (openmp if self.kind == "unix" else []) + EXTRA
        super().build_extension(ext)


setup(ext_modules=list(extensions()), cmdclass={"build_ext": BuildExt})
