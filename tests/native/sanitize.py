"""The kernels' tests under the compilers' sanitizers: ``make sanitize``, or ``python -m tests.native.sanitize``.

==============  ====================================================================================================
address         with undefined behaviour: the parity tests and the driver, at every level that this CPU has
thread          the parity tests (they hold the pool's, the forks' and the shared sums') at the best level
==============  ====================================================================================================

Rules
-----
- Only `_native` and the driver are instrumented. Python and numpy are not, so the runtime is preloaded; the locks of
  both are seen nevertheless, and no report is suppressed.
- Each Python object gets an allocation of its own (PYTHONMALLOC), so that a step beyond a payload is seen. Leaks are
  not looked for: Python leaves much to the end of the process.
- The first report ends the process, and so the tests.
- Where vm.mmap_rnd_bits is above 28, the thread sanitizer of a GCC before 14 ends with "unexpected memory mapping":
  run it behind ``setarch -R``.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from .building import ROOT, build
from .driver import LEVELS, Driver

_OPTIONS: Final = {
    "ASAN_OPTIONS": "detect_leaks=0",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    # A forked child of a process with threads is what test_pool.py is about.
    "TSAN_OPTIONS": "halt_on_error=1:die_after_fork=0",
    # The locks of numpy's BLAS are its own, and not seen: what its threads hand over looks like a race.
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONMALLOC": "malloc",
    "FEDMQ_KERNELS": "native",
    "FEDMQ_REQUIRE_NATIVE": "1",
    "CI": "1",  # the same examples every time
}


def built(sanitizers: str) -> Path:
    """The folder of a sanitized build; ``site/`` in it is the installed package with that module instead of its own."""
    import pybind11

    import fedmq

    folder = build(
        sanitizers.replace(",", "-"),
        f"-DFEDMQ_SANITIZE={sanitizers}",
        "-DFEDMQ_DRIVER=ON",
        # The bindings compile in a third of the time that -O3 takes, and a report has lines.
        "-DCMAKE_BUILD_TYPE=Debug",
        "-DCMAKE_CXX_FLAGS_DEBUG=-O1 -g1",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    )
    package = folder / "site" / "fedmq"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(Path(fedmq.__file__).parent, package)
    for module in folder.glob("_native*"):
        shutil.copy(module, package / "fedcore" / "kernels")
    return folder


def preloaded(runtime: str) -> str:
    """What LD_PRELOAD must name: the runtime, and the C++ library, whose exceptions it wants to see."""
    found = [
        subprocess.run(["c++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout
        for name in (runtime, "libstdc++.so.6")
    ]
    return " ".join(path.strip() for path in found)


def test(folder: Path, runtime: str, level: str, *what: str) -> None:
    """Run tests with a sanitized build, at a level; the first that fails ends everything."""
    print(f"-- {folder.name}, {level}: {' '.join(what)}", flush=True)
    environment = (
        os.environ
        | _OPTIONS
        | {
            "LD_PRELOAD": preloaded(runtime),
            "PYTHONPATH": str(folder / "site"),
            "FEDMQ_DRIVER": str(folder / "driver"),
            "FEDMQ_ISA": level,
        }
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *what]
    subprocess.run(command, env=environment, cwd=ROOT, check=True)


def main() -> None:
    """Build and run all of it."""
    folder = built("address,undefined,float-cast-overflow")
    driver = Driver([str(folder / "driver")])
    for level in filter(driver.has, LEVELS):
        test(folder, "libasan.so", level, "tests/parity", "tests/native/test_digests.py")
    test(built("thread"), "libtsan.so", "", "tests/parity")


if __name__ == "__main__":
    main()
