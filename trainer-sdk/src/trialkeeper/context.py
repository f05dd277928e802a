"""Who am I and what are my parameters: for every process of a pod, workers included."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trialkeeper import session


class Params(dict[str, Any]):
    """The trial's parameters, by key or as attributes: `p["lr"]` is `p.lr`."""

    __slots__ = ()  # so that `p.lr = 1` is refused instead of making the two differ

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            known = ", ".join(sorted(self)) or "none"
            raise AttributeError(f"no parameter {name!r} here, there are: {known}") from None


@dataclass(frozen=True)
class Context:
    """This trial and this attempt. `seed` and `parameters` are the same in every attempt, and in every process."""

    experiment: str
    trial: str
    index: int
    namespace: str
    attempt: int
    seed: int
    parameters: Mapping[str, Any]
    scratch: Path
    store: str
    rank: int  # this process among the trial's
    world_size: int  # how many they are


def get_params(**defaults: Any) -> Params:
    """The trial's parameters over `defaults`, which serve a plain run and whatever is not varied.

    A parameter of the trial that is not among `defaults` is told once on stderr, if there are any.
    """
    here = session.current()
    given = here.env.parameters
    unknown = [name for name in given if name not in defaults] if defaults and here.owner else []
    for name in unknown:
        near = _near(name, [known for known in defaults if known not in given])
        asked = f": did you mean {near}?" if near else ""
        here.warn_once(
            f"parameter {name}", f"parameter {name} is not among those of get_params({', '.join(defaults)}){asked}"
        )
    return Params(defaults | dict(given))


def _near(name: str, known: list[str]) -> str | None:
    """Which of the known ones may be meant: one that is spelled alike, or has the other's initials."""
    import difflib  # not before there is need of it

    short = [k for k in known if _initials(k) == name or _initials(name) == k]
    return next(iter(short or difflib.get_close_matches(name, known, 1)), None)


def _initials(name: str) -> str:
    return "".join(word[0] for word in name.split("_") if word)


def get_context() -> Context:
    """The context of this process's trial."""
    env = session.current().env
    return Context(
        experiment=env.experiment,
        trial=env.trial,
        index=env.index,
        namespace=env.namespace,
        attempt=env.attempt,
        seed=env.seed,
        parameters=env.parameters,
        scratch=env.scratch,
        store=env.place,
        rank=env.rank,
        world_size=env.world,
    )
