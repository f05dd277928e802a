"""Each planted bug is caught by one sweep of a few places; without it the same places end well."""

from __future__ import annotations

import pytest

from simulation.mutants.mutants import MUTANTS, Mutant
from simulation.sweeps.ends import wrong
from simulation.sweeps.runner import Trouble, live
from simulation.sweeps.scenarios import SCENARIOS
from simulation.sweeps.troubles import KINDS

named = pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.plant.__name__)


def found(mutant: Mutant, patch: pytest.MonkeyPatch | None = None) -> list[str]:
    """What is wrong at the mutant's places, up to the first that is not as it should be."""
    scenario = SCENARIOS[mutant.scenario]
    model = live(scenario, Trouble())
    if patch is not None:
        mutant.plant(patch)
    for trouble in [KINDS[mutant.kind].at(place) for place in mutant.places] or [Trouble()]:
        if lines := wrong(live(scenario, trouble), model):
            return lines
    return []


@named
def test_it_is_caught(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(mutant, monkeypatch)


@named
def test_without_it_all_is_well(mutant: Mutant) -> None:
    assert found(mutant) == []
