"""federation.toml: defaults, ranges, errors that name the key, round trips, and what a restart may change."""

import functools
import math
import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq.fedcore import config
from fedmq.fedcore.config import reading, restart, writing
from fedmq.fedcore.errors import ConfigError

PRIVATE: dict[str, Any] = {
    "mode": {"kind": "sync"},
    "privacy": {
        "epsilon": 3,
        "delta": 1e-5,
        "max_grad_norm": 0.1,
        "sampling_rate": 0.1,
        "steps": 300,
        "divisor": 150,
        "max_batch": 64,
    },
}


def error(source: str | dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        config.parse(source)
    return str(caught.value)


class TestDefaults:
    def test_an_empty_file_is_a_federation(self) -> None:
        """Every key has a default, but those of [privacy]."""
        found = config.parse("")
        assert found.federation.bind == "tcp://127.0.0.1:5560"
        assert found.mode == config.AsyncMode(buffer=10, concurrency=100, max_staleness=20)
        assert found.optimizer == config.Sgd(lr=1.0)
        assert found.privacy is None
        assert found.storage.durability == "fsync"

    def test_kind_chooses_the_table(self) -> None:
        """Mode and optimizer are unions, told apart by their kind."""
        found = config.parse("[mode]\nkind = 'sync'\n[optimizer]\nkind = 'momentum'\nbeta = 0.5")
        assert isinstance(found.mode, config.SyncMode)
        assert found.mode.kind == "sync"
        assert found.optimizer == config.Momentum(lr=1.0, beta=0.5)

    def test_a_mapping_is_as_good_as_text(self, tmp_path: Path) -> None:
        """An embedded broker is configured without a file."""
        found = config.parse({"federation": {"state": tmp_path / "s"}, "stop": {"versions": 3}})
        assert found.federation.state == str(tmp_path / "s")
        assert found.stop.versions == 3

    def test_configs_cannot_be_changed(self) -> None:
        """A config is a value."""
        with pytest.raises(AttributeError):
            config.parse("").federation.name = "other"  # type: ignore[misc]


class TestValues:
    @pytest.mark.parametrize(
        ("text", "size"),
        [("1 MiB", 2**20), ("256KiB", 2**18), ("2 MB", 2_000_000), ("1.5 MiB", 3 * 2**19), ("65536", 65536)],
    )
    def test_sizes_are_text_or_bytes(self, text: str, size: int) -> None:
        """Binary and decimal units are told apart."""
        assert config.parse({"network": {"block": text}}).network.block == size
        assert config.parse({"network": {"block": size}}).network.block == size

    def test_an_integer_is_a_number(self) -> None:
        """``lr = 1`` means 1.0."""
        lr = config.parse("[optimizer]\nlr = 1").optimizer.lr
        assert (lr, type(lr)) == (1.0, float)

    def test_paths_are_relative_to_the_file(self, tmp_path: Path) -> None:
        """Not to the current folder."""
        path = tmp_path / "federation.toml"
        path.write_text(
            "[model]\ninitial = 'm/zero.safetensors'\n[security]\nkeys = 'keys'\nallowlist = '/a'"
        )
        found = config.load(path)
        assert found.federation.state == str(tmp_path / "state")
        assert found.model.initial == str(tmp_path / "m/zero.safetensors")
        assert found.security == config.Security(keys=str(tmp_path / "keys"), allowlist="/a")

    @pytest.mark.parametrize(
        ("initial", "source"),
        [
            ("first-worker", "first-worker"),
            ("app:make", "app"),
            ("a.b:c", "app"),
            ("zero.safetensors", "file"),
        ],
    )
    def test_the_initial_model_has_three_origins(self, initial: str, source: str) -> None:
        """Only a file's name is resolved."""
        found = config.parse({"model": {"initial": initial}}, base_dir="/base").model
        assert found.source == source
        assert found.initial == (f"/base/{initial}" if source == "file" else initial)

    def test_task_is_free(self) -> None:
        """Whatever TOML and msgpack share reaches the app unchanged."""
        text = "[task]\nlr = 0.1\nlayers = [32, 10]\nname = 'x'\ndeep = {yes = true}"
        assert config.parse(text).task == tomllib.loads(text)["task"]


class TestErrors:
    """Each is one line that names the key, what it holds, and what it may hold."""

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("[mod]", "[mod] is not a table; did you mean [mode]?"),
            ("[mode]\nbufer = 3", "mode.bufer is not a key; did you mean mode.buffer?"),
            (
                "[stop]\nqqq = 3",
                "stop.qqq is not a key; there are: versions, metric, target, seconds",
            ),
            ("mode = 3", "mode is 3; it may hold a table, written [mode]"),
            ("[mode]\nkind = 'fast'", 'mode.kind is "fast"; it may hold "async" or "sync"'),
            ("[mode]\nkind = ['sync']", 'mode.kind is an array; it may hold "async" or "sync"'),
            (
                "[mode]\nmin_updates = 3",
                'mode.min_updates belongs to kind = "sync", but mode.kind is "async"',
            ),
            ("[mode]\nbuffer = 0", "mode.buffer is 0; it may hold an integer ≥ 1 and ≤ 100000"),
            ("[mode]\nbuffer = true", "mode.buffer is true; it may hold an integer ≥ 1 and ≤ 100000"),
            ("[mode]\nbuffer = 1.5", "mode.buffer is 1.5; it may hold an integer ≥ 1 and ≤ 100000"),
            ("[optimizer]\nlr = 0", "optimizer.lr is 0; it may hold a finite number > 0"),
            ("[optimizer]\nlr = nan", "optimizer.lr is nan; it may hold a finite number > 0"),
            ("[optimizer]\nlr = inf", "optimizer.lr is inf; it may hold a finite number > 0"),
            ("[evaluate]\nfraction = 2", "evaluate.fraction is 2; it may hold a finite number ≥ 0 and ≤ 1"),
            (
                "[network]\nblock = '2 MiX'",
                'network.block is "2 MiX"; it may hold a size ≥ 1024 and ≤ 16777216, '
                'in bytes or as text such as "64 MiB"',
            ),
            (
                "[federation]\nbind = 'here'",
                'federation.bind is "here"; it may hold "tcp://host:port" (a port up to 65535, or *) or "ipc://path"',
            ),
            (
                "[storage]\nkeep_payloads = 'yes'",
                'storage.keep_payloads is "yes"; it may hold true or false',
            ),
            (
                "[privacy]\ndelta = 0.1",
                "privacy.epsilon is missing; [privacy] needs it, "
                "and it may hold a finite number > 0 and ≤ 1000",
            ),
            (
                "[task]\nday = 2020-01-01",
                "task.day is 2020-01-01; it may hold text, a number, true or false, an array or a table",
            ),
            ("[task]\na = [1, nan]", "task.a[1] is nan; it may hold a finite number"),
            ("base_dir = '/'", "[base_dir] is not a table; there are: " + ", ".join(reading.table_names())),
        ],
    )
    def test_one_key(self, text: str, message: str) -> None:
        assert error(text) == message

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                "[mode]\nkind = 'sync'\nclients_per_round = 3\nmin_updates = 4",
                "mode.min_updates is 4; it may be at most mode.clients_per_round, which is 3",
            ),
            (
                "[mode]\nkind = 'sync'\nover_selection = 1.3",
                "mode.over_selection is 1.3; it needs mode.clients_per_round, "
                "which is 0 and asks everybody already",
            ),
            (
                "[network]\nlease_s = 20",
                "network.lease_s is 20; it must be more than twice network.beat_s, which is 10",
            ),
            (
                "[network]\ncredit_budget = '512 KiB'",
                "network.credit_budget is 524288 bytes; it must be at least network.block, which is 1048576",
            ),
            (
                "[stop]\nmetric = 'loss'",
                "stop.target is missing; stop.metric and stop.target go together",
            ),
            (
                "[stop]\ntarget = 0.5",
                "stop.metric is missing; stop.metric and stop.target go together",
            ),
            (
                "[optimizer]\nkind = 'fedasync'",
                'mode.buffer is 10; with optimizer.kind "fedasync" it must be 1: each update makes a version',
            ),
            (
                "[optimizer]\nkind = 'fedasync'\n[mode]\nbuffer = 1\n[model]\ndownlink = 'f16'",
                'model.downlink is "f16"; with optimizer.kind "fedasync" it must be "f32": it would mix in what a '
                "model lost on its way to a worker",
            ),
            (
                "[optimizer]\nkind = 'fedasync'\n[mode]\nkind = 'sync'",
                'mode.kind is "sync"; with optimizer.kind "fedasync" it must be "async": it mixes in one update after '
                "the other, and a round is of many",
            ),
            (
                "[optimizer]\nkind = 'fedasync'\n[mode]\nbuffer = 1\n[aggregate]\n"
                "rule = {kind = 'norm_bound', max_norm = 1.0}",
                'aggregate.rule is "norm_bound"; with optimizer.kind "fedasync" it must be "mean": one update has no '
                "others to be compared with",
            ),
            (
                "[federation]\nbind = 'tcp://0.0.0.0:5560'",
                'federation.bind is "tcp://0.0.0.0:5560", which others can reach; set security.keys, so that '
                "only workers that you allow can join, or security.insecure = true (or --insecure) to let anybody "
                "join and read",
            ),
            (
                "[network]\nhttp = '[::]:9560'",
                'network.http is "[::]:9560", which others can reach; bind to loopback and let a proxy or an '
                "agent on this machine pass it on, or set network.http_public = true to let anybody read it",
            ),
        ],
    )
    def test_two_keys_that_disagree(self, text: str, message: str) -> None:
        assert error(text) == message

    @pytest.mark.parametrize(
        "text",
        ["http = ''", "http = '127.0.0.1:*'", "http = '[::1]:9560'", "http = 'a:1'\nhttp_public = true"],
    )
    def test_where_http_may_listen(self, text: str) -> None:
        """Nowhere, on loopback, or anywhere when an operator says so."""
        assert config.parse(f"[network]\n{text}").network.http == text.split("'")[1]

    def test_a_file_is_named(self, tmp_path: Path) -> None:
        """Missing, broken or wrong: the file stands in front."""
        path = tmp_path / "federation.toml"
        with pytest.raises(ConfigError, match=r'federation.toml: no such file; "fedmq init" writes one$'):
            config.load(path)
        path.write_text("[mode\n")
        with pytest.raises(ConfigError, match=r"federation.toml: not valid TOML: .*line 1"):
            config.load(path)
        path.write_text("[mode]\nbuffer = 0")
        with pytest.raises(ConfigError, match=r"federation.toml: mode.buffer is 0"):
            config.load(path)
        path.write_bytes(b"\xff")
        with pytest.raises(ConfigError, match=r"federation.toml: cannot be read"):
            config.load(path)

    def test_a_task_fits_a_header(self) -> None:
        """[task] rides with every TASK."""
        assert "[task] takes" in error({"task": {"text": "x" * reading.TASK_MAX}})

    @pytest.mark.parametrize(
        "value", [2**70, "\ud800", [0] * 1025, functools.reduce(lambda t, _: [t], range(16), 1)]
    )
    def test_a_task_can_be_carried(self, value: object) -> None:
        """Integers have 64 bits, text is Unicode, arrays have 1,024 entries and stand 16 deep at most."""
        assert error({"task": {"a": value}}).startswith("[task] holds what no message can carry: ")

    def test_a_check_cannot_be_passed_by(self) -> None:
        """Keys that disagree are refused however a Config is made."""
        with pytest.raises(ConfigError, match="lease_s"):
            msgspec.structs.replace(config.parse(""), network=config.Network(beat_s=30))

    def test_the_exit_code_is_2(self) -> None:
        """As for wrong options."""
        assert ConfigError.exit_code == 2

    @given(
        table=st.sampled_from([name for name in reading.table_names() if name != "task"]),
        key=st.sampled_from(
            ["name", "bind", "initial", "buffer", "lr", "kind", "steps", "block", "keys", "target"]
        ),
        value=st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
            max_leaves=3,
        ),
    )
    def test_whatever_a_key_holds(self, table: str, key: str, value: object) -> None:
        """The answer is a config, or one line that names the table."""
        refused = ""
        try:
            config.parse({table: {key: value}})
        except ConfigError as caught:
            refused = str(caught)
        assert not refused or table in refused
        assert "\n" not in refused


class TestPrivacy:
    def test_defaults_follow(self) -> None:
        """Weights are uniform and workers are not asked for metrics unless the file says otherwise."""
        found = config.parse(PRIVATE)
        assert found.privacy is not None
        assert (found.privacy.unit, found.privacy.noise_multiplier) == ("record", None)
        assert found.aggregate.weight == "uniform"
        assert found.evaluate.fraction == 0

    @pytest.mark.parametrize(
        ("table", "key", "value"),
        [
            ("mode", "kind", "async"),
            ("mode", "clients_per_round", 3),
            ("mode", "min_updates", 1),
            ("aggregate", "weight", "examples"),
            ("aggregate", "encoding", "i8"),
            ("storage", "durability", "os"),
            ("evaluate", "fraction", 0.5),
            ("stop", "versions", 301),
        ],
    )
    def test_what_the_accountant_assumes_is_enforced(self, table: str, key: str, value: object) -> None:
        """A file that contradicts it is refused by the name of the key."""
        changed = PRIVATE | {table: {**PRIVATE.get(table, {}), key: value}}
        assert error(changed).startswith(f"{table}.{key} is ")


class TestDownlink:
    @pytest.mark.parametrize("encoding", ["f16", "bf16"])
    def test_what_workers_train_from_may_not_change(self, encoding: str) -> None:
        """The versions before and after would not be one run; a folder of before there was a choice is one of f32."""
        before, after = (config.parse({"model": {"downlink": e}}) for e in ("f32", encoding))
        allowed, refused = config.changes(before, after)
        assert not allowed
        assert [str(change) for change in refused] == [f'model.downlink: "f32" -> "{encoding}"']
        assert config.fingerprint(before) == config.fingerprint(config.parse("")) != config.fingerprint(after)

    def test_an_encoding_of_updates_is_none_of_models(self) -> None:
        """Blocks of scaled steps, or the largest values alone, are no model to train from."""
        assert error({"model": {"downlink": "i8"}}).startswith("model.downlink")


class TestFedAsync:
    def test_its_bases_are_within_reach(self) -> None:
        """As long as an update may have missed versions, and not at all for other optimizers."""
        mixing = config.parse("[mode]\nbuffer = 1\nmax_staleness = 7\n[optimizer]\nkind = 'fedasync'")
        assert mixing.optimizer == config.FedAsync(alpha=0.6)
        assert (mixing.reach, config.parse("").reach) == (7, 0)

    def test_privacy_wants_more_than_one_update(self) -> None:
        """Whatever the mode: the mechanism's noise is that of a sum over many."""
        with pytest.raises(
            ConfigError, match=r"optimizer\.kind is \"fedasync\"; with \[privacy\] it must be another"
        ):
            config.Config(
                mode=config.AsyncMode(buffer=1),
                optimizer=config.FedAsync(),
                privacy=config.Privacy(
                    epsilon=3,
                    delta=1e-5,
                    max_grad_norm=1,
                    sampling_rate=0.1,
                    steps=10,
                    divisor=10,
                    max_batch=10,
                ),
            )


WORKERS: dict[str, Any] = {
    "model": {"initial": "my_app:App"},
    "mode": {"kind": "async", "buffer": 20},
    "privacy": {"unit": "worker", "epsilon": 8, "delta": 1e-5, "clip_norm": 1, "max_participations": 10},
}


class TestWorkerPrivacy:
    def test_defaults_follow(self) -> None:
        """One update of a worker in a buffer, equal weights, no metrics: without a word in the file."""
        found = config.parse(WORKERS)
        assert isinstance(found.privacy, config.WorkerPrivacy)
        assert isinstance(found.mode, config.AsyncMode)
        assert found.mode.one_per_worker
        assert (found.aggregate.weight, found.evaluate.fraction) == ("uniform", 0)
        assert config.parse(config.to_toml(found), base_dir=found.base_dir) == found

    @pytest.mark.parametrize(
        ("table", "key", "value"),
        [
            ("model", "initial", "first-worker"),
            ("mode", "one_per_worker", False),
            ("aggregate", "rule", "median"),
            ("aggregate", "weight", "examples"),
            ("storage", "durability", "os"),
            ("evaluate", "fraction", 0.5),
        ],
    )
    def test_what_the_ledger_assumes_is_enforced(self, table: str, key: str, value: object) -> None:
        """A file that contradicts it is refused by the name of the key, with the reason."""
        said = error(WORKERS | {table: {**WORKERS.get(table, {}), key: value}})
        assert said.startswith(f"{table}.{key} is ")
        assert "with [privacy]" in said

    @pytest.mark.parametrize("encoding", ["f32", "f16", "bf16", "i8"])
    def test_any_encoding_is_clipped(self, encoding: str) -> None:
        """What the broker decodes is what it clips, so that how a worker rounds is its own business."""
        assert config.parse(WORKERS | {"aggregate": {"encoding": encoding}})

    def test_correlated_noise_is_a_table_of_its_own(self) -> None:
        """With what the claim is about; it reads back as it was written."""
        table = {"versions": 100, "min_separation": 4}
        given = WORKERS | {"privacy": {**WORKERS["privacy"], "correlated": table}}
        found = config.parse(given)
        assert isinstance(found.privacy, config.WorkerPrivacy)
        assert found.privacy.correlated == config.Correlated(versions=100, min_separation=4)
        assert config.parse(config.to_toml(found), base_dir=found.base_dir) == found
        wider = {"privacy": {**WORKERS["privacy"], "correlated": {**table, "bandwidth": 8}}}
        assert [str(change) for change in restart.changes(found, config.parse(given | wider))[1]] == [
            'privacy.correlated: {"versions": 100, "min_separation": 4} -> '
            '{"versions": 100, "min_separation": 4, "bandwidth": 8}'
        ]

    @pytest.mark.parametrize(
        ("table", "others", "said"),
        [
            (3, {}, "privacy.correlated is 3; it may hold a table, written [privacy.correlated]"),
            (
                {"versions": 9},
                {},
                "privacy.correlated.min_separation is missing; [privacy.correlated] needs it",
            ),
            ({"versions": 9, "min_separation": 0}, {}, "privacy.correlated.min_separation is 0; it may hold"),
            (
                {"versions": 9, "min_separation": 1},
                {"stop": {"versions": 10}},
                "stop.versions is 10; it may be",
            ),
        ],
    )
    def test_what_correlated_noise_goes_with(self, table: object, others: dict[str, Any], said: str) -> None:
        """Refused by the name of the key, with the reason."""
        privacy = {**WORKERS["privacy"], "correlated": table}
        assert error(WORKERS | {"privacy": privacy} | others).startswith(said)

    def test_correlated_noise_wants_a_constant_clip_norm(self) -> None:
        """What a version takes back must be as large as what was added."""
        both = {"correlated": {"versions": 9, "min_separation": 1}, "adaptive_clip": {}}
        said = error(WORKERS | {"privacy": {**WORKERS["privacy"], **both}})
        assert said.startswith("[privacy.correlated] and a clip norm that adapts exclude each other")

    def test_correlated_noise_is_not_of_rounds(self) -> None:
        """A coin decides there, and nobody can be kept from two rounds in a row without telling whom it took."""
        said = error(SAMPLED | {"privacy": {**SAMPLED["privacy"], "correlated": {}}})
        assert said.startswith('privacy.correlated belongs to mode.kind = "async", but mode.kind is "sync"')

    def test_the_units_have_keys_of_their_own(self) -> None:
        """A key of the other unit is no key, and an unknown unit is named with those that there are."""
        assert error(WORKERS | {"privacy": {**WORKERS["privacy"], "max_batch": 3}}).startswith(
            "privacy.max_batch is not"
        )
        said = error(WORKERS | {"privacy": {"unit": "person"}})
        assert said == 'privacy.unit is "person"; it may hold "record" or "worker"'


def adaptive(clip: object, **privacy: object) -> dict[str, Any]:
    return WORKERS | {"privacy": {**WORKERS["privacy"], "adaptive_clip": clip, **privacy}}


class TestAdaptiveClip:
    """``[privacy.adaptive_clip]``: the clip norm moves."""

    def test_an_empty_table_is_the_papers(self) -> None:
        """γ = 0.5, η = 0.2, σ_b = K/20; it is written back as it is read, and made in Python as well."""
        found = config.parse(adaptive({}))
        assert isinstance(found.privacy, config.WorkerPrivacy)
        clip = found.privacy.adaptive_clip
        assert clip == config.AdaptiveClip(quantile=0.5, rate=0.2)
        assert clip.deviation(20.0) == 1.0
        for table in ({}, {"quantile": 0.9, "rate": 1, "count_noise": 3.5}):
            found = config.parse(adaptive(table))
            assert config.parse(config.to_toml(found), base_dir=found.base_dir) == found
        assert config.AdaptiveClip(count_noise=3.5).deviation(20.0) == 3.5

    @pytest.mark.parametrize(
        ("clip", "said"),
        [
            (True, "privacy.adaptive_clip is true; it may hold a table, written [privacy.adaptive_clip]"),
            (
                {"quantil": 0.5},
                "privacy.adaptive_clip.quantil is not a key; did you mean privacy.adaptive_clip.quantile?",
            ),
            (
                {"quantile": 1.5},
                "privacy.adaptive_clip.quantile is 1.5; it may hold a finite number ≥ 0 and ≤ 1",
            ),
            (
                {"count_noise": 0},
                "privacy.adaptive_clip.count_noise is 0; it may hold a finite number > 0 and ≤ 1e+06",
            ),
        ],
    )
    def test_what_is_wrong_is_named(self, clip: object, said: str) -> None:
        assert error(adaptive(clip)) == said

    def test_a_count_that_costs_the_whole_budget(self) -> None:
        """z ≥ 2 σ_b: as soon as the file says z."""
        said = error(adaptive({}, noise_multiplier=2.0))
        assert said.startswith(
            "privacy.adaptive_clip.count_noise is 1, a 20th of the divisor 20; with the noise "
        )
        assert config.parse(adaptive({}, noise_multiplier=1.99))
        assert config.parse(adaptive({"count_noise": 1.01}, noise_multiplier=2.0))

    def test_where_it_may_begin(self) -> None:
        """Within what it never leaves."""
        assert error(adaptive({}, clip_norm=1e13)).startswith(
            "privacy.clip_norm is 1e+13; with [privacy.adaptive_clip]"
        )
        assert config.parse(WORKERS | {"privacy": {**WORKERS["privacy"], "clip_norm": 1e13}})

    def test_records_are_clipped_by_their_workers(self) -> None:
        """The broker sees sums of theirs, and counts none."""
        said = error(PRIVATE | {"privacy": {**PRIVATE["privacy"], "adaptive_clip": {}}})
        assert said.startswith("privacy.adaptive_clip is not a key")

    def test_a_restart_may_not_change_it(self) -> None:
        """Neither a number of it, nor whether it is there."""
        constant, moving, faster = map(config.parse, (WORKERS, adaptive({}), adaptive({"rate": 0.3})))
        for old, new in ((constant, moving), (moving, constant), (moving, faster)):
            allowed, refused = config.changes(old, new)
            assert (allowed, [change.key for change in refused]) == ((), ["privacy.adaptive_clip"])
            assert config.fingerprint(old) != config.fingerprint(new)


SAMPLED: dict[str, Any] = {
    "model": {"initial": "my_app:App"},
    "mode": {"kind": "sync"},
    "privacy": {
        "unit": "worker", "epsilon": 8, "delta": 1e-5, "clip_norm": 1,
        "sampling_rate": 0.05, "steps": 200, "divisor": 10,
    },
}  # fmt: skip


def sampled_clip(clip: object, **privacy: object) -> dict[str, Any]:
    return SAMPLED | {"privacy": {**SAMPLED["privacy"], "adaptive_clip": clip, **privacy}}


class TestSampledPrivacy:
    """``[privacy] unit = "worker"`` in rounds: a secret coin decides who is asked, and nothing else may."""

    def test_defaults_follow(self) -> None:
        """Equal weights, no metrics, and a round is over when its sample has answered."""
        found = config.parse(SAMPLED)
        assert isinstance(found.privacy, config.SampledPrivacy)
        assert (found.privacy.wait_for, found.privacy.noise_multiplier) == ("sample", None)
        assert (found.aggregate.weight, found.evaluate.fraction) == ("uniform", 0)
        assert found.samples_workers
        assert not config.parse(WORKERS).samples_workers
        assert config.parse(config.to_toml(found), base_dir=found.base_dir) == found

    @pytest.mark.parametrize(
        ("table", "key", "value"),
        [
            ("model", "initial", "first-worker"),
            ("mode", "clients_per_round", 3),
            ("mode", "over_selection", 1.3),
            ("mode", "min_updates", 1),
            ("mode", "deadline_s", 0),
            ("aggregate", "rule", "median"),
            ("aggregate", "weight", "examples"),
            ("storage", "durability", "os"),
            ("evaluate", "fraction", 0.5),
            ("stop", "versions", 201),
        ],
    )
    def test_what_the_accountant_assumes_is_enforced(self, table: str, key: str, value: object) -> None:
        """A file that contradicts it is refused by the name of the key, with the reason."""
        said = error(SAMPLED | {table: {**SAMPLED.get(table, {}), key: value}})
        assert said.startswith(f"{table}.{key} is ")
        assert ("with [privacy]" in said) == (table != "stop")
        assert ": " in said

    @pytest.mark.parametrize("key", ["sampling_rate", "steps", "divisor", "wait_for"])
    def test_arrivals_are_no_sample(self, key: str) -> None:
        """A key of rounds in an asynchronous file is told what it belongs to, and why."""
        said = error(WORKERS | {"privacy": {**WORKERS["privacy"], key: 1}})
        assert said.startswith(f'privacy.{key} belongs to mode.kind = "sync", but mode.kind is "async"')
        assert "no sample" in said

    def test_no_worker_has_a_cap_in_rounds(self) -> None:
        """Each round costs all of them the same."""
        said = error(SAMPLED | {"privacy": {**SAMPLED["privacy"], "max_participations": 10}})
        assert said.startswith('privacy.max_participations belongs to mode.kind = "async"')
        assert "privacy.steps bounds it" in said
        assert error(WORKERS | {"mode": {"kind": "sync"}}).startswith("privacy.max_participations belongs to")

    def test_a_table_without_its_mode_cannot_be_made(self) -> None:
        """Whoever makes the config."""
        coin, capped = config.parse(SAMPLED), config.parse(WORKERS)
        for wrong in (
            lambda: msgspec.structs.replace(coin, mode=capped.mode),
            lambda: msgspec.structs.replace(capped, mode=coin.mode),
        ):
            with pytest.raises(ConfigError, match=r"mode\.kind is"):
                config.Config(**msgspec.structs.asdict(wrong()))

    def test_a_clip_norm_may_follow_the_updates(self) -> None:
        """By the table that arrivals have, with D in the place of K; and z below twice its noise."""
        found = config.parse(sampled_clip({"quantile": 0.9}))
        assert isinstance(found.privacy, config.SampledPrivacy)
        assert found.privacy.adaptive_clip == config.AdaptiveClip(quantile=0.9)
        assert config.parse(config.to_toml(found), base_dir=found.base_dir) == found
        assert config.parse(sampled_clip({}, noise_multiplier=0.99))
        said = error(sampled_clip({}, noise_multiplier=1.0))
        assert said.startswith(
            "privacy.adaptive_clip.count_noise is 0.5, a 20th of the divisor 10; with the noise"
        )
        assert error(sampled_clip({}, clip_norm=1e13)).startswith(
            "privacy.clip_norm is 1e+13; with [privacy.a"
        )
        refused = config.changes(config.parse(SAMPLED), found)[1]
        assert [change.key for change in refused] == ["privacy.adaptive_clip"]

    @pytest.mark.parametrize("encoding", ["f16", "i8", "topk"])
    def test_any_encoding_is_clipped(self, encoding: str) -> None:
        """What the broker decodes is what it clips."""
        assert config.parse(SAMPLED | {"aggregate": {"encoding": encoding}})


class TestWriting:
    @pytest.mark.parametrize("mode", ["async", "sync"])
    def test_the_template_is_the_defaults(self, mode: str) -> None:
        """What `fedmq init` writes changes nothing."""
        found = config.parse(config.template(name="wards", mode=mode))
        assert found == config.parse({"federation": {"name": "wards"}, "mode": {"kind": mode}})

    @pytest.mark.parametrize("mode", ["async", "sync"])
    def test_the_template_shows_every_key(self, mode: str) -> None:
        """As a setting or as a comment, those of every kind and of [privacy] included."""
        text = config.template(mode=mode)
        for table in reading.table_names():
            assert f"[{table}]" in text
            for struct in reading.structs_of(table):
                for key in reading.keys(struct):
                    assert f"{key} =" in text, f"{table}.{key}"
        assert max(map(len, text.splitlines())) <= 120

    def test_a_commented_privacy_table_works(self) -> None:
        """Taking the comment signs away makes a config that is accepted."""
        lines = config.template(mode="sync").splitlines()
        start = lines.index("# [privacy]")
        table = [line.removeprefix("# ") for line in lines[start : lines.index("", start)]]
        assert config.parse("[mode]\nkind = 'sync'\n" + "\n".join(table)).privacy is not None

    def test_round_trip(self, tmp_path: Path) -> None:
        """What was written reads back as it was, and moves with its folder."""
        source = PRIVATE | {
            "federation": {"name": "wards", "seed": 7},
            "model": {"initial": "m.safetensors", "max_bytes": "1 GiB"},
            "optimizer": {"kind": "adam", "eps": 1e-20},
            "task": {"a b": [1, 2.5, {"c": 'q"\\\n'}], "lr": 1e22, "on": True},
            "stop": {"metric": "accuracy", "target": 0.9},
        }
        found = config.parse(source, base_dir=tmp_path)
        text = config.to_toml(found)
        assert config.parse(text, base_dir=tmp_path) == found
        assert str(tmp_path) not in text

    @given(
        st.dictionaries(
            st.text(),
            st.text()
            | st.booleans()
            | st.integers(-(2**63), 2**63 - 1)
            | st.floats(allow_nan=False, allow_infinity=False),
            max_size=5,
        )
    )
    def test_any_task_round_trips(self, task: dict[str, Any]) -> None:
        """Keys and text may hold whatever TOML can."""
        back = config.parse(config.to_toml(config.parse({"task": task}))).task
        assert back == task
        assert [type(value) for value in back.values()] == [type(value) for value in task.values()]


class TestChanges:
    OLD = config.parse({"task": {"lr": 0.1}}, base_dir="/a")

    @pytest.mark.parametrize(
        ("table", "key", "value"),
        [
            ("federation", "bind", "tcp://127.0.0.1:9"),
            ("model", "max_bytes", 10**9),
            ("mode", "concurrency", 5),
            ("aggregate", "max_update_norm", 10.0),
            ("evaluate", "every", 5),
            ("stop", "versions", 5),
            ("storage", "durability", "os"),
            ("network", "beat_s", 5.0),
            ("security", "insecure", True),
            ("task", "lr", 0.2),
        ],
    )
    def test_when_where_and_how_much_may_change(self, table: str, key: str, value: object) -> None:
        """A restart accepts it, and the fingerprint stays."""
        new = config.parse({"task": {"lr": 0.1}, table: {key: value}}, base_dir="/a")
        allowed, refused = config.changes(self.OLD, new)
        assert [change.key for change in allowed] == [f"{table}.{key}"]
        assert refused == ()
        assert config.fingerprint(new) == config.fingerprint(self.OLD)

    @pytest.mark.parametrize(
        ("table", "key", "value"),
        [
            ("federation", "name", "other"),
            ("federation", "seed", 1),
            ("model", "initial", "app:make"),
            ("mode", "buffer", 5),
            ("mode", "max_staleness", 30),
            ("mode", "exponent", 1.0),
            ("aggregate", "weight", "uniform"),
            ("aggregate", "encoding", "i8"),
            ("optimizer", "lr", 0.5),
        ],
    )
    def test_what_is_computed_may_not(self, table: str, key: str, value: object) -> None:
        """It is refused by name, with both values."""
        new = config.parse({"task": {"lr": 0.1}, table: {key: value}}, base_dir="/a")
        allowed, refused = config.changes(self.OLD, new)
        assert allowed == ()
        assert [change.key for change in refused] == [f"{table}.{key}"]
        assert config.fingerprint(new) != config.fingerprint(self.OLD)

    def test_another_mode_or_privacy_is_refused(self) -> None:
        """Each key that came or went is listed; so is [task], which the clipped sums are computed from."""
        before = config.parse({"mode": {"kind": "sync"}})
        after = config.parse(PRIVATE | {"task": {"lr": 0.2}})
        refused = {change.key: str(change) for change in config.changes(before, after)[1]}
        assert refused["privacy.epsilon"] == "privacy.epsilon: not there -> 3.0"
        assert "task.lr" in refused
        kinds = config.changes(self.OLD, before)[1]
        assert "mode.kind" in {change.key for change in kinds}

    def test_workers_whose_parts_are_counted_keep_their_names(self) -> None:
        """A name with keys is a key: each would come back with a whole budget. Another folder of keys is none."""
        named, keyed, moved = (
            config.parse(WORKERS | {"security": {"keys": k}}) for k in ("", "keys", "others")
        )
        assert [change.key for change in config.changes(named, keyed)[1]] == ["security.keys"]
        assert [change.key for change in config.changes(keyed, named)[1]] == ["security.keys"]
        assert config.fingerprint(named) != config.fingerprint(keyed) == config.fingerprint(moved)
        assert config.changes(keyed, moved)[1] == ()

    def test_a_moved_folder_is_no_change(self) -> None:
        """State and model files move with their federation.toml."""
        source = {"model": {"initial": "m.safetensors"}, "task": {"lr": 0.1}}
        here, there = config.parse(source, base_dir="/a"), config.parse(source, base_dir="/b")
        assert config.changes(here, there) == ((), ())
        assert config.fingerprint(here) == config.fingerprint(there)


class TestStop:
    @pytest.mark.parametrize(
        ("metric", "value", "reached"),
        [
            ("accuracy", 0.9, True),
            ("accuracy", 0.89, False),
            ("val_loss", 0.89, True),
            ("val_loss", 0.91, False),
        ],
    )
    def test_a_target_is_reached_from_its_side(self, metric: str, value: float, reached: bool) -> None:
        """Losses and errors fall, everything else rises."""
        assert config.Stop(metric=metric, target=0.9).reached(value) is reached

    def test_nan_reaches_nothing(self) -> None:
        """A model that has diverged is not done."""
        assert not config.Stop(metric="loss", target=0.9).reached(math.nan)


class TestDocs:
    """docs/configuration.md says of every key what the code says."""

    TEXT = (Path(__file__).parents[3] / "docs" / "configuration.md").read_text(encoding="utf-8")

    def documented(self) -> set[tuple[str, str, str, str, str]]:
        """(table, kind, key, default, may hold) of every row."""
        rows = set()
        table = kind = ""
        for line in self.TEXT.splitlines():
            if line.startswith("## "):
                table, kind = line.removeprefix("## ").strip("[]"), ""
            elif found := re.match(r'`kind = "(\w+)"`', line):
                kind = found[1]
            elif line.startswith("| `"):
                key, default, holds = (cell.strip() for cell in line.split("|")[1:4])
                rows.add((table, kind, key.strip("`"), default.strip("`"), holds))
        return rows

    def test_every_key_with_its_default_and_range(self) -> None:
        """Neither more nor less."""
        expected = set()
        for table in reading.table_names():
            for struct in reading.structs_of(table):
                for key in reading.keys(struct).values():
                    line = next(
                        row
                        for row in writing.key_lines(struct)
                        if row.startswith((f"{key.name} =", f"# {key.name} ="))
                    )
                    default = (
                        "" if line.startswith("#") else line.partition(" = ")[2].partition("  #")[0].strip()
                    )
                    expected.add(
                        (table, getattr(struct, "kind", ""), key.name, default, reading.may_hold(key))
                    )
        assert self.documented() == expected

    def test_what_a_restart_may_change(self) -> None:
        """The last section lists what `changes` allows."""
        section = self.TEXT.split("## What a restart may change")[1]
        named = set(re.findall(r"`(?:\w+\.)?(\w+)`", section)) | set(re.findall(r"`\[(\w+)\]`", section))
        allowed = {key.split(".")[1] for key in restart.FREE_KEYS} | restart.FREE_TABLES | {"task"}
        assert named == allowed


@pytest.mark.parametrize("port", ["65536", "99999", "123456", "-1", "", "x"])
def test_a_port_beyond_the_last_one_is_refused(port: str) -> None:
    """libzmq would listen at another one, and nobody would find it."""
    with pytest.raises(ConfigError, match=r"federation\.bind.*65535"):
        config.parse({"federation": {"bind": f"tcp://127.0.0.1:{port}"}})
    with pytest.raises(ConfigError, match=r"network\.http.*65535"):
        config.parse({"network": {"http": f"127.0.0.1:{port}"}})


@pytest.mark.parametrize("port", ["0", "80", "5560", "9999", "10000", "65535", "*"])
def test_every_port_can_be_named(port: str) -> None:
    assert config.parse({"federation": {"bind": f"tcp://127.0.0.1:{port}"}}).federation.bind.endswith(port)


class TestRules:
    """``[aggregate] rule``: a name, a table, or the user's own; and what the rest of the file must hold for it."""

    def test_a_rule_is_a_name_or_a_table(self) -> None:
        """A name has the defaults; both forms are written back as they are read."""
        for text, rule in (
            ('"mean"', config.Mean()),
            ('"trimmed_mean"', config.TrimmedMean(trim=0.2)),
            ('{kind = "median"}', config.Median()),
            ('{kind = "krum", byzantine = 2}', config.Krum(byzantine=2)),
            ('"my_rules:Vote"', config.UserRule("my_rules:Vote")),
        ):
            found = config.parse(f"[aggregate]\nrule = {text}")
            assert found.aggregate.rule == rule
            assert config.parse(config.to_toml(found), base_dir=found.base_dir) == found

    def test_the_mean_is_written_as_it_always_was(self) -> None:
        """A state folder of an older version holds the same line, and the same fingerprint."""
        assert 'rule = "mean"\nweight = "examples"' in config.to_toml(config.parse(""))

    @pytest.mark.parametrize(
        ("rule", "said"),
        [
            ('"meen"', 'aggregate.rule is "meen"; it may hold "mean", "median", '),
            ("3", "aggregate.rule is 3; it may hold "),
            ('"krum"', "aggregate.rule.byzantine is missing; "),
            ('{kind = "krum", byzantine = 0}', "aggregate.rule.byzantine is 0; it may hold an integer ≥ 1"),
            ('{kind = "krun"}', 'aggregate.rule.kind is "krun"; it may hold "mean", '),
            ('{kind = "krum", trim = 0.1}', 'aggregate.rule.trim belongs to kind = "trimmed_mean"'),
            (
                '{kind = "trimmed_mean", trim = 0.5}',
                "aggregate.rule.trim is 0.5; it may hold a finite number > 0",
            ),
            ('{kind = "norm_bound", max_norm = inf}', "aggregate.rule.max_norm is inf; it may hold"),
        ],
    )
    def test_what_is_no_rule(self, rule: str, said: str) -> None:
        """The key is named, with what it holds and what it may hold."""
        assert error(f"[aggregate]\nrule = {rule}").startswith(said)

    @pytest.mark.parametrize(
        ("rule", "minimum", "why"),
        [
            ('"median"', 3, "three updates"),
            ('"geometric_median"', 3, "three updates"),
            ('{kind = "trimmed_mean", trim = 0.15}', 7, "1 / trim"),
            ('{kind = "krum", byzantine = 3}', 9, "2 x byzantine + 3"),
            ('{kind = "multi_krum", byzantine = 3, selected = 7}', 12, "selected + byzantine + 2"),
            ('{kind = "bulyan", byzantine = 2}', 11, "4 x byzantine + 3"),
        ],
    )
    @pytest.mark.parametrize(
        ("key", "others"),
        [
            ("buffer", "kind = 'async'"),
            ("min_available", "kind = 'sync'"),
            ("clients_per_round", "kind = 'sync'\nmin_available = 100"),
            ("min_updates", "kind = 'sync'\nmin_available = 100\nclients_per_round = 100"),
        ],
    )
    def test_every_buffer_has_as_many_as_its_rule_needs(
        self, rule: str, minimum: int, why: str, key: str, others: str
    ) -> None:
        """A buffer, a cohort, a quorum: what could be too small is refused, and why; one more is enough."""
        text = f"[aggregate]\nrule = {rule}\n[mode]\n{others}\n{key} = "
        said = error(text + str(minimum - 1))
        assert said.startswith(f"mode.{key} is {minimum - 1}; with aggregate.rule ")
        assert f"it must be at least {minimum}: it needs " in said
        assert why in said
        assert config.parse(text + str(minimum)).aggregate.rule != config.Mean()

    @pytest.mark.parametrize("rule", ["median", "trimmed_mean", "geometric_median"])
    def test_updates_count_the_same_and_workers_once(self, rule: str) -> None:
        """By default, where such a rule is named; the contrary is refused."""
        found = config.parse(f"[aggregate]\nrule = '{rule}'")
        assert found.aggregate.weight == "uniform"
        assert isinstance(found.mode, config.AsyncMode)
        assert found.mode.one_per_worker
        said = error(f"[aggregate]\nrule = '{rule}'\nweight = 'examples'")
        assert said.startswith('aggregate.weight is "examples"; with aggregate.rule ')
        said = error(f"[aggregate]\nrule = '{rule}'\n[mode]\none_per_worker = false")
        assert said.startswith("mode.one_per_worker is false; with aggregate.rule ")
        assert config.parse(f"[aggregate]\nrule = '{rule}'\n[mode]\nkind = 'sync'\nmin_available = 9")

    def test_a_template_with_another_rule_says_all_that_goes_with_it(self) -> None:
        """`fedmq init` writes every key: who changes the rule alone is told of both others at once."""
        said = error(writing.template().replace('rule = "mean"', 'rule = "median"', 1))
        assert said == (
            'aggregate.weight is "examples"; with aggregate.rule "median" it must be "uniform": how many examples a '
            "worker has is its own claim; and "
            'mode.one_per_worker is false; with aggregate.rule "median" it must be true: one worker could be the '
            "majority of a buffer"
        )

    @pytest.mark.parametrize("rule", ["krum", "multi_krum", "bulyan"])
    def test_rules_that_compare_all_pairs_have_a_largest_buffer(self, rule: str) -> None:
        """K² distances: 100,000 updates would be 80 GB of them."""
        text = f"[aggregate]\nrule = {{kind = '{rule}', byzantine = 1}}\n[mode]\n"
        assert error(text + "buffer = 1001") == (
            f'mode.buffer is 1001; with aggregate.rule "{rule}" it may be at most 1000: it compares every update with '
            "every other"
        )
        assert error(text + "kind = 'sync'\nmin_available = 9\nclients_per_round = 1001").startswith(
            "mode.clients_per_round is 1001; "
        )
        config.parse(text + "buffer = 1000")
        config.parse("[aggregate]\nrule = 'median'\n[mode]\nbuffer = 100000")

    def test_a_norm_bound_weighs_as_the_mean_does(self) -> None:
        """It outvotes nobody: examples count, and a worker may have several updates in a buffer."""
        found = config.parse("[aggregate]\nrule = {kind = 'norm_bound', max_norm = 1}")
        assert found.aggregate.weight == "examples"
        assert isinstance(found.mode, config.AsyncMode)
        assert not found.mode.one_per_worker

    def test_a_rule_of_the_users_sees_no_claims(self) -> None:
        """Uniform weights; whether a worker counts once is for its author to say."""
        assert config.parse("[aggregate]\nrule = 'm:r'").aggregate.weight == "uniform"
        assert error("[aggregate]\nrule = 'm:r'\nweight = 'examples'").startswith("aggregate.weight is ")
        assert config.parse("[aggregate]\nrule = 'm:r'\n[mode]\none_per_worker = false")

    @pytest.mark.parametrize("rule", ["median", {"kind": "norm_bound", "max_norm": 1.0}, "m:r"])
    def test_privacy_is_a_sum(self, rule: object) -> None:
        """The noise is calibrated to one, and a median of clipped updates is none."""
        said = error(PRIVATE | {"mode": {"kind": "sync", "min_available": 9}, "aggregate": {"rule": rule}})
        name = rule["kind"] if isinstance(rule, dict) else rule
        assert said.startswith(f'aggregate.rule is "{name}"; ')
        assert 'with [privacy] it must be "mean"' in said

    def test_a_restart_may_not_change_it(self) -> None:
        """Neither the rule nor its parameters."""
        one, two = (config.parse({"aggregate": {"rule": {"kind": "krum", "byzantine": f}}}) for f in (1, 2))
        refused = config.changes(one, two)[1]
        assert [change.key for change in refused] == ["aggregate.rule"]
        assert "aggregate.rule" in {change.key for change in config.changes(config.parse(""), one)[1]}
        assert config.fingerprint(one) != config.fingerprint(two)

    def test_every_rule_in_the_template_can_be_switched_on(self) -> None:
        """Its line without the comment sign is accepted."""
        lines = re.findall(r"^# (rule = .*)$", config.template(), re.MULTILINE)
        assert len(lines) == 8
        for line in lines:
            assert config.parse(f"[aggregate]\n{line}").aggregate.rule != config.Mean()
