"""The house in order: which folder may use which, how large files, folders and signatures may be, and C headers that
can be included together."""

import ast
import platform
import re
import shutil
import subprocess
import sysconfig
from collections import Counter, defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "fastloss"
KERNELS = PACKAGE / "kernels"

MOST_LINES = 500  # of a file
MOST_FILES = 12  # of a folder; files of one name, say exp_table.h and exp_table.pxd, are one
MOST_ARGUMENTS = 7  # by position, of a function of the kernels

# For each folder, or module that stands alone, those it may use. Every list names what lies below: there is no circle.
PYTHON = {
    "_host": set(),
    "_parallel": set(),
    "_native": {"_host"},
    "_core": {"_native", "_parallel", "_host"},
    "samplers": {"_core", "_native"},
    "losses": {"samplers", "_core", "_native"},
    "": {"losses", "samplers", "_core", "_native"},  # the public names
    "_cli": {"", "_core"},  # only how many threads a call gets by default
    "__main__": {"_cli"},
}
COMPILED = {
    "_host": set(),
    "_parallel": set(),
    "math": set(),
    "parallel": {"_parallel"},
    "arrays": {"math", "parallel", "_parallel"},
    "matmul": {"arrays", "math", "parallel"},
    "row_sums": {"arrays", "math", "parallel", "_parallel"},
    "softmax": {"row_sums", "arrays", "math", "parallel", "_parallel"},
    "elementwise": {"arrays", "math", "parallel", "_parallel"},
    "sequence": {"row_sums", "softmax", "arrays", "math", "parallel", "_parallel"},
    "linear": {"row_sums", "softmax", "matmul", "arrays", "math", "parallel", "_parallel"},
    "sampled": {"row_sums", "softmax", "matmul", "arrays", "math", "parallel", "_parallel"},
    "sampling": {"arrays", "math", "parallel", "_parallel"},
    "testing": {"arrays", "math", "parallel", "_parallel"},
}

# What is still too large, and how large it may be: nothing is added here, and what has become small enough goes.
LONG_FILES: dict[str, int] = {}
FULL_FOLDERS: dict[str, int] = {}
LONG_SIGNATURES: dict[str, int] = {}


def sources(*endings):
    """Files of the package; build products are none."""
    return sorted(p for ending in endings for p in PACKAGE.rglob(f"*.{ending}") if "_native" not in p.parts[:-2])


def room(path):
    """The folder of the package or of the kernels that a file lies in, or the name of one that lies in none."""
    *folders, name = path.relative_to(KERNELS if path.is_relative_to(KERNELS) else PACKAGE).parts
    return folders[0] if folders else Path(name).stem.replace("__init__", "")


def python_uses(path):
    """Modules of the package that a Python file imports, at its top or later: by their parts, without `fastloss`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [(a.name, "") for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports name the package"
            names = [(node.module, a.name) for a in node.names]
        else:
            continue
        for module, name in names:
            first, *rest = module.split(".")
            if first == "fastloss":
                yield rest[0] if rest else name if (PACKAGE / name).exists() or name in PYTHON else ""


def kernel_uses(path):
    """Folders of the kernels, and modules beside them, of which a Cython or C file cimports, imports or includes."""
    text = path.read_text()
    for module in re.findall(r"^\s*(?:from|c?import)\s+(fastloss[\w.]*)", text, re.M):
        _, *rest = module.split(".")
        yield rest[1] if rest[0] == "kernels" else rest[0]
    for header in re.findall(r'(?:cdef extern from|#\s*include)\s+"([^"]+)"', text):
        assert "/" in header or not path.is_relative_to(KERNELS), f"{path}: {header} is included without its folder"
        yield header.split("/")[0] if "/" in header else room(path)


def arrows(paths, uses):
    found = defaultdict(set)
    for path in paths:
        found[room(path)] |= {(used, path.name) for used in uses(path) if used != room(path)}
    return found


@pytest.mark.parametrize(
    ("allowed", "found"),
    [
        (PYTHON, arrows(sources("py"), python_uses)),
        (COMPILED, arrows(sources("pyx", "pxd", "h"), kernel_uses)),
    ],
    ids=["python", "compiled"],
)
def test_arrows_between_folders_run_one_way(allowed, found):
    below = set()
    for folder, may_use in allowed.items():
        assert may_use <= below, f"{folder} may use what does not lie below it: {may_use - below}"
        below.add(folder)
    assert set(found) - set(allowed) == set(), "folders of which nothing is said above"
    for folder, uses in found.items():
        wrong = sorted(f"{name} uses {used}" for used, name in uses if used not in allowed[folder])
        assert not wrong, f"{folder} lies below what it uses"
    assert sum(map(len, found.values())) > 10  # they were read


def at_most(limit, found, known):
    """No more than the limit; but for what is known, which must still be over it and may not grow."""
    over = {name: n for name, n in sorted(found.items()) if n > limit}
    grown = [name for name, n in over.items() if n > known.get(name, limit)]
    small = sorted(set(known) - set(over))
    assert not grown, f"over {limit}: {grown}"
    assert not small, f"no longer over {limit}, so no longer to be listed: {small}"


def test_files_are_short():
    files = sources("py", "pyi", "pyx", "pxd", "h")
    at_most(MOST_LINES, {str(p.relative_to(PACKAGE)): p.read_text().count("\n") for p in files}, LONG_FILES)


def test_folders_hold_a_dozen_files():
    names = {(p.parent.relative_to(PACKAGE), p.stem) for p in sources("py", "pyx", "pxd", "h")}
    at_most(MOST_FILES, Counter(str(folder) for folder, stem in names if stem != "__init__"), FULL_FOLDERS)


def positional(arguments):
    """How many may be given by position: those before a star."""
    depth, parts = 0, [""]
    for c in re.sub(r'"[^"]*"|#.*|/\*.*?\*/', "", arguments):
        depth += c in "([{"
        depth -= c in ")]}"
        if c == "," and not depth:
            parts.append("")
        else:
            parts[-1] += c
    parts = [p.strip() for p in parts]
    stars = [i for i, p in enumerate(parts) if re.match(r"\*\w*$", p)]
    return len([p for p in parts[: stars[0] if stars else None] if p and p != "void"])


def signatures(path):
    """Functions that a file of the kernels defines, and their positional arguments."""
    text = path.read_text()
    if path.suffix == ".h":
        starts = re.finditer(r"^(?:static|FL_\w+) [^;{}=]*?(\w+(?:\(fl_\w+\))?)(\()", text, re.M)
    else:
        starts = re.finditer(r"^ *(?:cdef|cpdef|def)\b[^\n(=:]*?(\w+)(?:\[[^\]\n]*\])?(\()", text, re.M)
    for start in starts:
        stop = start.start(2)
        depth = 0
        while True:
            depth += (text[stop] == "(") - (text[stop] == ")")
            stop += 1
            if depth == 0:
                break
        name = re.sub(r".*\((\w+)\)", r"\1", start[1])
        yield f"{path.relative_to(KERNELS)}:{name}", positional(text[start.start(2) + 1 : stop - 1])


def test_functions_take_few_arguments_by_position():
    found = Counter()
    for path in sources("pyx", "pxd", "h"):
        if path.is_relative_to(KERNELS):
            for name, n in signatures(path):
                found[name] = max(found[name], n)
    assert found["math/vmath.h:fl_expf"] == 3  # they were read
    assert len(found) > 300
    at_most(MOST_ARGUMENTS, found, LONG_SIGNATURES)


# ------------------------------------------------------------------ C headers

HEADERS = [p for p in sources("h") if p.name != "product_tile.h"]  # which product.h includes once for each type


@pytest.mark.parametrize("header", HEADERS, ids=lambda p: p.name)
def test_a_header_guards_itself_by_its_name(header):
    name = f"FL_{header.stem.lstrip('_').upper()}_H"
    lines = re.sub(r"/\*.*?\*/\s*", "", header.read_text(), flags=re.S).strip().split("\n")
    assert lines[:2] == [f"#ifndef {name}", f"#define {name}"]
    assert lines[-1] == "#endif"


COMPILERS = [c for c in ("gcc", "clang") if shutil.which(c)]
ISAS = {"baseline": [], "avx2": ["-march=x86-64-v3"], "avx512": ["-march=x86-64-v4", "-mprefer-vector-width=512"]}


@pytest.mark.skipif(not COMPILERS, reason="needs gcc or clang")
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("compiler", COMPILERS or ["none"])
def test_all_headers_can_be_included_together(compiler, isa):
    """In any order: what one defines is no other's. Nobody uses all functions of a header, so that is no warning."""
    if isa != "baseline" and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("these are flags of x86-64")
    folders = [KERNELS, PACKAGE, sysconfig.get_path("include")]
    command = [compiler, *ISAS[isa], "-x", "c", "-fsyntax-only", "-O1", "-Wall", "-Wextra", "-Werror"]
    command += ["-Wno-unused-function", "-Wno-unknown-pragmas", *(f"-I{folder}" for folder in folders), "-"]
    names = [p.relative_to(KERNELS if p.is_relative_to(KERNELS) else PACKAGE) for p in HEADERS]
    assert len(names) > 10
    for order in (names, names[::-1]):
        program = "".join(f'#include "{name}"\n' for name in order)
        done = subprocess.run(command, input=program, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
