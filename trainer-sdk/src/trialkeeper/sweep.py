"""Sweeping a store: what nobody will ever look at goes, and what is more than a budget.

Retention is the trainers' own work, see `retention`; what they leave is swept by whoever has the keys to all of the
store. Objects are looked at before manifests are, and must be old: whatever somebody is about to refer to is young.
Results, attempts and last words are not checkpoints and never go.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Any, NamedTuple

from trialkeeper import contract, history, retention
from trialkeeper.retention import Committed, Place, Policy
from trialkeeper.store import Missing, Store
from trialkeeper.store.tree import Item, Tree

DAY = 86_400.0  # seconds: what is younger may be of an upload that is under way
BATCH = 1000  # objects that are removed between two looks at whether to leave off
FINAL = frozenset({contract.END_COMPLETE, contract.END_STOPPED})  # ends after which no attempt comes by itself

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
_UNITS |= {f"{unit}i": 1 << 10 * n for n, unit in enumerate("KMGTP", 1)}
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)([kMGTP]|[KMGTP]i|)")
_TRIAL = re.compile(r"((?:[^/]+/)*[0-9]{5})/((?:attempts|data|doomed|ended|manifests|pins|probes)/.+)")
_HALF = re.compile(r"/\.[^/]+\.[0-9]+-[0-9a-f]{8}$")  # what a killed `put_new` leaves in a directory
_EXPERIMENT = re.compile(r"[-\w]+(/[-\w]+)*")
_INDEX = re.compile(r"[0-9]{5}|experiment")
_POLICY = re.compile(r"experiment/([0-9]{12})\.json")


def bytes_of(quantity: str) -> int:
    """The bytes of a quantity as Kubernetes writes it, such as 50Gi.

    :raises ValueError: if it is none.
    """
    match = _QUANTITY.fullmatch(quantity)
    if match is None:
        raise ValueError(f"{quantity[:40]!r} is not a size: write a number and k, M, G, T, P, Ki, Mi, Gi, Ti or Pi")
    return int(float(match[1]) * _UNITS[match[2]])


def written(size: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


@dataclass(frozen=True)
class Rules:
    """What an experiment wants. `budget` in bytes, None for none; `policy` ranks its checkpoints.

    `finished` says of a trial's prefix whether no attempt will come any more, None if it is not known; `held` which
    iterations of its checkpoints somebody is about to begin from.
    """

    budget: int | None = None
    policy: Policy = field(default_factory=Policy)
    finished: Callable[[str], bool | None] = lambda prefix: None
    held: Mapping[str, Collection[int]] = field(default_factory=dict)


@dataclass
class Swept:
    """What a sweep has removed; with `dry_run` what it would have."""

    objects: int = 0
    bytes: int = 0
    checkpoints: int = 0
    left: int = 0  # bytes of checkpoints that stay
    over: dict[str, int] = field(default_factory=dict)  # by experiment: bytes beyond its budget that may not go
    trouble: list[str] = field(default_factory=list)
    whole: bool = True  # whether everything was looked at


class Found(NamedTuple):
    """One trial's objects, their keys without its prefix."""

    prefix: str
    data: dict[str, list[Item]]  # by folder
    others: list[Item]

    def of(self, room: str) -> list[Item]:
        return [item for item in self.others if item.key.startswith(room)]


def found(items: Iterable[Item]) -> Iterator[Found]:
    """The trials in a listing, one after the other; what is no trial's is passed over."""
    ours = ((match, item) for item in items if (match := _TRIAL.fullmatch(item.key)) is not None)
    for prefix, group in groupby(ours, key=lambda pair: pair[0][1]):
        trial = Found(prefix, {}, [])
        for match, item in group:
            item = item._replace(key=match[2])
            if item.key.startswith("data/"):
                trial.data.setdefault("/".join(item.key.split("/", 2)[:2]), []).append(item)
            else:
                trial.others.append(item)
        yield trial


_DATA = re.compile(r"data/a(\d{6})-i(\d{12})-[^/]*")


def place_of(folder: str) -> Place | None:
    """(attempt, iteration) of a data folder, None if it is none of ours."""
    match = _DATA.fullmatch(folder)
    return (int(match[1]), int(match[2])) if match else None


def suspected(trial: Found, before: float) -> bool:
    """Whether a trial may have orphans, as far as keys and ages tell."""
    committed = {contract.parse_manifest_key(item.key) for item in trial.of("manifests/")}
    folders = Counter(place_of(folder) for folder in trial.data)
    old = (folder for folder, items in trial.data.items() if max(item.modified for item in items) < before)
    return any(folders[place_of(folder)] > 1 or place_of(folder) not in committed for folder in old)


def orphans(trial: Found, committed: Collection[Committed], before: float) -> list[Item]:
    """Data that no manifest refers to, in folders that nothing has come to since `before`.

    `committed` are read after the data was listed. A manifest that cannot be read keeps what is next to it.
    """
    referred = frozenset[str]().union(*(there.objects for there in committed))
    unread = {there.place for there in committed if not there.whole}
    return [
        item
        for folder, items in trial.data.items()
        if max(item.modified for item in items) < before
        and (place := place_of(folder)) is not None
        and place not in unread
        for item in items
        if item.key not in referred
    ]


class Sized(NamedTuple):
    """A trial's checkpoints for the budget: what may go before others, and what after them if it is finished."""

    prefix: str
    newest: int  # the highest attempt that had begun
    committed: Sequence[Committed]
    sizes: Mapping[str, int]  # by what holds the bytes
    files: Mapping[str, str]  # what holds the bytes, by object: links to one file are one
    kept: Collection[Place]  # that must stay
    spared: Collection[Place]  # of a finished trial: its newest, that goes only if nothing else does

    def holding(self, there: Committed) -> set[str]:
        """What holds a checkpoint's bytes."""
        return {self.files[key] for key in there.objects if key in self.files}

    def size_of(self, committed: Iterable[Committed]) -> int:
        """The bytes of some checkpoints; what they share is counted once."""
        return sum(self.sizes[file] for file in set[str]().union(*map(self.holding, committed)))


def size_in(trial: Found) -> int:
    """The bytes of all data that a trial has."""
    return sum({item.bytes_in: item.size for items in trial.data.values() for item in items}.values())


def beyond(trials: Sequence[Sized], budget: int, policy: Policy) -> list[tuple[str, Place]]:
    """Which checkpoints go, in this order, so that the rest fits into a budget of bytes, or comes as near as it may.

    First the worst-ranked of all trials, among equals the oldest; then the newest ones of finished trials. The best
    of all never goes.
    """
    left = {t.prefix: Counter(file for c in t.committed for file in t.holding(c)) for t in trials}
    total = sum(trial.size_of(trial.committed) for trial in trials)
    owner = [(trial, c) for trial in trials for c in trial.committed]
    number = {id(c): n for n, c in enumerate(reversed(retention.ranked((c for _, c in owner), policy)))}
    best = max(number.values(), default=0)
    free = [(t, c) for t, c in owner if c.place not in t.kept and number[id(c)] != best]
    free.sort(key=lambda pair: (pair[1].place in pair[0].spared, number[id(pair[1])]))
    going = []
    for trial, there in free:
        if total <= budget:
            break
        going.append((trial.prefix, there.place))
        for file in trial.holding(there):
            left[trial.prefix][file] -= 1
            total -= 0 if left[trial.prefix][file] else trial.sizes[file]
    return going


class Sweep:
    """One pass over a store, or a part of it.

    `now` in seconds since the epoch, `older_than` in seconds. `tell` hears of each thing that goes. When `stop` says
    so, it leaves off after the trial in hand.
    """

    def __init__(
        self,
        tree: Tree,
        *,
        now: float,
        rules: Callable[[str], Rules] = lambda experiment: Rules(),
        older_than: float = DAY,
        dry_run: bool = False,
        tell: Callable[[str], object] = lambda sentence: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._tree, self._before, self._dry_run = tree, now - older_than, dry_run
        self._rules, self._tell, self._stop = rules, tell, stop
        self.swept = Swept()

    def run(self, top: str = "") -> Swept:
        """Sweep what is below `top`; trouble with one experiment keeps no other one from it.

        :raises OSError: if the store cannot be listed.
        """
        by_experiment = groupby(found(self._tree.objects(top)), key=lambda trial: trial.prefix.rpartition("/")[0])
        for experiment, trials in by_experiment:
            rules = self._rules(experiment)
            sized = []
            for trial in trials:
                if self._stop():
                    self.swept.whole = False
                    return self.swept
                try:
                    self._clean(trial)
                    self.swept.left += size_in(trial)
                    if rules.budget is not None:
                        sized.append(trial)
                except OSError as error:
                    self.swept.trouble.append(f"{trial.prefix}: {error}")
            if rules.budget is not None:
                self._fit(experiment, sized, rules, rules.budget)
        return self.swept

    # What nobody looks at.

    def _clean(self, trial: Found) -> None:
        store = self._tree.at(trial.prefix)
        if suspected(trial, self._before):
            gone = orphans(trial, read(store), self._before)
            self._remove(trial.prefix, gone, "of no checkpoint")
            keys = {item.key for item in gone}
            for folder, items in trial.data.items():
                trial.data[folder] = [item for item in items if item.key not in keys]
        old = [item for item in trial.of("probes/") if item.modified < self._before]
        self._remove(trial.prefix, old, "a probe that was not taken away")
        halves = [item for item in trial.others if item.modified < self._before and _HALF.search(item.key)]
        self._remove(trial.prefix, halves, "half of something that was never whole")
        pins = [item for item in trial.of("pins/") if item.modified < self._before]
        self._remove(trial.prefix, [item for item in pins if self._stale(trial, item.key)], "a pin of nobody")
        committed = {contract.parse_manifest_key(item.key) for item in trial.of("manifests/")}
        marks = [item for item in trial.of("doomed/") if item.modified < self._before]
        marks = [item for item in marks if contract.parse_doomed_key(item.key) not in committed]
        self._remove(trial.prefix, marks, "the mark of a checkpoint that is gone")
        trial.others[:] = [item for item in trial.others if not item.key.startswith(("pins/", "probes/"))]

    def _stale(self, trial: Found, key: str) -> bool:
        """Whether a pin holds nothing: its holder is gone, or has begun from something of its own since."""
        pin = contract.parse_pin_key(key)
        if pin is None:
            return False
        holder = self._tree.at(pin.holder)
        attempts = history.records(holder)
        if not attempts:
            return not holder.list("")
        if pin.holder == trial.prefix:
            return max(attempts) >= pin.holder_attempt
        return len(history.visible(holder.list("manifests/"), attempts, max(attempts))) >= retention.NEWEST_KEPT

    def _remove(self, prefix: str, items: Sequence[Item], what: str) -> None:
        if items and not self._dry_run:
            self._tree.remove(f"{prefix}/{item.key}" for item in items)
        for item in items:
            self._tell(f"{prefix}/{item.key}: {what}, {written(item.size)}")
        self.swept.objects += len(items)
        self.swept.bytes += sum(item.size for item in items)

    # What is too much.

    def _fit(self, experiment: str, trials: Sequence[Found], rules: Rules, budget: int) -> None:
        """Delete what does not fit into an experiment's budget."""
        if sum(map(size_in, trials)) <= budget:
            return
        try:
            sized = [self._sized(trial, rules) for trial in trials]
        except OSError as error:
            self.swept.trouble.append(f"{experiment}: {error}")
            return
        going: dict[str, list[Place]] = {}
        for prefix, place in beyond(sized, budget, rules.policy):
            going.setdefault(prefix, []).append(place)
        total = sum(trial.size_of(trial.committed) for trial in sized)
        for trial in sized:
            if self._stop():
                self.swept.whole = False
                return
            try:
                total -= self._delete(trial, going.get(trial.prefix, []))
            except (retention.Overtaken, OSError) as error:
                self.swept.trouble.append(f"{trial.prefix}: {error}")
        if total > budget:
            self.swept.over[experiment] = total - budget

    def _sized(self, trial: Found, rules: Rules) -> Sized:
        store = self._tree.at(trial.prefix)
        attempts = history.records(store)
        newest = max(attempts, default=0)
        committed = read(store)
        keys = [contract.manifest_key(*c.place) for c in committed]
        visible = history.visible(keys, attempts, newest)
        record = attempts.get(newest, {}).get("base")
        base = contract.parse_manifest_key(record) if isinstance(record, str) else None
        held = retention.pinned(store)
        finished = rules.finished(trial.prefix)
        if finished if finished is not None else _finished(store, newest):
            kept, spared = held, set(visible[:1])
        else:
            order = rules.policy.score_attribute, rules.policy.score_order
            kept = retention.kept(committed, visible, Policy(0, *order), newest=newest, base=base, pinned=held)
            spared = set()
        held_back = rules.held.get(trial.prefix, ())
        kept = {*kept, *(there.place for there in committed if there.iteration in held_back)}
        items = [item for folder in trial.data.values() for item in folder]
        sizes = {item.bytes_in: item.size for item in items}
        return Sized(trial.prefix, newest, committed, sizes, {i.key: i.bytes_in for i in items}, kept, spared)

    def _delete(self, trial: Sized, going: Sequence[Place]) -> int:
        """Delete checkpoints of one trial; the bytes that this frees."""
        stay, freed = list(trial.committed), 0
        for place in self._deleted(trial, going):
            before = trial.size_of(stay)
            gone = [there for there in stay if there.place == place]
            stay = [there for there in stay if there.place != place]
            size = before - trial.size_of(stay)
            self._tell(f"{trial.prefix}/{contract.manifest_key(*place)}: beyond the budget, {written(size)}")
            self.swept.checkpoints += 1
            self.swept.objects += sum(len(there.objects) for there in gone)
            self.swept.bytes += size
            self.swept.left -= size
            freed += size
        return freed

    def _deleted(self, trial: Sized, going: Sequence[Place]) -> Iterator[Place]:
        if self._dry_run or not going:
            yield from going
            return
        store = self._tree.at(trial.prefix)
        leaving = retention.doomed(store)
        for key in retention.delete(store, trial.committed, going, leaving, newest=trial.newest):
            place = contract.parse_manifest_key(key)
            if place is not None:
                yield place


def read(store: Store) -> list[Committed]:
    """Every committed checkpoint of a prefix, as it is now.

    :raises OSError: if the store cannot be read.
    """
    return retention.read_all(store, store.list("manifests/"), {})


def _finished(store: Store, newest: int) -> bool:
    """Whether the newest attempt's last words say that the trial is over."""
    try:
        said = contract.Message.decode(store.get(contract.ended_key(newest)))
    except Missing:
        return False
    return said is not None and said.end in FINAL


def holders(tree: Tree, experiment: str) -> set[str]:
    """The prefixes of other experiments that hold on to something below this one's folder, and are still there.

    :raises OSError: if the store cannot be listed.
    """
    pins = (pin for trial in found(tree.objects(f"{experiment}/")) for item in trial.of("pins/")
            if (pin := contract.parse_pin_key(item.key)) is not None)  # fmt: skip
    others = {pin.holder for pin in pins if not pin.holder.startswith(f"{experiment}/")}
    return {holder for holder in others if tree.at(holder).list("")}


def remove(tree: Tree, experiment: str, *, dry_run: bool = False, stop: Callable[[], bool] = lambda: False) -> Swept:
    """Remove all that an experiment has: manifests first, and last what says that it is to go.

    When `stop` says so, it leaves off; the next call goes on.

    :raises ValueError: if it is no experiment's folder, or another experiment holds on to something of it.
    :raises OSError: if the store cannot be reached; the next call goes on.
    """
    if not _EXPERIMENT.fullmatch(experiment) or not any(map(_INDEX.fullmatch, tree.folders(f"{experiment}/"))):
        raise ValueError(f"{experiment[:200]!r} is no experiment's folder: name it as it is there, namespace/name-uid")
    if held := holders(tree, experiment):
        raise ValueError(f"{experiment} is kept: {', '.join(sorted(held)[:3])} began from it and needs it still")
    removed = Swept()
    policy = f"{experiment}/experiment/"
    rooms: tuple[Callable[[str], bool], ...] = (
        lambda key: "/manifests/" in key,
        lambda key: "/manifests/" not in key and not key.startswith(policy),
        lambda key: key.startswith(policy),
    )
    for number, room in enumerate(rooms):
        items = (item for item in tree.objects(f"{experiment}/") if room(item.key))
        while batch := list(islice(items, BATCH)):
            if stop():
                removed.whole = False
                return removed
            if not dry_run:
                tree.remove(item.key for item in batch)
            removed.objects += len(batch)
            removed.bytes += sum(item.size for item in batch)
            removed.checkpoints += len(batch) if number == 0 else 0
    if not dry_run:
        tree.forget(experiment)
    return removed


# What an experiment wants, as it is written in the store.


def written_policy(tree: Tree, experiment: str) -> dict[str, Any]:
    """What the newest generation of an Experiment has left in its folder; empty if there is nothing.

    :raises OSError: if the store cannot be read.
    """
    store = tree.at(experiment)
    for key in sorted((k for k in store.list("experiment/") if _POLICY.fullmatch(k)), reverse=True):
        try:
            value = json.loads(store.get(key))
        except (ValueError, RecursionError, Missing):
            continue
        if isinstance(value, dict) and value.get("v") == contract.VERSION:
            return value
    return {}
