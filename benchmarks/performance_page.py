"""Put the figures of a run into docs/performance.md: ``python benchmarks/performance_page.py figures.json``.

The figures come from ``fedmq bench kernels --json figures.json --plot docs/performance.png``. Each table of the page
stands between ``<!-- figures: NAME -->`` and ``<!-- end -->``; only what is between is replaced.
"""

import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
MARKED = re.compile(r"(<!-- figures: (?P<name>[^>]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(page: str, document: dict[str, Any]) -> str:
    """The page with each marked table made from the document.

    Raises
    ------
    KeyError
        When the page names a table that the document cannot fill.
    """
    return MARKED.sub(lambda found: f"{found[1]}\n{table(found['name'], document)}\n\n{found[3]}", page)


def table(name: str, document: dict[str, Any]) -> str:
    """One table in Markdown, or the line that names the machine."""
    match name:
        case "machine":
            return machine(document)
        case "bars":
            return bars(document["bars"])
        case "calls":
            return calls(document)
        case "crossover":
            found = document["crossover_n"].items()
            return rows(
                ("kernel", "from n ="), ((kernel, "never here" if n is None else n) for kernel, n in found)
            )
        case "errors":
            found = document["relative_errors"].items()
            return rows(("", "relative error"), ((who, f"{error:.1e}") for who, error in found))
        case _:
            return topic(name, document)


def machine(document: dict[str, Any]) -> str:
    """What it ran on, and the roofline."""
    facts, limits = document["machine"], document["roofline"]
    libraries = ", ".join(f"{name} {version}" for name, version in facts["libraries"].items() if version)
    rates = [
        f"{what} {' and '.join(f'{gbps:.1f}' for gbps in found.values())} GB/s"
        for what, found in (("`read4`", limits["read4_gbps"]), ("memcpy", limits["memcpy_gbps"]))
        if found
    ]
    threads = " and ".join(limits["read4_gbps"])
    roofline = f"Roofline with {threads} threads: {', '.join(rates)}." if rates else "No roofline."
    return (
        f"{document['k']} updates of {document['n']:,} values; {facts['cpus']} shared cores of an {facts['cpu']}, "
        f"kernels {facts['kernels']['backend']} ({facts['kernels']['isa']}, {facts['kernels']['compiler']}), "
        f"{libraries}.\n{roofline}"
        + (
            ""
            if document["complete"]
            else "\nThis run was interrupted: tables without figures are what it did not come to."
        )
    )


def topic(name: str, document: dict[str, Any]) -> str:
    """Every contestant of one topic."""
    results = [one for one in document["results"] if one["topic"] == name]
    if not results:
        raise KeyError(f"the document has no topic {name!r}")
    head = ("", "threads", "ms", "GB/s", "of `read4`", "native is")
    body = (
        (
            " ".join(filter(None, (streaming(one), one["impl"], one["mode"], one["variant"]))),
            one["threads"],
            f"{one['median_s'] * 1e3:.3g}",
            f"{one['gbps']:.1f}",
            "" if one["of_roofline"] is None else f"{one['of_roofline']:.2f}",
            "" if one["native_is"] is None else f"{one['native_is']:.1f} ×",
        )
        for one in results
    )
    return rows(head, body)


def streaming(one: dict[str, Any]) -> str:
    """The kernel's name where it is not that of its topic."""
    return "Accumulator" if one["kernel"] == "Accumulator" else ""


def calls(document: dict[str, Any]) -> str:
    """Microseconds of a call, a column for each n."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    for one in document["results"]:
        if one["topic"] == "calls":
            name = " ".join(filter(None, (one["kernel"], one["mode"], one["variant"])))
            found.setdefault((name, one["impl"]), {})[one["n"]] = one["median_s"] * 1e6
    sizes = sorted({n for times in found.values() for n in times})
    body = ((*who, *(f"{times[n]:.2f}" if n in times else "" for n in sizes)) for who, times in found.items())
    return rows(("µs", "", *sizes), body)


def bars(found: Sequence[dict[str, Any]]) -> str:
    """What each kernel shall reach, and what it reached."""
    verdicts = {True: "met", False: "**not met**", None: ""}
    body = (
        (
            one["number"],
            one["what"],
            f"{'≤' if one['at_most'] else '≥'} {one['needed']:g} {one['unit']}".strip(),
            "–" if one["measured"] is None else f"{one['measured']:.3g}",
            verdicts[one["met"]],
        )
        for one in found
    )
    return rows(("bar", "what", "needed", "measured", ""), body)


def rows(head: Sequence[object], body: Iterable[Sequence[object]]) -> str:
    """A table; its first column is text, the others are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


if __name__ == "__main__":
    figures = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), figures), encoding="utf-8")
