"""How many instructions each kernel takes, by callgrind: ``python -m tests.native.instructions`` writes the budget.

A slow-down shows as instructions, on any machine and without a clock. The counts depend on the compiler, on libc (whose
memcpy is counted too) and on valgrind, so a budget is good for one set of tools and is kept under their names; valgrind
presents the same CPU everywhere, one without AVX-512.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from .driver import Driver

__all__ = ["LEVELS", "budgets", "count", "tools"]

LEVELS: Final = ("base", "avx2")

_BUDGET: Final = Path(__file__).with_name("instructions.json")

Budget = dict[str, dict[str, int]]  # by level and case


def budgets() -> dict[str, Budget]:
    """The budgets that are kept, by the tools that they are good for."""
    kept: dict[str, Budget] = json.loads(_BUDGET.read_text(encoding="utf-8"))
    return kept


def tools(driver: Driver) -> str:
    """What the counts here depend on; "" where there is no valgrind."""
    if shutil.which("valgrind") is None:
        return ""
    version = subprocess.run(["valgrind", "--version"], capture_output=True, text=True, check=True).stdout
    return f"{driver.report()['tools']}, {version.strip().replace('-', ' ')}"


def count(driver: Driver, level: str) -> dict[str, int]:
    """Instructions of each case at a level.

    Callgrind counts inside the driver's ``measured()`` only, and writes a file whenever that returns: one per case.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "counts"
        done = driver.run(
            level,
            "valgrind",
            "--tool=callgrind",
            f"--callgrind-out-file={out}",
            "--toggle-collect=measured",
            "--dump-after=measured",
        )
        assert done.returncode == 0, done.stderr
        cases = list(json.loads(done.stdout)["digests"])
        dumps = sorted(Path(folder).glob("counts.*"), key=lambda path: int(path.suffix[1:]))
        return {case: _summary(dump) for case, dump in zip(cases, dumps, strict=True)}


def _summary(dump: Path) -> int:
    found = re.search(r"^summary: (\d+)$", dump.read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None, dump
    return int(found[1])


def main() -> None:
    """Count, and make it the budget for the tools that are here."""
    driver = Driver.built()
    here = tools(driver)
    if not here:
        sys.exit("valgrind is not installed")
    kept = budgets() if _BUDGET.exists() else {}
    before = kept.get(here, {})
    kept[here] = {level: count(driver, level) for level in LEVELS}
    _BUDGET.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print(here)
    for level, counts in kept[here].items():
        for case, now in counts.items():
            then = before.get(level, {}).get(case)
            change = "new" if then is None else f"{now / then - 1:+.1%}"
            print(f"{level:5} {case:26} {now:10,} {change}")


if __name__ == "__main__":
    main()
