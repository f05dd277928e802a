"""The snapshot's codec: small, stable, whole or refused."""

from __future__ import annotations

import json
import random
import re
import zlib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import experiment, trial
from trialkeeper_operator.api.parameters import Parameter
from trialkeeper_operator.api.times import seconds, stamp
from trialkeeper_operator.api.trial import usual_seed
from trialkeeper_operator.search.space import at
from trialkeeper_operator.state import snapshot
from trialkeeper_operator.state.snapshot import SnapshotInvalid, decode, encode


def trials(count: int) -> list[dict[str, Any]]:
    rng = random.Random(1)
    names = [f"p{i}" for i in range(4)]
    return [
        trial(
            f"exp-{i}",
            index=i,
            spec={"parameters": {"lr": rng.random(), **{n: rng.choice([16, 32, 64, 128]) for n in names}}},
            phase="Succeeded" if i % 9 else "Failed",
            attempt=1 + i % 3,
            closed=1 + i % 3,
            disruptions=i % 3,
            iteration=20,
            metrics={"loss": {"last": (x := round(rng.random(), 6)), "min": x, "max": 2.5}},
            checkpoint={
                "attempt": 1 + i % 3,
                "iteration": 20,
                "key": f"manifests/a00000{1 + i % 3}-i000000000020.json",
                "time": "t",
            },
        )
        for i in range(count)
    ]


def test_what_is_encoded_is_decoded() -> None:
    of = experiment()
    found, rows = decode(encode(of, reversed(trials(20))))
    assert (found["name"], found["uid"], found["spec"]) == ("exp", "exp-uid", of["spec"])
    assert [row["spec"]["index"] for row in rows] == list(range(20))
    for row, original in zip(rows, trials(20), strict=True):
        assert row["spec"]["parameters"] == original["spec"]["parameters"]
        assert row["status"]["metrics"] == original["status"]["metrics"]
        assert row["status"]["phase"] == original["status"]["phase"]


def test_a_snapshot_from_before_a_field_is_read() -> None:
    document = snapshot.unpack(encode(experiment(), trials(3)))
    del document["status"]["runningSeconds"]
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    _, rows = decode(packer.compress(json.dumps(document).encode()) + packer.flush())
    assert [row["status"]["attempt"] for row in rows] == [1, 2, 3]


def test_equal_input_gives_equal_bytes() -> None:
    assert encode(experiment(), trials(5)) == encode(experiment(), trials(5))


def test_ten_thousand_trials_are_below_300_kib() -> None:
    size = len(encode(experiment(), trials(10_000)))
    assert size < 300 * 1024, size


def harsh(count: int) -> list[dict[str, Any]]:
    """Trials in which nothing repeats: three continuous parameters, two metrics, and every digit that a float has."""
    rng = random.Random(2)

    def some() -> float:
        return rng.uniform(10, 4000)

    def metric() -> dict[str, float]:
        first, last = rng.random(), rng.random()
        return {"last": last, "min": min(first, last), "max": max(first, last)}

    def stamp() -> str:
        return datetime.fromtimestamp(1.79e9 + rng.randrange(10**6), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    return [
        trial(
            f"exp-{i}",
            index=i,
            spec={
                "parameters": {"lr": 10 ** rng.uniform(-5, -1), "momentum": rng.random(), "decay": rng.random()},
                "seed": rng.getrandbits(53),
            },
            phase="Succeeded",
            attempt=(attempt := rng.randint(1, 4)),
            closed=attempt,
            disruptions=attempt - 1,
            iteration=(iteration := rng.randint(1, 200)),
            trainedSeconds=some(),
            runningSeconds=some(),
            lostWork={"iterations": rng.randint(0, 5), "seconds": some(), "restartSeconds": some()},
            metrics={"loss": metric(), "accuracy": metric()},
            checkpoint={
                "attempt": attempt,
                "iteration": iteration,
                "key": f"manifests/a{attempt:06d}-i{iteration:012d}.json",
                "time": stamp(),
            },
            startTime=stamp(),
            completionTime=stamp(),
        )
        for i in range(count)
    ]


def test_ten_thousand_trials_in_which_nothing_repeats_fit_into_a_config_map() -> None:
    size = len(encode(experiment(), harsh(10_000)))
    assert size < 0.9 * snapshot.COMPRESSED_LIMIT, size


def usual(count: int) -> list[dict[str, Any]]:
    """Trials as a search makes them, fifty at a time: two continuous parameters, three choices, two metrics."""
    rng = random.Random(3)
    lr = Parameter.model_validate({"name": "lr", "float": {"min": 1e-5, "max": 0.1, "scale": "Log"}})
    momentum = Parameter.model_validate({"name": "momentum", "float": {"min": 0.8, "max": 0.99}})
    free = [1.79e9] * 50  # when a place becomes free
    rows = []
    for i in range(count):
        began = min(free)
        again = rng.random() < 0.1
        iterations = rng.choice([3, 9, 27, 81])
        trained = iterations * rng.uniform(4, 6)
        lost = rng.uniform(0, 30) if again else 0.0
        ended = began + trained + lost + rng.uniform(3, 6)
        free[free.index(began)] = ended
        loss, best, right = rng.uniform(0.05, 2), rng.uniform(0, 0.01), rng.random()
        attempt = 2 if again else 1
        rows.append(
            trial(
                f"exp-{i}",
                index=i,
                spec={
                    "parameters": {
                        "lr": at(lr, rng.random()),
                        "momentum": at(momentum, rng.random()),
                        "batch": rng.choice([16, 32, 64, 128]),
                        "layers": rng.choice([2, 3, 4]),
                        "optimizer": rng.choice(["adam", "sgd"]),
                    },
                    "seed": usual_seed(1, i),
                },
                phase="Succeeded",
                reason="Completed",
                attempt=attempt,
                closed=attempt,
                disruptions=attempt - 1,
                iteration=iterations,
                trainedSeconds=trained,
                runningSeconds=ended - began,
                lostWork={"iterations": rng.randint(0, 2), "seconds": lost, "restartSeconds": 4.2} if again else {},
                metrics={
                    "loss": {"last": loss, "min": loss - (best if i % 4 else 0), "max": 2.302585},
                    "accuracy": {"last": right, "min": 0.1, "max": right},
                },
                checkpoint={
                    "attempt": attempt,
                    "iteration": iterations,
                    "key": f"manifests/a{attempt:06d}-i{iterations:012d}.json",
                    "time": stamp(ended - rng.uniform(0.1, 1.5)),
                },
                startTime=stamp(began),
                completionTime=stamp(ended),
            )
        )
    return rows


def test_ten_thousand_trials_of_a_usual_search_are_below_300_kib() -> None:
    size = len(encode(experiment(), usual(10_000)))
    assert size < 300 * 1024, size


def test_parameters_are_exact_and_metrics_nearly_so() -> None:
    of, rows = experiment(), harsh(50)
    _, found = decode(encode(of, rows))
    (objective,) = of["spec"]["objectives"]
    assert objective["metric"] == "loss"
    for row, original in zip(found, rows, strict=True):
        assert row["spec"]["parameters"] == original["spec"]["parameters"]
        for name, digits in (("loss", 9), ("accuracy", 6)):
            assert row["status"]["metrics"][name] == pytest.approx(
                original["status"]["metrics"][name], rel=0.51 * 10 ** (1 - digits)
            )


@pytest.mark.parametrize("make", [usual, harsh, trials])
def test_a_trial_comes_back_as_it_was_to_a_tenth_of_a_second(make: Callable[[int], list[dict[str, Any]]]) -> None:
    rows = make(200)
    running = {k: v for k, v in rows[7]["status"].items() if k not in ("completionTime", "trainedSeconds")}
    rows[7], rows[8] = rows[7] | {"status": running}, rows[8] | {"status": {}}
    _, found = decode(encode(experiment(), rows))
    for row, original in zip(found, rows, strict=True):
        known = original["spec"].keys() - {"experiment", "experimentUid"}
        assert row["spec"] == {k: original["spec"][k] for k in known}
        assert row["status"].keys() == original["status"].keys() - {"history"}
        for field, value in original["status"].items():
            told = row["status"][field]
            if field in ("startTime", "completionTime"):
                assert abs(seconds(told) - seconds(value)) <= 0.06
            elif field in ("trainedSeconds", "runningSeconds"):
                assert abs(told - value) <= 0.11
            elif field == "checkpoint":
                assert {**told, "time": 0} == {**value, "time": 0}
                assert told["time"] == value["time"] or abs(seconds(told["time"]) - seconds(value["time"])) <= 0.06
            elif field not in ("metrics", "lostWork"):
                assert told == value


def test_a_metric_that_never_changed_comes_back_whole() -> None:
    one = trial(metrics={"loss": {"last": 0.5, "min": 0.5, "max": 0.5}})
    _, (row,) = decode(encode(experiment(), [one]))
    assert row["status"]["metrics"] == {"loss": {"last": 0.5, "min": 0.5, "max": 0.5}}


def test_no_trials_and_trials_that_never_began() -> None:
    assert decode(encode(experiment(), []))[1] == []
    _, rows = decode(encode(experiment(), [trial()]))
    assert rows[0]["spec"]["index"] == 0


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "cut short"),
        (b"garbage", "cannot be unpacked"),
        (encode(experiment(), trials(3))[:-9], "cut short"),
        (b"x" * (2 << 20), "more than a ConfigMap holds"),
        (zlib.compress(b"[]", wbits=31), "schemaVersion"),
        (zlib.compress(b'{"schemaVersion": 2}', wbits=31), "schemaVersion is not 1"),
        (zlib.compress(b'{"schemaVersion": 1}', wbits=31), "experiment or trials is missing"),
        (zlib.compress(bytes(80 << 20), wbits=31), "larger than 64 MiB"),
    ],
)
def test_what_is_no_snapshot_is_refused_in_one_sentence(data: bytes, words: str) -> None:
    with pytest.raises(SnapshotInvalid, match=words):
        decode(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["all", "each", "of", "in", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["spec", "status", "trials", "experiment"]), JSON)
def test_garbage_in_any_part_is_refused_or_read_and_never_crashes(part: str, value: Any) -> None:
    document = json.loads(zlib.decompress(encode(experiment(), trials(2)), wbits=31))
    document[part] = {**document[part], "phase": value} if isinstance(document[part], dict) else value
    try:
        decode(zlib.compress(json.dumps(document).encode(), wbits=31))
    except SnapshotInvalid:
        return


def test_the_config_map_has_no_owner_and_names_its_experiment() -> None:
    data = encode(experiment(), [])
    found = snapshot.config_map(experiment(), data)
    assert found["metadata"]["name"] == "exp-snapshot"
    assert "ownerReferences" not in found["metadata"]
    assert found["metadata"]["annotations"]["trialkeeper.dev/experiment-uid"] == "exp-uid"


@pytest.mark.parametrize(
    ("part", "field", "column", "words"),
    [
        ("spec", "index", {"from": 10**4000}, "spec.index is not a column"),
        ("spec", "index", {"from": -1}, "spec.index is not a column"),
        ("status", "restingSeconds", {"all": 10**400}, "a number in it is none that a trial has"),
    ],
)
def test_numbers_that_no_trial_has_are_refused(part: str, field: str, column: Any, words: str) -> None:
    document = snapshot.unpack(encode(experiment(), usual(3)))
    document[part][field] = column
    document["spec"]["seed"] = {"all": -1}
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    with pytest.raises(SnapshotInvalid, match=re.escape(words)):
        decode(packer.compress(json.dumps(document).encode()) + packer.flush())


_NUMBERS = st.integers(-3, 3) | st.sampled_from([0.5, 10**11, 1e-9]) | st.floats(0, 1e9)
_TIMES = st.none() | st.floats(0, 4e9).map(stamp)


@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "trainedSeconds": _NUMBERS,
                "runningSeconds": _NUMBERS,
                "startTime": _TIMES,
                "completionTime": _TIMES,
                "iteration": st.integers(0, 3),
                "attempt": st.integers(0, 3),
            },
        ),
        max_size=6,
    )
)
def test_whatever_a_server_keeps_comes_back(stati: list[dict[str, Any]]) -> None:
    """An API server makes whole numbers of 1.0, and clocks may be set back."""
    known = [{k: v for k, v in status.items() if v is not None} for status in stati]
    _, rows = decode(encode(experiment(), [trial(index=i, **status) for i, status in enumerate(known)]))
    for row, status in zip(rows, known, strict=True):
        assert row["status"].keys() == status.keys()
        for field, value in status.items():
            if "Time" in field:
                assert abs(seconds(row["status"][field]) - seconds(value)) <= 0.06
            else:
                assert row["status"][field] == pytest.approx(value, abs=0.21)
