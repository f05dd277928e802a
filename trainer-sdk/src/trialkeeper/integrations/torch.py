"""PyTorch: the whole state of a training loop in a folder, and back, without pickle's code.

    from trialkeeper.integrations import torch as state

    def save(folder):
        state.save(folder, model=model, optimizer=optimizer, scheduler=scheduler, data=loader, epoch=epoch + 1)

    checkpoint = trialkeeper.get_checkpoint()
    if checkpoint:
        epoch = state.load(checkpoint.path, model=model, optimizer=optimizer, scheduler=scheduler, data=loader)["epoch"]

Resuming is bit-identical on the same machine, as far as the operations themselves are (see PyTorch's notes on
reproducibility), if everything that changes is handed over. What cannot be restored: gradients that are accumulated and
not yet applied; random numbers inside of a DataLoader's workers, if it is resumed in mid-epoch; and the position of a
plain DataLoader, which has none: save at the end of an epoch, or use `ResumableLoader` or torchdata's
StatefulDataLoader.
"""

from __future__ import annotations

import io
import os
import pickle
import random
import sys
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from trialkeeper import session

OLDEST = (2, 6)
_VALUES, _RANDOM = "values.pt", "random.pt"
_PLAIN = (type(None), bool, int, float, complex, str, bytes, bytearray)

if tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST:
    raise ImportError(
        f"torch {torch.__version__} runs code from a checkpoint even with weights_only=True (CVE-2025-32434): "
        "use torch 2.6 or newer"
    )


# What has a state, and how it is taken and given back.


def _set_numpy_state(generator: Any, state: Any) -> None:
    generator.bit_generator.state = state


def _ways(value: Any) -> tuple[Callable[[], Any], Callable[[Any], Any]] | None:
    """(how to take its state, how to give it back), None if `value` is a plain one."""
    if hasattr(value, "state_dict") and hasattr(value, "load_state_dict"):
        return value.state_dict, value.load_state_dict
    if isinstance(value, torch.Generator):
        return value.get_state, value.set_state
    if isinstance(value, random.Random):
        return value.getstate, value.setstate
    if hasattr(value, "bit_generator"):
        return lambda: _listed(value.bit_generator.state), lambda state: _set_numpy_state(value, state)
    return None


def _listed(value: Any) -> Any:
    """Arrays as lists, since `weights_only` knows no numpy."""
    if isinstance(value, dict):
        return {k: _listed(v) for k, v in value.items()}
    return value.tolist() if hasattr(value, "tolist") else value


def _check(value: Any, path: str) -> None:
    """Find out when it is saved, not when it is needed, that something cannot be loaded without pickle's code.

    :raises TypeError: if `value` holds something else than tensors and plain values; the message says where.
    """
    if isinstance(value, torch.Tensor):
        if type(value).__name__ == "DTensor":
            raise TypeError(f"{path} is sharded over several processes: use save_sharded()")
    elif type(value) in (dict, OrderedDict, Counter):
        for key, inner in value.items():
            _check(key, f"{path} key")
            _check(inner, f"{path}[{key!r}]")
    elif type(value) in (list, tuple, set, torch.Size):
        for place, inner in enumerate(value):
            _check(inner, f"{path}[{place}]")
    elif type(value) not in (*_PLAIN, torch.dtype, torch.device):
        raise TypeError(
            f"{path} is {type(value).__name__}, which cannot be loaded without running code from the checkpoint: "
            "convert it to numbers, text, lists or tensors"
        )


# The state of one process.


def save(folder: str | os.PathLike[str], /, **state: Any) -> None:
    """Write into a folder whatever training depends on.

    Each value is either an object with `state_dict` and `load_state_dict` (model, optimizer, scheduler, GradScaler,
    StatefulDataLoader, ...) or a generator of random numbers (torch.Generator, random.Random, numpy's Generator), which
    become `<name>.pt`; or a plain value: tensors, numbers, text, and containers of these. The state of the global
    generators of Python, numpy, torch and its devices is always saved with them.

    :raises TypeError: if a value, or a part of a state, could only be loaded by running code from the checkpoint.
    """
    target = Path(folder)
    plain: dict[str, Any] = {}
    for name, value in state.items():
        ways = _ways(value)
        taken = plain[name] = value if ways is None else ways[0]()
        _check(taken, name)
        if ways is not None:
            del plain[name]
            torch.save(taken, target / f"{name}.pt")
    torch.save(plain, target / _VALUES)
    torch.save(random_state(), target / _RANDOM)


def load(folder: str | os.PathLike[str], /, **objects: Any) -> dict[str, Any]:
    """Give everything that `save` has saved back: states into `objects` of the same names, the random numbers' state.

    Returns the plain values. Tensors are loaded to the CPU; objects move their state to where they are.

    :raises ValueError: if a saved state has no object here, or an object no saved state.
    """
    source = Path(folder)
    saved = {file.stem for file in source.glob("*.pt")} - {Path(_VALUES).stem, Path(_RANDOM).stem}
    if saved - objects.keys():
        missing = ", ".join(sorted(saved - objects.keys()))
        raise ValueError(f"the checkpoint has a state of {missing} that load() is not given: read() takes a part only")
    values = read(source, **objects)
    set_random_state(_loaded(source / _RANDOM))
    return values


def read(folder: str | os.PathLike[str], /, **objects: Any) -> dict[str, Any]:
    """Give only `objects` their states back, for inference or a warm start; returns the plain values.

    :raises ValueError: if an object has no saved state.
    """
    source = Path(folder)
    for name, value in objects.items():
        ways = _ways(value)
        if ways is None:
            raise ValueError(f"{name} is {type(value).__name__}, which has no state to load into")
        if not (source / f"{name}.pt").is_file():
            raise ValueError(f"the checkpoint has no state of {name}")
        ways[1](_loaded(source / f"{name}.pt"))
    values: dict[str, Any] = _loaded(source / _VALUES)
    return values


def _loaded(file: Path) -> Any:
    return torch.load(file, map_location="cpu", weights_only=True)


def random_state() -> dict[str, Any]:
    """The state of all global generators of random numbers that are in use, as plain values and tensors."""
    state: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        state["numpy"] = _listed(numpy.random.get_state(legacy=False))
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Set all global generators to a `random_state`; what this machine does not have is said and left out."""
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"])
    if "numpy" in state:
        import numpy as np

        np.random.set_state(state["numpy"])
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    saved = state.get("cuda", [])
    for device, inner in enumerate(saved[:devices]):
        torch.cuda.set_rng_state(inner, device)
    if len(saved) > devices:
        session.warn(f"random numbers of {len(saved)} CUDA devices were saved, and {devices} are here")
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])


# The data's position.


class ResumableLoader:
    """Batches of a map-style dataset in an order that follows from seed and epoch alone, with a position to save.

        for epoch in loader.epochs(10):  # begins with the epoch, and in it after the batch, that was saved
            for batch in loader:
                ...

    Whoever counts epochs by himself (Lightning does) just iterates over it, once an epoch. It draws no global random
    numbers. `options` are those of DataLoader: num_workers, collate_fn, pin_memory, ...
    """

    def __init__(
        self, dataset: Any, *, batch_size: int, seed: int, shuffle: bool = True, drop_last: bool = False, **options: Any
    ) -> None:
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.shuffle, self.drop_last, self.options = shuffle, drop_last, options
        self.epoch, self.position = 0, 0  # batches of this epoch that were handed out
        self._told = False  # when an epoch is over, by `epochs`

    def __len__(self) -> int:
        """Batches in an epoch."""
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def epochs(self, number: int) -> Iterator[int]:
        """The epochs that are left of so many, the one that was begun included."""
        self._told = True
        while self.epoch < number:
            yield self.epoch
            self.epoch, self.position = self.epoch + 1, 0

    def __iter__(self) -> Iterator[Any]:
        """The batches that are left of this epoch."""
        if self.position >= len(self) and not self._told:
            self.epoch, self.position = self.epoch + 1, 0
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        size = len(self.dataset)
        order = torch.randperm(size, generator=generator).tolist() if self.shuffle else list(range(size))
        batches = [order[at * self.batch_size : (at + 1) * self.batch_size] for at in range(len(self))]
        rest = torch.utils.data.DataLoader(
            self.dataset, batch_sampler=batches[self.position :], generator=generator, **self.options
        )
        for batch in rest:
            self.position += 1  # before it is used: a save comes after that
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position, "seed": self.seed, "size": len(self.dataset)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on at a saved position.

        :raises ValueError: if it is one in other data, or in another order of them.
        """
        here = self.state_dict()
        for name in ("seed", "size"):
            if state[name] != here[name]:
                raise ValueError(f"the data were saved with {name} {state[name]}, and here it is {here[name]}")
        self.epoch, self.position = state["epoch"], state["position"]


# A state that is sharded over several processes.


def save_sharded(folder: str | os.PathLike[str], /, *, model: Any, optimizer: Any = None, **state: Any) -> None:
    """Write this process's shard of a model (FSDP, tensor parallel, DDP) and its optimizer, by PyTorch's DCP.

    Every process calls it at the same step, into one folder or each into its own: the names of their files differ.
    `state` is as in `save`, each process's own.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict

    rank, world = _place()
    models, optimizers = get_state_dict(model, () if optimizer is None else optimizer)
    with _alone_and_silent(world):
        dcp.save({"model": models, "optimizer": optimizers}, checkpoint_id=Path(folder), no_dist=world == 1)
    own = {name: value if (ways := _ways(value)) is None else ways[0]() for name, value in state.items()}
    _check(own, "state")
    torch.save({"world": world, "state": own, "random": random_state()}, Path(folder) / f"rank-{rank}.pt")


def load_sharded(
    folder: str | os.PathLike[str], /, *, model: Any, optimizer: Any = None, **objects: Any
) -> dict[str, Any]:
    """Give back what `save_sharded` has saved, also into another number of processes; returns the plain values.

    The folder has the files of all processes. With another number of them, `objects` and plain values are those of the
    process whose number is this one's modulo their number then, and random numbers are not restored, which is said.
    Then nothing is bit-identical any more: sums are made in another order.

    No code from the checkpoint is run: DCP's metadata are read by a pickle that knows nothing else.

    :raises pickle.UnpicklingError: if the metadata want more.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    source = Path(folder)
    rank, world = _place()
    optimizers = () if optimizer is None else optimizer
    model_state, optimizer_state = get_state_dict(model, optimizers)
    whole = {"model": model_state, "optimizer": optimizer_state}
    reader, planner = _careful(source)
    with _alone_and_silent(world):
        dcp.load(whole, storage_reader=reader, planner=planner, no_dist=world == 1)
    set_state_dict(model, optimizers, model_state_dict=whole["model"], optim_state_dict=whole["optimizer"])
    then = _loaded(source / "rank-0.pt")["world"]
    own = _loaded(source / f"rank-{rank % then}.pt")
    plain = dict(own["state"])
    for name, value in objects.items():
        ways = _ways(value)
        if ways is None or name not in plain:
            raise ValueError(f"the checkpoint has no state of {name}, or {name} has none")
        ways[1](plain.pop(name))
    if then == world:
        set_random_state(own["random"])
    elif rank == 0:
        session.warn(f"saved by {then} processes and loaded by {world}: random numbers begin anew")
    return plain


def _place() -> tuple[int, int]:
    """(this process's number, how many there are)."""
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return (torch.distributed.get_rank(), torch.distributed.get_world_size()) if there else (0, 1)


@contextmanager
def _alone_and_silent(world: int) -> Iterator[None]:
    """DCP warns whoever has no process group, which one process need not have."""
    with warnings.catch_warnings():
        if world == 1:
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


def _careful(folder: Path) -> tuple[Any, Any]:
    """DCP's reader and planner, without the pickle in them that runs anything."""
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner

    # Read at once, since whatever is raised within DCP becomes a BaseException of its own.
    metadata = _Metadata(io.BytesIO((folder / ".metadata").read_bytes())).load()
    for place in metadata.storage_data.values():
        if Path(place.relative_path).name != str(place.relative_path):
            raise pickle.UnpicklingError(f"the checkpoint's metadata lead out of it, to {place.relative_path}")

    class Reader(FileSystemReader):  # type: ignore[misc, unused-ignore]
        def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
            metadata.storage_meta = metadata.storage_meta or _storage_meta()
            metadata.storage_meta.load_id = self.load_id
            return metadata

    class Planner(DefaultLoadPlanner):  # type: ignore[misc, unused-ignore]
        def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
            checked = torch.load(value, weights_only=True)
            again = io.BytesIO()
            torch.save(checked, again)
            again.seek(0)
            super().load_bytes(read_item, again)

    return Reader(folder), Planner()


def _storage_meta() -> Any:
    from torch.distributed.checkpoint.metadata import StorageMeta

    return StorageMeta()


class _Metadata(pickle.Unpickler):
    """An unpickler of DCP's metadata: its own classes, tensors' properties, containers."""

    _HOMES = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
    _OTHERS = frozenset(
        {
            ("builtins", "set"),
            ("collections", "OrderedDict"),
            ("pathlib", "PosixPath"),
            ("pathlib._local", "PosixPath"),
            ("torch", "Size"),
            ("torch.serialization", "_get_layout"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._OTHERS:
            return super().find_class(module, name)
        if module in self._HOMES or module == "torch":
            found = super().find_class(module, name)
            plain = is_dataclass(found) or (isinstance(found, type) and issubclass(found, Enum))
            if isinstance(found, torch.dtype) or (plain and found.__module__ == module):
                return found
        raise pickle.UnpicklingError(f"the checkpoint's metadata want {module}.{name}, which is none of DCP's")
