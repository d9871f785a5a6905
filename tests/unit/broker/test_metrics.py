"""The catalogue of metrics: Prometheus's conventions, the page's table, and what is shown when."""

import re
from pathlib import Path

import pytest

from fedmq.broker import metrics
from fedmq.broker.metrics import METRICS, Metric, complete
from fedmq.broker.tally import Distribution

PAGE = (Path(__file__).parents[3] / "docs" / "operations.md").read_text(encoding="utf-8")


def test_each_name_stands_once() -> None:
    """A name is a name."""
    assert len(metrics.BY_NAME) == len(METRICS)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_follow_prometheus(metric: Metric) -> None:
    """Ours by its prefix; `_total` for what only grows and nothing else; base units; help that is a sentence."""
    assert re.fullmatch(r"fedmq_[a-z][a-z_]*[a-z]", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert not re.search(r"_(ms|kb|mb|minutes|percent)(_|$)", metric.name)
    assert metric.help[0].isupper() or metric.help[0] in "1n"
    assert metric.help.endswith(".")
    assert "\n" not in metric.help


def test_the_page_has_every_metric() -> None:
    """docs/operations.md: name, type, labels, whether privacy hides it, and the same help."""
    rows = re.findall(r"^\| `(fedmq_\w+)` \| (\w+) \| (.*?) \| (.*) \|$", PAGE, re.MULTILINE)
    expected = []
    for metric in METRICS:
        listed = "; ".join(
            f"`{label}`: {', '.join(value or '(none)' for value in values)}" if values else f"`{label}`"
            for label, values in metric.labels.items()
        )
        hidden = " *Not under privacy.*" if metric.hidden else ""
        hidden += " *Not where workers are sampled.*" if metric.of_sample else ""
        expected.append((metric.name, metric.kind, listed, metric.help + hidden))
    assert rows == expected


def test_what_has_not_happened_is_zero() -> None:
    """A counter is there from the start, with every combination of its labels."""
    shown = complete({}, private=False)
    assert shown["fedmq_rounds_opened_total"] == 0
    assert shown["fedmq_tasks_sent_total"] == {("fit",): 0, ("evaluate",): 0, ("init",): 0}
    assert "fedmq_version" not in shown
    assert "fedmq_model_metric" not in shown


def test_what_has_happened_is_added() -> None:
    """Beside the zeros, in the order of the page."""
    shown = complete({"fedmq_version": 3, "fedmq_tasks_sent_total": {("fit",): 7}}, private=False)
    assert shown["fedmq_tasks_sent_total"] == {("fit",): 7, ("evaluate",): 0, ("init",): 0}
    assert [name for name in metrics.BY_NAME if name in shown] == list(shown)


def test_privacy_leaves_out_what_is_hidden() -> None:
    """Whatever the numbers say."""
    numbers: metrics.Numbers = {metric.name: 1.0 for metric in METRICS if not metric.labels}
    assert not [name for name in complete(numbers, private=True) if metrics.BY_NAME[name].hidden]


def with_labels(shown: metrics.Numbers) -> set[str]:
    return {name for name in shown if metrics.BY_NAME[name].labels}


def test_a_secret_coin_leaves_out_what_it_could_be_counted_from() -> None:
    """Besides what privacy hides; what says how the broker does stays."""
    numbers: metrics.Numbers = {metric.name: 1.0 for metric in METRICS if not metric.labels}
    shown = complete(numbers, private=True, sampled=True)
    assert not [name for name in shown if metrics.BY_NAME[name].hidden or metrics.BY_NAME[name].of_sample]
    assert "fedmq_tasks_sent_total" not in shown
    assert "fedmq_tasks_sent_total" in complete(numbers, private=True)
    # Each of these is here because it says the same whoever is asked. To add one is to have thought about that.
    assert shown.keys() - with_labels(shown) == {
        "fedmq_version", "fedmq_version_age_seconds", "fedmq_connections", "fedmq_connections_cut_total",
        "fedmq_rebinds_total", "fedmq_keys_refused_total", "fedmq_sessions", "fedmq_sessions_suspect",
        "fedmq_workers_evicted", "fedmq_protocol_errors_total", "fedmq_floods_total",
        "fedmq_upload_credit_limit_bytes", "fedmq_buffers_waiting", "fedmq_rounds_opened_total",
        "fedmq_rounds_extended_total", "fedmq_privacy_steps_spent", "fedmq_privacy_steps_left",
        "fedmq_privacy_clip_norm", "fedmq_uptime_seconds", "fedmq_process_max_fds",
    }  # fmt: skip
    assert with_labels(shown) == {
        "fedmq_sessions_opened_total", "fedmq_sessions_closed_total", "fedmq_hellos_refused_total",
        "fedmq_state", "fedmq_suspects_total",
    }  # fmt: skip


def test_a_number_without_a_place_is_a_defect() -> None:
    """It would be missing on the page."""
    with pytest.raises(KeyError):
        complete({"fedmq_unheard_of": 1}, private=False)


def test_a_distribution_is_shown_as_it_is() -> None:
    """Not completed with anything."""
    seconds = Distribution([1.0])
    assert complete({"fedmq_commit_seconds": seconds}, private=False)["fedmq_commit_seconds"] is seconds
