"""An experiment's file, and what `--set` changes of it; what its YAML means is documents.py's affair.

Nothing here knows the rules of an Experiment: a file with one Experiment in it is a manifest, good or bad.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trialkeeper_operator.api import names
from trialkeeper_operator.api.sentences import shown
from trialkeeper_operator.api.validate import InvalidObject, Problem
from trialkeeper_operator.local.documents import documents

BYTES = 4 << 20


@dataclass(frozen=True)
class Manifest:
    """One Experiment as it was written, the folder that its paths are relative to, and what was passed over."""

    raw: dict[str, Any]
    folder: Path
    notes: tuple[str, ...] = ()


def load(path: Path, sets: list[str] | None = None) -> Manifest:
    """The one Experiment in a file, with `--set path=value` applied; not yet checked against its rules.

    :raises InvalidObject: if there is not exactly one, or it cannot be read.
    """
    try:
        if path.stat().st_size > BYTES:
            raise InvalidObject([Problem("", f"the file has more than {BYTES >> 20} MiB")])
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise InvalidObject([Problem("", f"the file cannot be read: {error.strerror}")]) from error
    except UnicodeDecodeError as error:
        raise InvalidObject([Problem("", "the file is not UTF-8 text")]) from error
    found = [document for document in documents(text) if document is not None]
    experiments, notes = [], []
    for number, document in enumerate(found, 1):
        if not isinstance(document, dict):
            kind = {list: "a list"}.get(type(document), "no mapping")
            raise InvalidObject(
                [Problem("", f"document {number} is {kind}: an object with apiVersion and kind is needed")]
            )
        if document.get("kind") == names.EXPERIMENT:
            experiments.append(document)
        else:
            notes.append(f"document {number} ({document.get('kind', 'without kind')}) is passed over")
    if not experiments:
        raise InvalidObject([_no_experiment([document.get("kind") for document in found])])
    if len(experiments) > 1:
        raise InvalidObject(
            [Problem("", f"{len(experiments)} Experiments in one file: put each into a file of its own")]
        )
    raw = experiments[0]
    if raw.get("apiVersion") != names.API_VERSION:
        raise InvalidObject([Problem("apiVersion", _expected(names.API_VERSION, raw.get("apiVersion")))])
    for assignment in sets or ():
        _set(raw, assignment)
    return Manifest(raw, path.resolve().parent, tuple(notes))


def _no_experiment(kinds: list[Any]) -> Problem:
    if not kinds:
        return Problem("", "the file is empty")
    if len(kinds) == 1:
        return Problem("kind", _expected(names.EXPERIMENT, kinds[0]))
    return Problem("kind", f"none of the {len(kinds)} documents in this file is an {names.EXPERIMENT}")


def _expected(wanted: str, found: Any) -> str:
    return f"is missing: {wanted} is needed" if found is None else f"must be {wanted}, not {shown(found)}"


def _set(raw: dict[str, Any], assignment: str) -> None:
    """Apply one `path=value`; lists are entered by index, or by the `name` of their entries."""
    path, equals, text = assignment.partition("=")
    steps = [step for step in re.split(r"[.\[\]]+", path) if step]
    if not equals or not steps:
        raise InvalidObject([Problem("", f"--set {assignment}: write path=value, for example spec.maxTrials=4")])
    try:
        value = next(documents(text), None)
    except InvalidObject as wrong:
        raise InvalidObject([Problem("", f"--set {assignment}: {p.sentence}") for p in wrong.problems]) from wrong
    here: Any = raw
    for step in steps[:-1]:
        here = _entered(here, step, assignment)
    last = steps[-1]
    if isinstance(here, list):
        here[_index(here, last, assignment)] = value
    else:
        here[last] = value


def _entered(here: Any, step: str, assignment: str) -> Any:
    if isinstance(here, list):
        return here[_index(here, step, assignment)]
    if isinstance(here, dict):
        here = here.setdefault(step, {})
    if not isinstance(here, (dict, list)):
        raise InvalidObject([Problem("", f"--set {assignment}: {step} holds no fields")])
    return here


def _index(here: list[Any], step: str, assignment: str) -> int:
    for index, entry in enumerate(here):
        if step == str(index) or (isinstance(entry, dict) and entry.get("name") == step):
            return index
    raise InvalidObject([Problem("", f"--set {assignment}: there is no entry {step}")])
