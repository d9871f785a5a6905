"""How a run is shown: bars on a terminal, a handful of lines elsewhere."""

import io

import pytest
from rich.console import Console

from fedmq.cli import progress
from fedmq.cli.progress import BarView, LineView, Moment


def test_a_moment_in_words() -> None:
    """Only what is known of it."""
    assert progress.line(Moment(note="starting a broker")) == "starting a broker"
    assert progress.line(Moment(note="", accuracy=0.975)) == "accuracy 97.5%"
    moment = Moment(note="5 workers (5 idle)", version=12, versions=30, updates=60, accuracy=0.9469)
    assert progress.line(moment) == "version 12 of 30, 60 updates, accuracy 94.7%, 5 workers (5 idle)"


def test_lines_are_few(capsys: pytest.CaptureFixture[str]) -> None:
    """One at the start and one for each tenth, however often somebody looks."""
    with LineView().arm("federated") as show:
        show(Moment(note="starting"))
        for version in range(101):
            for _ in range(3):
                show(Moment(note="", version=version, versions=100))
    out, err = capsys.readouterr()
    assert out == ""
    said = err.splitlines()
    assert said[0] == "federated: starting"
    assert said[1:] == [f"federated: version {version} of 100" for version in range(10, 101, 10)]


def test_without_a_terminal_there_are_lines() -> None:
    """As in a log or a pipe."""
    with progress.view() as shown:  # pytest's stderr is no terminal
        assert isinstance(shown, LineView)


def test_a_bar_is_full_at_the_end() -> None:
    """With the last numbers, and without the note of what went on."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120, color_system=None)
    with progress._progress(console) as bars:
        with BarView(bars).arm("federated") as show:
            show(Moment(note="starting a broker"))
            show(Moment(note="5 workers (5 training)", version=3, versions=10, updates=15, accuracy=0.5))
            show(Moment(note="", version=10, versions=10, updates=50, accuracy=0.97))
        (task,) = bars.tasks
        assert task.finished
        assert (task.fields["count"], task.fields["accuracy"], task.fields["note"]) == ("10/10", "97.0%", "")
    assert "10/10" in screen.getvalue()


def test_a_bar_without_a_count_ends_full_as_well() -> None:
    """Central training has no versions."""
    with progress._progress(Console(file=io.StringIO())) as bars:
        with BarView(bars).arm("centralised") as show:
            show(Moment(note="training"))
            show(Moment(note="", accuracy=0.97))
        assert bars.tasks[0].finished
