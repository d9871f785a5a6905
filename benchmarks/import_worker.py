"""What an edge box pays for fedmq: ``python benchmarks/import_worker.py [--json]``.

Each figure is the median of several fresh processes that import numpy and then fedmq.worker, interleaved
with processes that import numpy alone:

- how many milliseconds ``import fedmq.worker`` takes after ``import numpy``, and how many until its `Worker`,
  which is loaded on first use, is there as well (bar: 50);
- how many MB of resident memory the process then has (bar: 45), and how many of them are numpy's and Python's.

Run it on an installed fedmq: without compiled bytecode Python's compiler is what is measured.
"""

import argparse
import json
import statistics
import subprocess
import sys

BAR_MS = 50.0
BAR_MB = 45.0
ROUNDS = 11

PROBE = """
import json, sys, time
import numpy
if len(sys.argv) > 1:
    started = time.perf_counter()
    import fedmq.worker
    package = time.perf_counter() - started
    fedmq.worker.Worker
    whole = time.perf_counter() - started
else:
    package = whole = 0.0
with open("/proc/self/status") as status:
    rss = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
print(json.dumps({"package_ms": package * 1e3, "ms": whole * 1e3, "mb": rss / 1024, "modules": len(sys.modules)}))
"""


def probe(*arguments: str) -> dict[str, float]:
    """One fresh process."""
    ended = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, check=True
    )
    found: dict[str, float] = json.loads(ended.stdout)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    as_json = parser.parse_args().json
    probe("fedmq.worker")  # fills the disk's cache
    pairs = [(probe(), probe("fedmq.worker")) for _ in range(ROUNDS)]
    package_ms = statistics.median(worker["package_ms"] for _, worker in pairs)
    ms = statistics.median(worker["ms"] for _, worker in pairs)
    mb = statistics.median(worker["mb"] for _, worker in pairs)
    numpy_mb = statistics.median(alone["mb"] for alone, _ in pairs)
    modules = statistics.median(worker["modules"] - alone["modules"] for alone, worker in pairs)
    if as_json:
        print(
            json.dumps(
                {
                    "import_ms": package_ms,
                    "worker_ms": ms,
                    "rss_mb": mb,
                    "numpy_rss_mb": numpy_mb,
                    "modules": modules,
                }
            )
        )
    else:
        print(f"import fedmq.worker   {package_ms:5.1f} ms on top of numpy")
        print(f"and its Worker        {ms:5.1f} ms (bar {BAR_MS:.0f}), {modules:.0f} modules")
        print(f"resident memory       {mb:5.1f} MB (bar {BAR_MB:.0f}); numpy alone {numpy_mb:.1f} MB")


if __name__ == "__main__":
    main()
