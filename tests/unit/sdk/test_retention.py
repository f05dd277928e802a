"""Which checkpoints may go, and that none goes that somebody needs, whatever the interleaving."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_s3 import fake_s3
from interleaving import Actor, MemoryStore, Stepping, here, shuffled
from manifests import body, entry
from minio_server import KEYS
from stores import environment_of
from trialkeeper import contract, history, manifest, resuming, retention, saving, session
from trialkeeper import settings as trainer_settings
from trialkeeper.checkpoint import Checkpoint
from trialkeeper.environment import Environment
from trialkeeper.errors import StaleAttempt
from trialkeeper.retention import Committed, Policy, plan
from trialkeeper.store import AlreadyThere, Store
from trialkeeper.store.opening import open_at
from trialkeeper.store.s3 import S3Store
from trialkeeper.upload import messages
from trialkeeper.upload.process import Process

LOSS = Policy(2, "loss", "min")


def committed(*scores: Any, attempt: int = 1, first: int = 1) -> list[Committed]:
    """Checkpoints of one attempt with these losses, an iteration apart; None has no loss."""
    return [
        Committed(
            attempt, first + i, {} if score is None else {"loss": score}, "periodic", f"data/{attempt}-{first + i}"
        )
        for i, score in enumerate(scores)
    ]


def deleted(found: list[Committed], policy: Policy, **more: Any) -> list[int]:
    """The iterations that go, if all are of one attempt and visible."""
    visible = sorted((c.place for c in found), key=lambda place: -place[1])
    given = {"newest": 1, "base": None, **more}
    return [iteration for _, iteration in plan(found, visible, policy, **given)]


@pytest.mark.parametrize(
    ("scores", "policy", "gone"),
    [
        ([5.0, 4.0, 3.0, 2.0, 1.0], Policy(None, "loss", "min"), []),
        ([5.0, 4.0, 3.0, 2.0, 1.0], Policy(0, "loss", "min"), [1, 2, 3]),
        ([1.0, 9.0, 2.0, 8.0, 7.0], LOSS, [2]),
        ([1.0, 9.0, 2.0, 8.0, 7.0], Policy(2, "loss", "max"), [1, 3]),
        ([1.0, 9.0, 2.0, 8.0, 7.0], Policy(1, "loss", "min"), [2, 3]),
        (["NaN", "Infinity", 3.0, None, 8.0, 7.0], LOSS, [1, 2, 4, 5][:3]),
        ([None, "NaN", 3.0, 8.0, 7.0], Policy(3, "loss", "min"), [1, 2]),
        ([2.0, 2.0, 2.0, 2.0, 2.0], Policy(3, "loss", "min"), [1, 2]),
        ([1.0, 2.0, 3.0, 4.0, 5.0], Policy(3), [1, 2]),
        ([1.0, 2.0, 3.0, 4.0, 5.0], Policy(1, "training_iteration", "min"), [2, 3]),
        ([1.0], Policy(0), []),
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], Policy(0, "loss", "min", held=(2, 3, 99)), [1, 4]),
    ],
)
def test_the_best_and_the_newest_two_stay(scores: list[Any], policy: Policy, gone: list[int]) -> None:
    assert deleted(committed(*scores), policy) == gone


def test_what_is_pinned_begun_from_or_called_the_best_stays() -> None:
    found = committed(9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0)
    found[2] = replace(found[2], reason="best")
    found[3] = replace(found[3], reason="best")
    assert deleted(found, Policy(0)) == [1, 2, 3, 5]
    assert deleted(found, Policy(0), base=(1, 1), pinned={(1, 2), (9, 9)}) == [3, 5]


def test_what_no_branch_sees_goes_once_the_newest_attempt_has_two_of_its_own() -> None:
    old, zombies = committed(9.0, 8.0), committed(1.0, 0.5, first=3)
    for own, gone in ((1, []), (2, [(1, 3), (1, 4)])):
        new = committed(*([7.0] * own), attempt=2, first=3)
        visible = [c.place for c in reversed([*old, *new])]
        found = [*old, *zombies, *new]
        assert plan(found, visible, Policy(9), newest=2, base=(1, 2)) == gone
        assert plan(found, visible, Policy(), newest=2, base=(1, 2)) == [], "nobody has asked for less"
    assert plan(found, visible, Policy(5, "loss", "min"), newest=2, base=(1, 2)) == gone


def test_what_cannot_be_read_counts_for_nothing() -> None:
    found = committed(9.0, 8.0, 7.0, 6.0)
    found[3] = Committed(1, 4, whole=False)
    assert deleted(found, Policy(0)) == [1, 4]
    assert deleted(found[2:], Policy(0)) == [], "while there are no two that can be read"


def test_what_was_doomed_goes_also_if_more_are_kept_now() -> None:
    found = committed(1.0, 2.0, 3.0, 4.0)
    assert deleted(found, Policy(), doomed={(1, 1), (1, 4)}) == [1]
    assert deleted(found, Policy(9, "loss", "min"), doomed={(1, 1), (1, 4)}) == [1]


@pytest.mark.parametrize(
    ("given", "policy"),
    [
        ({}, Policy(None, None, "min")),
        ({"objectives": [{"metric": "a/b", "direction": "Maximize"}]}, Policy(None, "a/b", "max")),
        (
            {
                "objectives": [{"metric": "a"}, {"metric": "b", "direction": "Maximize"}],
                "checkpoint": {"scoreAttribute": "b"},
            },
            Policy(None, "b", "max"),
        ),
        (
            {
                "objectives": [{"metric": "a"}],
                "checkpoint": {"numToKeep": 3, "scoreAttribute": "c", "scoreOrder": "Max"},
            },
            Policy(3, "c", "max"),
        ),
    ],
)
def test_settings_say_what_is_kept(given: dict[str, Any], policy: Policy) -> None:
    assert trainer_settings.parse(given).retention == policy


@pytest.mark.parametrize(
    "wrong", [{"numToKeep": -1}, {"numToKeep": True}, {"scoreAttribute": 1}, {"scoreOrder": "max"}]
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"checkpoint.{next(iter(wrong))}"):
        trainer_settings.parse({"checkpoint": wrong})


# Any interleaving.

TRIAL, HEIR = "space/exp-1/00000", "space/heir-2/00000"
LIMIT = 400  # steps of a story


class Story:
    """Attempts of a trial, some of them zombies, and of an heir of it, over one store."""

    def __init__(self, opened: Callable[[str], Store], env: Environment, seed: int, *, watched: bool) -> None:
        """`watched`: on a store that keeps no files; each step is looked at."""
        self.opened, self.env, self.chance, self.watched = opened, env, random.Random(seed), watched
        self.actors: list[Actor] = []
        self.floors: list[dict[str, int]] = []  # before each operation of anybody, where an attempt had to begin
        self.attempts = {TRIAL: 0, HEIR: 0}
        self.policy = Policy(self.chance.choice((None, 0, 0, 1, 2)), "loss", "min")

    def begin(self, prefix: str) -> None:
        """One attempt more, whatever the one before it is doing."""
        self.attempts[prefix] += 1
        number = self.attempts[prefix]
        base = (contract.inherited_key(TRIAL, 0, 0),) if prefix == HEIR else ()
        env = replace(self.env, prefix=prefix, attempt=number, pod_uid=f"{prefix}{number}", base=base)
        saves = self.chance.randrange(6)
        self.actors.append(Actor(f"{prefix}#{number}", lambda actor: self._attempt(actor, env, saves)))

    def _attempt(self, actor: Actor, env: Environment, saves: int) -> None:
        store = Stepping(self.opened(env.prefix), actor, self.watch)
        since = len(self.floors)
        try:
            begun = resuming.begin(store, env, asked=True)
            resuming.claim(store, env, begun.record)
        except resuming.Superseded:
            return
        assert begun.resumed.iteration >= min((floor[env.prefix] for floor in self.floors[since:]), default=0)
        at, base = begun.resumed.iteration, begun.record["base"]
        known = retention.Known()
        for iteration in range(at + 1, at + 1 + saves):
            if not (
                self._commit(store, env, iteration, base)
                if self.watched
                else self._commit_really(store, env, iteration)
            ):
                return
            retention.prune(store, env, self.policy, base, known)

    def _commit_really(self, store: Store, env: Environment, iteration: int) -> bool:
        """Through the store's own door: unchanged files are stored once."""
        folder = self.env.scratch / f"made-{self.chance.getrandbits(64):x}"
        folder.mkdir(parents=True)
        (folder / "frozen").write_text(self.chance.choice("ab"))
        (folder / "w").write_text(f"{env.prefix} {env.attempt} {iteration}")
        try:
            saving.commit(
                store,
                env,
                folder,
                kind="directory",
                why="periodic",
                progress=manifest.Progress(iteration, None, 1.0, {}, ()),
                metrics={"loss": self.chance.choice([1.0, 2.0, 3.0])},
                reported=1.0,
                results=None,
                older=saving.committed_files(store),
            )
        except StaleAttempt:
            return False
        return True

    def _commit(self, store: Store, env: Environment, iteration: int, base: str | None) -> bool:
        """As `saving.commit` does it; half of the time a file is one of an older checkpoint's objects."""
        data = contract.data_key(env.attempt, iteration, f"{self.chance.getrandbits(32):08x}")
        store.put_new(f"{data}/w", b"w")
        files = [entry("w", key=f"{data}/w")]
        older = [key for key in store.list("manifests/") if key.startswith(f"manifests/a{env.attempt:06d}")][-2:]
        older += [base] if base and contract.parse_manifest_key(base) else []
        if older and self.chance.random() < 0.5:
            there = retention.read(store, self.chance.choice(older))
            shared = sorted(there.objects) if there is not None else []
            files += [entry(str(n), key=key) for n, key in enumerate(shared)]
        if max(history.records(store)) > env.attempt:
            return False
        metrics = {"loss": self.chance.choice([1.0, 2.0, 3.0, "NaN"])}
        said = body(attempt=env.attempt, iteration=iteration, metrics=metrics, files=files, data=data)
        try:
            store.put_new(contract.manifest_key(env.attempt, iteration), manifest.encode(said))
        except AlreadyThere:
            return False
        return True

    def expected(self, prefix: str) -> str | None:
        """What the next attempt has to begin from: the newest that the highest attempt committed, or its base."""
        store = self.opened(prefix)
        records = history.records(store)
        if not records:
            return None
        highest = max(records)
        own = [k for k in store.list("manifests/") if k.startswith(f"manifests/a{highest:06d}-")]
        base: str | None = records[highest]["base"]
        return own[-1] if own else base

    def watch(self) -> None:
        """Note where an attempt would have to begin now."""
        if not self.watched:
            return
        found = {}
        for prefix in (TRIAL, HEIR):
            key = self.expected(prefix) or ""
            own, inherited = contract.parse_manifest_key(key), contract.parse_inherited_key(key)
            found[prefix] = own[1] if own else inherited[2] if inherited else 0
        if not history.records(self.opened(HEIR)):
            found[HEIR] = found[TRIAL]
        self.floors.append(found)

    def check(self, prefix: str) -> None:
        """The next attempt begins where it must; what it could begin from is whole."""
        store = self.opened(prefix)
        expected = self.expected(prefix)
        env = replace(self.env, prefix=prefix, attempt=self.attempts[prefix] + 1, pod_uid="check")
        if expected is not None:
            found = resuming.begin(store, env, asked=True)
            assert found.record["base"] == expected
        visible = history.visible(store.list("manifests/"), history.records(store), 10**6)
        for place in visible:
            there = retention.read(store, contract.manifest_key(*place))
            assert there is not None
            for key in there.objects:
                store.get(key)

    def end(self) -> None:
        """A last attempt in peace: after two checkpoints of its own nothing is left that is not whole or not needed."""
        self.begin(TRIAL)
        while True:
            self.actors[-1].finish()
            store, number = self.opened(TRIAL), self.attempts[TRIAL]
            if sum(k.startswith(f"manifests/a{number:06d}-") for k in store.list("manifests/")) >= 2:
                break
            self.begin(TRIAL)
        objects: set[str] = set()
        for key in store.list("manifests/"):
            there = retention.read(store, key)
            assert there is not None
            objects |= there.objects
        assert objects <= set(store.list("data/")), "no manifest refers to a missing object"
        for pin in store.list("pins/"):
            assert pin.startswith(contract.pins_of(HEIR)), "its own are taken back"


def loaded(store: Store, key: str, env: Environment | None = None) -> Checkpoint:
    said = manifest.decode(store.get(key))
    for file in said["files"]:
        store.get(file["key"])
    found = Checkpoint(Path(), iteration=said["iteration"], attempt=said["attempt"])
    found.manifest = said
    return found


def tell(opened: Callable[[str], Store], env: Environment, seed: int, *, watched: bool = False) -> None:
    """A story: attempts begin, are frozen, killed, overtaken, and each time the next one begins where it must."""
    story = Story(opened, env, seed, watched=watched)

    def at(env: Environment, prefix: str) -> Store:
        actor = here()
        return opened(prefix) if actor is None else Stepping(opened(prefix), actor, story.watch)

    with pytest.MonkeyPatch.context() as patch:
        if watched:
            patch.setattr(resuming, "load", loaded)
        patch.setattr(resuming, "open_at", at)
        patch.setattr(retention, "open_at", at)
        patch.setattr(session, "warn", lambda sentence: None)
        try:
            for _ in range(story.chance.randrange(2, 7)):
                story.begin(story.chance.choice((TRIAL, TRIAL, HEIR)))
                shuffled(story.actors, story.chance, story.chance.randrange(2, 60))
                if story.chance.random() < 0.4:
                    story.chance.choice(story.actors).kill()
            shuffled(story.actors, story.chance, LIMIT)
            for actor in story.actors:
                if story.chance.random() < 0.5:
                    actor.kill()
                actor.finish()
            for prefix in (TRIAL, HEIR):
                story.check(prefix)
            story.end()
            story.check(HEIR)
        finally:
            for actor in story.actors:
                if not actor.over:
                    actor.killed = True
                    actor.step()


@settings(max_examples=int(os.environ.get("TRIALKEEPER_STORIES", "100")), deadline=None)
@given(st.integers(0, 2**32))
def test_any_interleaving_ends_with_the_newest_complete_checkpoint_of_the_highest_attempt(seed: int) -> None:
    objects: dict[str, bytes] = {}
    env = environment_of("file:///nowhere", Path("/nowhere"))
    tell(lambda prefix: MemoryStore(objects, prefix), env, seed, watched=True)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", ["directory", "fake"])
def test_any_interleaving_on_a_real_store(
    kind: str, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    opened: dict[tuple[str, str], Store] = {}
    with fake_s3() if kind == "fake" else nullcontext() as server:
        if server is not None:
            server.page = 2
        env = environment_of(server.url if server is not None else (tmp_path / "store").as_uri(), tmp_path)

        def at(prefix: str) -> Store:
            """Each attempt is a pod with a scratch folder of its own; who looks from outside has fetched nothing."""
            actor = here()
            key = actor.name if actor is not None else str(len(opened)), prefix
            if key not in opened:
                opened[key] = open_at(replace(env, scratch=env.scratch / str(len(opened))), prefix)
            return opened[key]

        tell(at, env, seed)
        for store in opened.values():
            if isinstance(store, S3Store):
                store.close()


def test_a_trainer_that_saves_faster_than_it_is_sent_is_pruned_nevertheless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its upload process has always something waiting."""
    passes: list[int] = []

    def counted(*_: object) -> retention.Pruned:
        passes.append(number)
        return retention.Pruned()

    monkeypatch.setattr(retention, "prune", counted)
    process = Process(environment_of((tmp_path / "store").as_uri(), tmp_path), lambda answer: None)
    keep = {"num_to_keep": 0, "score_attribute": None, "score_order": "max"}
    for number in range(1, 9):
        save = messages.Save(number, "", "directory", "periodic", {}, {}, 1.0, keep=keep)
        process._waiting.append(save)
        if len(process._waiting) > 2:
            process._waiting.popleft()
        process._prune(save)
    process._waiting.clear()
    process._prune(save)
    process._prune(save)
    assert passes == [1, 4, 7, 8, 8]
