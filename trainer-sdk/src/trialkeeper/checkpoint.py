"""A checkpoint: files of a trainer's state, on their way into the store or out of it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from trialkeeper import codec

Kind = Literal["directory", "dict", "pickle"]


class Checkpoint:
    """Files of a trainer's state.

    From `get_checkpoint` it is whole, verified, and to be read only; `metrics`, `iteration`, `step` and
    `attempt` say what was reported with it. From `from_directory` or `from_dict` it is to be reported.
    """

    def __init__(
        self,
        path: Path,
        *,
        kind: Kind = "directory",
        ours: bool = False,
        metrics: Mapping[str, Any] | None = None,
        iteration: int = 0,
        step: int | None = None,
        attempt: int = 0,
    ) -> None:
        self.path = path
        self.kind: Kind = kind
        self.ours = ours  # whether the files may be moved away
        self.metrics: Mapping[str, Any] = metrics or {}
        self.iteration = iteration
        self.step = step
        self.attempt = attempt
        self.manifest: Mapping[str, Any] = {}  # as committed; empty before it is

    def __repr__(self) -> str:
        return f"Checkpoint({os.fspath(self.path)!r}, iteration={self.iteration})"

    @classmethod
    def from_directory(cls, path: str | os.PathLike[str], *, move: bool = False) -> Checkpoint:
        """The files below `path`, which are copied when it is reported, or moved with `move=True`.

        :raises NotADirectoryError: if it is no folder.
        """
        folder = Path(path).resolve()
        if not folder.is_dir():
            raise NotADirectoryError(f"Checkpoint.from_directory: {folder} is no folder")
        return cls(folder, ours=move)

    @classmethod
    def from_dict(cls, data: Mapping[Any, Any], *, format: Literal["safe", "pickle"] = "safe") -> Checkpoint:  # noqa: A002
        """A dictionary of JSON values, tuples, bytes, and numpy arrays.

        With `format="pickle"` of anything; it is then read only by `to_dict(allow_pickle=True)`.

        :raises TypeError: if it holds what needs pickle; the message says where.
        """
        folder = Path(tempfile.mkdtemp(prefix="trialkeeper-dict-"))
        try:
            if format == "pickle":
                import pickle

                (folder / codec.PICKLE_FILE).write_bytes(pickle.dumps(dict(data)))
            else:
                codec.write(data, folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return cls(folder, kind="dict" if format == "safe" else "pickle", ours=True)

    def to_directory(self, path: str | os.PathLike[str] | None = None) -> Path:
        """A copy of the files that may be changed, in `path` or in a new temporary folder."""
        target = Path(path) if path is not None else Path(tempfile.mkdtemp(prefix="trialkeeper-checkpoint-"))
        shutil.copytree(self.path, target, dirs_exist_ok=True)
        return target

    @contextmanager
    def as_directory(self) -> Iterator[Path]:
        """The files as a folder to be read only, without a copy where the store is a directory."""
        yield self.path

    def to_dict(self, *, allow_pickle: bool = False) -> dict[Any, Any]:
        """The dictionary that `from_dict` was given.

        :raises ValueError: if the checkpoint was not made by `from_dict`, or was pickled and that is not allowed.
        """
        if (self.path / codec.PICKLE_FILE).is_file() and self.kind == "pickle":
            if not allow_pickle:
                raise ValueError(
                    "this checkpoint was pickled, and reading it runs code from it: "
                    "pass allow_pickle=True if you trust whoever wrote it"
                )
            import pickle

            loaded: dict[Any, Any] = pickle.loads((self.path / codec.PICKLE_FILE).read_bytes())
            return loaded
        if not (self.path / codec.FILE).is_file():
            raise ValueError("this checkpoint holds files, not a dictionary: use as_directory() or path")
        return codec.read(self.path)
