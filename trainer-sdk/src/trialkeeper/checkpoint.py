"""A checkpoint: files of a trainer's state, on their way into the store or out of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

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
        ours: bool | None = False,
        metrics: Mapping[str, Any] | None = None,
        iteration: int = 0,
        step: int | None = None,
        attempt: int = 0,
        resharding: bool = False,
    ) -> None:
        self.path = path
        self.kind: Kind = kind
        self.ours = ours  # whether the files may be moved away; None: if they are in the scratch folder
        self.metrics: Mapping[str, Any] = metrics or {}
        self.iteration = iteration
        self.step = step
        self.attempt = attempt
        self.resharding = resharding  # whether any number of processes can load it
        self.manifest: Mapping[str, Any] = {}  # as committed; empty before it is

    def __repr__(self) -> str:
        return f"Checkpoint({os.fspath(self.path)!r}, iteration={self.iteration})"

    @classmethod
    def from_directory(
        cls, path: str | os.PathLike[str], *, move: bool | None = None, resharding: bool = False
    ) -> Checkpoint:
        """The files below `path`: when it is reported they are moved away if `move`, else copied.

        Without a word they are moved from below the scratch folder, and copied from anywhere else. `resharding`: any
        number of processes can load it, from one folder with the files of all, whose names must therefore differ.

        :raises NotADirectoryError: if it is no folder.
        """
        folder = Path(path).resolve()
        if not folder.is_dir():
            raise NotADirectoryError(f"Checkpoint.from_directory: {folder} is no folder")
        return cls(folder, ours=move, resharding=resharding)

    @classmethod
    def from_dict(cls, data: Mapping[Any, Any], *, format: Literal["safe", "pickle"] = "safe") -> Checkpoint:  # noqa: A002
        """A dictionary of JSON values, tuples, bytes, and numpy arrays.

        With `format="pickle"` of anything; it is then read only by `to_dict(allow_pickle=True)`.

        :raises TypeError: if it holds what needs pickle; the message says where.
        """
        import tempfile
        import weakref

        from trialkeeper import codec

        folder = Path(tempfile.mkdtemp(prefix="trialkeeper-dict-"))
        made = cls(folder, kind="dict" if format == "safe" else "pickle", ours=True)
        weakref.finalize(made, _forget, folder, os.getpid())
        if format == "pickle":
            import pickle

            (folder / codec.PICKLE_FILE).write_bytes(pickle.dumps(dict(data)))
        else:
            codec.write(data, folder)
        return made

    def moves(self, scratch: Path) -> bool:
        """Whether the files are moved when they are reported, else copied."""
        return self.ours if self.ours is not None else self.path.is_relative_to(scratch.resolve())

    def hand_over(self, folder: Path, scratch: Path) -> None:
        """Move or copy the files into `folder`, which does not exist yet.

        :raises ValueError: if there are none any more.
        """
        import shutil

        if not self.path.is_dir():
            raise ValueError("this Checkpoint has been reported already, or its folder is gone: make a new one")
        if self.moves(scratch):
            shutil.move(self.path, folder)
        else:
            shutil.copytree(self.path, folder, symlinks=True)

    def discard(self) -> None:
        """Remove the files that would have been moved away."""
        if self.ours:
            import shutil

            shutil.rmtree(self.path, ignore_errors=True)

    def to_directory(self, path: str | os.PathLike[str] | None = None) -> Path:
        """A copy of the files that may be changed, in `path` or in a new temporary folder."""
        import shutil
        import tempfile

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
        from trialkeeper import codec

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


def _forget(folder: Path, process: int) -> None:
    """Remove what was never reported; a forked child leaves its parent's alone."""
    import shutil

    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)
