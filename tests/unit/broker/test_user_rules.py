"""A rule of the user's own: the example of docs/strategies.md runs, and whatever goes wrong names the rule."""

import contextlib
import itertools
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmq.broker import frozen
from fedmq.broker.aggregator import PREVIOUS, fold
from fedmq.broker.opening import open_storage
from fedmq.broker.store.state import StateFolder
from fedmq.fedcore import config
from fedmq.fedcore.errors import ConfigError, StateError

from .test_aggregator import N, State, plan
from .test_robust_folds import UPDATES, accept_all, scaled

PAGE = (Path(__file__).parents[3] / "docs" / "strategies.md").read_text(encoding="utf-8")
HEAD = """
import numpy as np
from fedmq.fedcore.strategy.combination import Coordinates, Mixture, mixture_of

class Rule:
    minimum = 3
    seeded = False

    def prepare(self, updates):
        k = len(updates)
"""

Write = Callable[[str], config.UserRule]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Make a module of some text in the current folder; the rule that it names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    numbers, made = itertools.count(), []

    def module(text: str, attribute: str = "Rule") -> config.UserRule:
        made.append(f"my_rules_{next(numbers)}")
        (tmp_path / f"{made[-1]}.py").write_text(text)
        return config.UserRule(f"{made[-1]}:{attribute}")

    yield module
    for name in made:
        sys.modules.pop(name, None)


def rule_of(write: Write, body: str) -> config.UserRule:
    return write(HEAD + f"        {body}\n")


def test_the_example_of_the_page_is_twenty_lines_and_folds(
    tmp_path: Path, write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every coordinate moves by one step in the direction of the majority, however the model is cut."""
    blocks = re.findall(r"```(?:python|toml)\n(.*?)```", PAGE, re.DOTALL)
    code, settings = (block for block in blocks if "SignVote" in block)
    assert len(code.splitlines()) <= 20
    assert config.parse(settings).aggregate.rule == config.UserRule("my_rules:SignVote")
    rule = write(code, "SignVote")
    state = State(tmp_path, {"w": np.zeros(N, np.float32)})
    rows = accept_all(state)
    first = state.fold(plan(state, rows, rule=rule))
    step = np.median([row.weight * row.norm for row in rows]) / np.sqrt(N)
    expected = step * np.sign(np.sign(scaled(state, rows)).sum(axis=0))
    np.testing.assert_array_equal(state.flat(1), expected.astype(np.float32))
    monkeypatch.setattr(frozen, "PIECE_VALUES", frozen.SEGMENT)
    assert state.fold(plan(state, rows[::-1], rule=rule), tile=frozen.SEGMENT) == first


def test_a_rule_may_ask_for_distances_and_give_a_mixture(tmp_path: Path, write: Write) -> None:
    """Here it leaves out the update that is farthest from all others."""
    rule = rule_of(
        write,
        "far = updates.sq_distances().sum(axis=1).argmax()\n"
        "        return mixture_of([float(i != far) for i in range(k)], updates.weights)",
    )
    state = State(tmp_path, {"w": np.zeros(N, np.float32)})
    rows = accept_all(state)
    fold(plan(state, rows, rule=rule), state.versions, state.spool)
    u = scaled(state, rows)
    far = ((u[:, None] - u) ** 2).sum(axis=2).sum(axis=1).argmax()
    np.testing.assert_allclose(state.flat(1), np.delete(u, far, axis=0).mean(axis=0), rtol=1e-6, atol=1e-7)


def test_a_seeded_rule_gets_what_it_made_before(tmp_path: Path, write: Write) -> None:
    """(the mean + what was made before) / 2, kept beside the version."""
    body = "return mixture_of([1 / k] * k, updates.weights, previous=1.0)"
    rule = write((HEAD + f"        {body}\n").replace("seeded = False", "seeded = True"))
    state = State(tmp_path, {"w": np.zeros(N, np.float32)})
    rows = [state.accept(x) for x in UPDATES[:3]]
    base = fold(plan(state, rows, rule=rule), state.versions, state.spool).info
    mean = np.mean(np.array(UPDATES[:3], float), axis=0)
    np.testing.assert_allclose(state.versions.state(1, PREVIOUS, N), mean / 2, rtol=1e-6, atol=1e-8)
    state.base = base
    fold(plan(state, rows, rule=rule), state.versions, state.spool)
    np.testing.assert_allclose(state.versions.state(2, PREVIOUS, N), mean * 0.75, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return 7", "prepare must return a Mixture or Coordinates, got builtins.int"),
        ("raise KeyError('x')", "prepare raised KeyError: 'x'"),
        ("return Coordinates(lambda x: x)", "its function must return"),
        ("return Coordinates(lambda x: x.sum())", "its function must return"),
        ("return Coordinates(lambda x: x[0] / 0)", "its function must return"),
        ("return Coordinates(lambda x: x[99])", "its function raised IndexError"),
        ("return Coordinates(lambda x: ['a'])", "its function raised ValueError"),
        ("return Coordinates(lambda x: x[0], rows=(11,))", "rows must name some of 0 … 10"),
        ("return Coordinates(lambda x: x[0], rows=())", "rows must name some of 0 … 10"),
        ("return Mixture(weights=(1.0,), denominator=1.0)", "a Mixture must have 11 weights"),
        ("return Mixture(weights=(-1.0,) * k, denominator=1.0)", "a Mixture must have 11 weights"),
        ("return Mixture(weights=(1.0,) * k, denominator=0.0)", "a denominator above 0"),
        ("return Mixture(weights=(float('nan'),) * k, denominator=1.0)", "a Mixture must have 11 weights"),
        (
            "return Mixture(weights=(1.0,) * k, denominator=1.0, previous=1.0)",
            "only where the rule is seeded",
        ),
    ],
)
def test_what_goes_wrong_in_a_fold_names_the_rule(tmp_path: Path, write: Write, body: str, said: str) -> None:
    """The version is not made, and the buffer is as it was."""
    rule = rule_of(write, body)
    state = State(tmp_path)
    with pytest.raises(StateError, match=re.escape(said)) as caught:
        fold(plan(state, accept_all(state), rule=rule), state.versions, state.spool)
    assert str(caught.value).startswith(f"aggregate.rule {rule.app}: ")
    assert state.versions.versions() == (0,)


def started(folder: Path, rule: str, **mode: Any) -> None:
    """Open the storage of a new federation with this rule, as a starting broker does."""
    settings = config.parse(
        {"aggregate": {"rule": rule}, "mode": mode, "federation": {"state": str(folder / "state")}}
    )
    with StateFolder.open(settings.federation.state) as state, contextlib.ExitStack() as stack:
        open_storage(settings, state, stack)


def test_a_broker_does_not_start_with_a_rule_that_does_not_load(tmp_path: Path, write: Any) -> None:
    """Nor with one whose minimum its buffers could fall short of; and leaves no state folder behind."""
    good = rule_of(write, "return None").app
    broken = {
        "nowhere_at_all:Rule": "cannot load the rule 'nowhere_at_all:Rule': no module named",
        good + "x": "has no attribute 'Rulex'",
        write("Rule = 3\n").app: "has no method prepare",
        write("def Rule(x): pass\n").app: "raised TypeError",
        write(HEAD.replace("minimum = 3", "minimum = 0") + "        pass\n").app: "minimum, an integer ≥ 1",
        write(HEAD.replace("seeded = False", "") + "        pass\n").app: "seeded, True or False",
    }
    for spec, said in broken.items():
        with pytest.raises(ConfigError, match=re.escape(said)) as caught:
            started(tmp_path, spec)
        assert str(caught.value).startswith("aggregate.rule: ")
    with pytest.raises(ConfigError, match=r"mode\.buffer is 2; with aggregate.rule .* at least 3"):
        started(tmp_path, good, buffer=2)
    with pytest.raises(ConfigError, match=r"mode\.min_available is 2; .* at least 3"):
        started(tmp_path, good, kind="sync", min_available=2)
    assert not (tmp_path / "state").exists()
    started(tmp_path, good, buffer=3)
    assert (tmp_path / "state" / "federation.json").exists()
