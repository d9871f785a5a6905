"""The table says what was counted, and only that part of the page is rewritten."""

from pathlib import Path

import pytest

from .tally import BEGIN, END, FAULTS, Tally, rewrite


def test_a_row_of_the_table() -> None:
    """Times injected, losses of all federations, median and maximum of the recoveries."""
    tally = Tally()
    for seconds in (0.5, 2.0, 1.0):
        tally.injected(FAULTS[0], seconds)
    tally.injected(FAULTS[0])
    tally.judged([FAULTS[0]], lost=1, twice=0)
    tally.judged([FAULTS[0]], lost=0, twice=2)
    assert Tally().table() == []
    assert tally.table()[2:] == [f"| {FAULTS[0]} | 4 | 1 | 2 | 1.00 | 2.00 |"]
    tally.note("And so on.")
    assert tally.table()[3:] == ["", "And so on."]


def test_complete_is_every_fault() -> None:
    """A round that left out a fault must not pass for a whole one."""
    tally = Tally()
    for fault in FAULTS:
        assert not tally.complete
        tally.injected(fault, 1.0)
        tally.judged([fault], lost=0, twice=0)
    assert tally.complete


def test_parts_add_up() -> None:
    """What a part found in a process of its own counts as if it had been found here."""
    part, whole = Tally(), Tally()
    part.injected(FAULTS[1], 3.0)
    part.judged([FAULTS[1]], lost=0, twice=1)
    whole.injected(FAULTS[1], 1.0)
    whole.add(part.dump())
    assert whole.table()[2:] == [f"| {FAULTS[1]} | 2 | 0 | 1 | 2.00 | 3.00 |"]


def test_only_the_table_is_rewritten(tmp_path: Path) -> None:
    """Twice gives the same page; a page without the markers is refused."""
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    rewrite(page, ["| new |"])
    once = page.read_text(encoding="utf-8")
    assert once.startswith(f"before\n{BEGIN}\n\n| new |\n")
    assert once.endswith(f"{END}\nafter\n")
    assert "old" not in once
    rewrite(page, ["| new |"])
    assert page.read_text(encoding="utf-8") == once
    page.write_text("nothing", encoding="utf-8")
    with pytest.raises(ValueError, match="lacks the lines"):
        rewrite(page, [])
