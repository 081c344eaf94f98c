"""The C core under gcc's sanitizers: a build for each, and the tests that reach the core.

    python tests/sanitize.py                    asan, then tsan, over the files named below
    python tests/sanitize.py tsan -- tests/test_model.py -k threads
                                                one of them; what follows -- goes to pytest

asan is AddressSanitizer with UndefinedBehaviorSanitizer, tsan is ThreadSanitizer. The builds lie in
build/asan and build/tsan; the tree's own build stays. Python itself is not instrumented: leaks are
not looked for, since the interpreter ends with memory in its hands, and races are seen where both
sides are the core's. The CUDA part has tests/sanitize_cuda.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = {
    "asan": ["tokenizer", "model", "rwkv7", "cpu", "refusals", "grain", "checkpoint", "golden"],
    "tsan": ["model", "rwkv7", "cpu", "grain"],
}
LIBRARIES = {"asan": ["libasan.so", "libubsan.so"], "tsan": ["libtsan.so"]}
OPTIONS = {"asan": "ASAN_OPTIONS", "tsan": "TSAN_OPTIONS"}


def build(kind: str) -> Path:
    """The folder that holds the package built under a sanitizer."""
    target = ROOT / "build" / kind
    command = [sys.executable, "setup.py", "-q", "build", "--build-lib", str(target)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "RWKVSTS_BUILD": kind}, check=True)
    return target


def runtime(library: str) -> str:
    """Where gcc keeps a sanitizer's library, which must be loaded before Python."""
    command = ["gcc", f"-print-file-name={library}"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not os.path.isabs(found):
        raise SystemExit(f"gcc has no {library}: install its sanitizers (Debian: libgcc-12-dev)")
    return found


def run(kind: str, arguments: list[str]) -> bool:
    """Whether the tests passed and the sanitizer had nothing to report."""
    package = build(kind)
    log = package / "report"
    for old in package.glob("report.*"):
        old.unlink()
    options = [f"log_path={log}", "allocator_may_return_null=1"]
    options += ["detect_leaks=0"] if kind == "asan" else []
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(runtime(library) for library in LIBRARIES[kind]),
        "PYTHONPATH": str(package),
        "PYTHONMALLOC": "malloc",  # every object an allocation of its own, its ends watched
        "OPENBLAS_NUM_THREADS": "1",
        OPTIONS[kind]: ":".join(options),
        "UBSAN_OPTIONS": f"print_stacktrace=1:log_path={log}",
    }
    named = [str(ROOT / "tests" / f"test_{name}.py") for name in TESTS[kind]]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    # Paths are the tree's, from which this is started.
    arguments = [str(Path(a).resolve()) if Path(a).exists() else a for a in arguments]
    print(f"== {kind}", flush=True)
    # Started in the package's folder: in the tree, Python would find the tree's own build first.
    code = subprocess.run(
        [*command, *(arguments or named)], cwd=package, env=environment
    ).returncode
    reports = sorted(package.glob("report.*"))
    for report in reports:
        print(report.read_text(), flush=True)
    clean = code == 0 and not reports
    print(f"== {kind}: {'clean' if clean else 'NOT CLEAN'}", flush=True)
    return clean


def main() -> None:
    given = sys.argv[1:]
    until = given.index("--") if "--" in given else len(given)
    chosen = given[:until] or list(TESTS)
    if any(kind not in TESTS for kind in chosen):
        raise SystemExit(f"expected asan, tsan or nothing, found {' '.join(chosen)!r}")
    paths_resolved = [str(ROOT / a) if (ROOT / a).exists() else a for a in given[until + 1 :]]
    if not all([run(kind, paths_resolved) for kind in chosen]):  # both run, whatever fails
        raise SystemExit(1)


if __name__ == "__main__":
    main()
