"""What a worker costs an edge program: time to import it on top of numpy, and resident memory.

    python benchmarks/import_worker.py

Each figure is the median of fresh interpreters; the imports of one are timed inside it.
"""

import statistics
import subprocess
import sys

ROUNDS = 11
_PROBE = """
import time
import numpy
before = time.perf_counter()
{statement}
print(time.perf_counter() - before)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS")))
"""


def measure(statement: str) -> tuple[float, float]:
    """Milliseconds on top of numpy and resident megabytes after a statement."""
    runs = []
    for _ in range(ROUNDS):
        probe = _PROBE.format(statement=statement)
        ran = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
        seconds, kib = ran.stdout.split()
        runs.append((float(seconds) * 1e3, float(kib) * 1024 / 1e6))
    return statistics.median(ms for ms, _ in runs), statistics.median(mb for _, mb in runs)


if __name__ == "__main__":
    print(f"{'after import numpy':36} {'time':>9} {'resident':>9}   (median of {ROUNDS})")
    for statement in ("pass", "import fedmq.worker", "from fedmq import Fit, Evaluation, Worker"):
        ms, mb = measure(statement)
        print(f"{statement:36} {ms:6.1f} ms {mb:6.1f} MB")
