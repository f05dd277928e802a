"""The cache: never back in time, never silent about what vanished."""

from __future__ import annotations

from builders import experiment, pod, trial
from trialkeeper_operator.api.experiment import Experiment
from trialkeeper_operator.api.trial import Trial
from trialkeeper_operator.state.cache import Cache

NAME = ("default", "exp-0")


def version(obj: dict[str, object], number: int, **meta: object) -> dict[str, object]:
    assert isinstance(obj["metadata"], dict)
    return {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(number), **meta}}


def test_an_older_version_never_replaces_a_newer_one() -> None:
    cache = Cache()
    assert cache.apply("Trial", version(trial(attempt=2), 9))
    assert not cache.apply("Trial", version(trial(attempt=1), 8))
    found = cache.trial(NAME)
    assert found is not None
    assert found.status.attempt == 2
    assert not cache.apply("Trial", version(trial(attempt=2), 9))
    assert cache.apply("Trial", version(trial(attempt=3), 10))


def test_a_namesake_replaces_the_old_one_and_late_news_of_that_do_not_bring_it_back() -> None:
    cache = Cache()
    cache.apply("Trial", version(trial(), 9))
    assert cache.apply("Trial", version(trial(), 10, uid="new"))
    assert not cache.apply("Trial", version(trial(), 8))
    assert cache.apply("Trial", version(trial(), 11, uid="new"))
    found = cache.trial(NAME)
    assert found is not None
    assert found.uid == "new"


def test_an_object_that_is_heard_of_after_its_namesake_was_made_does_not_displace_it() -> None:
    """The answer of a create overtakes what the watch has to tell of who had the name before."""
    cache = Cache()
    cache.apply("Trial", version(trial(), 9, uid="new"))
    assert not cache.apply("Trial", version(trial(), 3))
    cache.remove("Trial", version(trial(), 4))
    found = cache.trial(NAME)
    assert found is not None
    assert found.uid == "new"
    assert cache.apply("Trial", version(trial(), 10, uid="new"))


def test_a_late_answer_does_not_revive_a_deleted_object() -> None:
    cache = Cache()
    cache.apply("Trial", version(trial(), 9))
    cache.remove("Trial", version(trial(), 9))
    assert not cache.apply("Trial", version(trial(), 10))
    assert cache.trial(NAME) is None


def test_what_has_left_a_watch_and_is_there_is_known_again() -> None:
    """Somebody took a label away; what a read says that is older than the removal is still not believed."""
    cache = Cache()
    cache.apply("Pod", version(pod(), 9))
    cache.remove("Pod", version(pod(), 12))
    for number in (9, 11):
        assert not cache.apply("Pod", version(pod(), number), live=True)
    assert not cache.apply("Pod", version(pod(), 12))
    assert cache.apply("Pod", version(pod(), 12), live=True)
    assert cache.apply("Pod", version(pod(), 13))


def test_a_read_that_is_as_old_as_what_a_list_misses_does_not_bring_it_back() -> None:
    cache = Cache()
    cache.apply("Pod", version(pod(), 9))
    cache.prune("Pod", [], cache.uids("Pod"))
    assert not cache.apply("Pod", version(pod(), 9), live=True)
    assert cache.apply("Pod", version(pod(), 10), live=True)


def test_children_are_found_by_their_owners_uid_only() -> None:
    cache = Cache()
    cache.apply("Experiment", experiment())
    cache.apply("Trial", version(trial("exp-1", index=1, uid="b"), 2))
    cache.apply("Trial", version(trial("exp-0", uid="a"), 3))
    cache.apply("Pod", pod(uid="p"))
    owner = Experiment.from_object(experiment())
    assert [t.name for t in cache.trials_of(owner)] == ["exp-0", "exp-1"]
    stranger = Experiment.from_object(experiment(uid="another"))
    assert cache.trials_of(stranger) == []
    first = cache.trial(NAME)
    assert first is not None
    assert cache.pods_of(first) == {}
    cache.apply("Trial", version(trial(), 4))
    mine = cache.trial(NAME)
    assert mine is not None
    assert list(cache.pods_of(mine)) == ["exp-0-a1"]


def test_a_deleted_pods_last_state_is_kept_until_it_is_forgotten() -> None:
    cache = Cache()
    cache.apply("Pod", pod())
    cache.remove("Pod", pod(exit_code=3))
    assert cache.last_pod(("default", "exp-0-a1")) == pod(exit_code=3)
    cache.forget_pod(("default", "exp-0-a1"))
    assert cache.last_pod(("default", "exp-0-a1")) is None


def test_a_list_prunes_what_vanished_but_not_what_came_meanwhile() -> None:
    cache = Cache()
    cache.apply("Pod", pod(1))
    cache.apply("Pod", pod(2))
    before = cache.uids("Pod")
    cache.apply("Pod", pod(3))
    missed = cache.prune("Pod", [pod(2)], before)
    assert [p["metadata"]["name"] for p in missed] == ["exp-0-a1"]
    assert sorted(n for _, n in cache.names("Pod")) == ["exp-0-a2", "exp-0-a3"]


def test_an_object_that_does_not_fit_answers_none_and_disturbs_nobody() -> None:
    cache = Cache()
    cache.apply("Trial", version({**trial(), "spec": {"nonsense": 1}}, 5))
    cache.apply("Trial", version(trial("exp-1", uid="b"), 6))
    assert cache.trial(NAME) is None
    assert cache.trial(("default", "exp-1")) is not None


def test_a_time_that_is_none_stops_nobody() -> None:
    pod = {"name": "exp-0-a1", "uid": "u", "startTime": "yesterday"}
    found = Trial.from_object(trial(startTime="never", nextAttemptTime="9" * 40, pod=pod)).status
    epoch = "1970-01-01T00:00:00.000000Z"
    assert found.pod is not None
    assert (found.start_time, found.next_attempt_time, found.pod.start_time) == (epoch, epoch, epoch)


def test_a_trial_that_is_not_called_after_its_index_was_not_made_by_us() -> None:
    cache = Cache()
    cache.apply("Experiment", experiment())
    cache.apply("Trial", trial())
    cache.apply("Trial", trial("exp-forged", index=1_000_000, uid="forged"))
    found = cache.experiment(("default", "exp"))
    assert found is not None
    assert [t.name for t in cache.trials_of(found)] == ["exp-0"]
