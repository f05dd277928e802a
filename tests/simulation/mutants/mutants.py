"""The planted bugs, as changes of one function each, and which scenario and trouble betray them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from trialkeeper.contract import Message
from trialkeeper_operator.api.experiment import FailurePolicy, Timeouts
from trialkeeper_operator.api.trial import Trial, TrialStatus
from trialkeeper_operator.decide import endings, evidence, group, ledger, watchdogs
from trialkeeper_operator.decide import trial as decide
from trialkeeper_operator.decide.endings import Ending
from trialkeeper_operator.decide.view import Plan, View
from trialkeeper_operator.reconcile import experiment, restore, snapshot, trial, world
from trialkeeper_operator.reconcile.ports import Object
from trialkeeper_operator.reconcile.world import Outcome, World
from trialkeeper_operator.state import cache
from trialkeeper_operator.state.cache import Name

Patch = pytest.MonkeyPatch


class Mutant(NamedTuple):
    """A planted bug, and where it shows: the scenario, the kind of trouble, and its places; without trouble if none."""

    plant: Callable[[Patch], None]
    scenario: str
    kind: str = ""
    places: tuple[int, ...] = ()


def count_twice(patch: Patch) -> None:
    sound = ledger.close

    def close(status: TrialStatus, ending: Ending, policy: FailurePolicy, now: float, *, paused: bool) -> TrialStatus:
        closed = sound(status, ending, policy, now, paused=paused)
        return closed.model_copy(update={"disruptions": 2 * closed.disruptions - status.disruptions})

    patch.setattr(ledger, "close", close)


def reuse_a_number(patch: Patch) -> None:
    sound = ledger.open_attempt

    def open_attempt(status: TrialStatus) -> TrialStatus:
        again = bool(status.history) and status.history[-1].class_ in endings.DISRUPTED
        opened = sound(status)
        return opened.model_copy(update={"attempt": status.attempt, "closed": status.closed - 1}) if again else opened

    patch.setattr(ledger, "open_attempt", open_attempt)


def exit_0_is_success(patch: Patch) -> None:
    sound = endings.classify

    def classify(pod: Mapping[str, Any] | None, **known: Any) -> Ending | None:
        found = sound(pod, **known)
        return found and (replace(found, class_=endings.SUCCEEDED) if found.exit_code == 0 else found)

    patch.setattr(endings, "classify", classify)


def forget_to_close(patch: Patch) -> None:
    def closed(view: View, status: TrialStatus, ending: Ending, now: float) -> Plan:
        return Plan(decide._observed(view, ledger.open_attempt(status)), after=0.0)

    patch.setattr(decide, "_closed", closed)


def lost_by_difference(patch: Patch) -> None:
    sound = ledger._begun

    def begun(status: TrialStatus, message: Message) -> TrialStatus:
        found = message.resumed
        own = found and replace(found, lostBefore=status.lost_work.iterations)
        return sound(status, replace(message, resumed=own))

    patch.setattr(ledger, "_begun", begun)


def believe_the_cache(patch: Patch) -> None:
    async def confirmed(world: World, name: Name, view: View, doubtful: Collection[str]) -> View | None:
        return replace(view, gone=True)

    patch.setattr(trial, "_confirmed", confirmed)


def go_back_in_time(patch: Patch) -> None:
    patch.setattr(cache, "_older", lambda new, old: False)


def ignore_a_changed_trial(patch: Patch) -> None:
    """What was planned for a trial is stored whatever has become of it meanwhile."""

    async def confirmed(world: World, name: Name, view: View, doubtful: Collection[str]) -> View | None:
        found = await world.look("Pod", (view.trial.namespace, f"{view.trial.name}-a{view.trial.status.attempt}"))
        return replace(view, gone=True) if found is None else None

    async def store(world: World, name: Name, known: Trial, plan: Plan) -> Outcome:
        raw = world.cache.raw("Trial", name)
        if plan.status is not None and raw is not None:
            await world.put_status(raw, plan.status.to_object())
        return None

    patch.setattr(trial, "_confirmed", confirmed)
    patch.setattr(trial, "_store", store)


def run_two_pods_at_once(patch: Patch) -> None:
    """A pod on its way out is taken for one that has ended."""
    sound = evidence.ended

    def ended(pod: Mapping[str, Any], container: str) -> bool:
        return sound(pod, container) or "deletionTimestamp" in pod["metadata"]

    patch.setattr(evidence, "ended", ended)


def write_unconditionally(patch: Patch) -> None:
    sound = World.put_status

    async def put_status(self: World, raw: Mapping[str, Any], status: Mapping[str, Any]) -> None:
        meta = raw["metadata"]
        live = await self.cluster.get(raw["kind"], meta["namespace"], meta["name"])
        await sound(self, live or raw, status)

    patch.setattr(World, "put_status", put_status)


def forget_the_fence(patch: Patch) -> None:
    """A report of any attempt and of any pod is taken for the open one's."""
    sound = ledger.heard

    def heard(status: TrialStatus, message: Message | None) -> TrialStatus:
        return sound(status, message and replace(message, attempt=status.attempt, podUid=""))

    patch.setattr(ledger, "heard", heard)


def keep_the_old_pods(patch: Patch) -> None:
    patch.setattr(decide, "_leftovers", lambda view: ())


def give_the_verdict_before_the_snapshot(patch: Patch) -> None:
    keep, put_status = snapshot.keep, World.put_status
    late: list[tuple[World, Object, Mapping[str, Any]]] = []

    async def later(world: World, raw: Object, status: Mapping[str, Any], *, over: bool) -> Outcome:
        if not over:
            return await keep(world, raw, status, over=over)
        late.append((world, raw, status))
        return None

    async def first(self: World, raw: Mapping[str, Any], status: Mapping[str, Any]) -> None:
        await put_status(self, raw, status)
        while late:
            await keep(*late.pop(), over=True)

    patch.setattr(snapshot, "keep", later)
    patch.setattr(World, "put_status", first)


def act_before_it_is_written(patch: Patch) -> None:
    """A pod is created before its number is stored, and deleted before it is said why."""
    store = trial._store

    async def backwards(world: World, name: Name, known: Trial, plan: Plan) -> Outcome:
        view = trial._view(world, name)
        if view is not None:
            for action in plan.actions:
                await trial._act(world, view, action)
        return await store(world, name, known, plan)

    patch.setattr(trial, "_store", backwards)


def watch_only_who_was_heard(patch: Patch) -> None:
    sound = watchdogs._silent

    def silent(pod: watchdogs.Pod, timeouts: Timeouts, now: float) -> watchdogs.Watch:
        return watchdogs.QUIET if pod.heard is None else sound(pod, timeouts, now)

    patch.setattr(watchdogs, "_silent", silent)


def wait_for_the_clock(patch: Patch) -> None:
    def remaining(since: float, wait: float, now: float) -> float:
        return since + wait - now

    for module in (world, trial, experiment):
        patch.setattr(module, "remaining", remaining)


def run_before_all_are_taken_over(patch: Patch) -> None:
    patch.setattr(restore, "may_run", lambda experiment: True)


def never_look_again(patch: Patch) -> None:
    """What a broken watch has not told is never found out."""

    async def sweep(self: Any) -> None:
        return None

    patch.setattr("trialkeeper_operator.reconcile.loop.Operator.sweep", sweep)


def blame_who_was_first(patch: Patch) -> None:
    """Of several pods the end of the lowest rank is the attempt's, whatever the others say."""
    patch.setattr(group, "_place", lambda ending: 0)


MUTANTS: tuple[Mutant, ...] = (
    Mutant(count_twice, "preempted"),
    Mutant(reuse_a_number, "preempted"),
    Mutant(exit_0_is_success, "failed, then well"),
    Mutant(forget_to_close, "plain"),
    Mutant(lost_by_difference, "nobody there"),
    Mutant(forget_the_fence, "killed"),
    Mutant(keep_the_old_pods, "plain"),
    Mutant(run_two_pods_at_once, "preempted"),
    Mutant(believe_the_cache, "plain", "two leaders", (0, 3, 6)),
    Mutant(go_back_in_time, "plain", "two leaders", (22, 33, 55)),
    Mutant(ignore_a_changed_trial, "preempted", "two leaders", (13, 17, 33)),
    Mutant(write_unconditionally, "killed", "two leaders", (0, 3, 6)),
    Mutant(act_before_it_is_written, "failed for good", "two leaders", (0, 3, 9)),
    Mutant(give_the_verdict_before_the_snapshot, "plain", "crash after a write", (29, 30)),
    Mutant(run_before_all_are_taken_over, "restored", "two leaders", (15, 20, 35)),
    Mutant(never_look_again, "stopped by hand", "an event dropped", (0, 15)),
    Mutant(watch_only_who_was_heard, "a hang", "crash after a write", (3, 9)),
    Mutant(blame_who_was_first, "two pods each"),
    Mutant(wait_for_the_clock, "plain", "clock set back", (3, 6)),
)
