"""GPUs of this machine, handed out to pods by CUDA_VISIBLE_DEVICES; a pod waits until enough are free."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from trialkeeper_operator.local.environment import CannotStart


def parse(text: str | None, shell: Mapping[str, str]) -> list[str]:
    """`--gpus 2` or `--gpus 0,3`; without it those that the shell's CUDA_VISIBLE_DEVICES or the driver shows.

    :raises ValueError: if it is neither a number nor a list.
    """
    visible = shell.get("CUDA_VISIBLE_DEVICES")
    if text is None and visible is not None:
        return [part.strip() for part in visible.split(",") if part.strip()]
    if text is None:
        return sorted((p.name[6:] for p in Path("/dev").glob("nvidia[0-9]*")), key=lambda n: (len(n), n))
    if "," not in text and text.isdigit():
        return [str(i) for i in range(int(text))]
    ids = [part.strip() for part in text.split(",") if part.strip()]
    if not ids or len(set(ids)) != len(ids):
        raise ValueError(f"--gpus {text}: give a number (2) or a list of different ids (0,3)")
    return ids


class Gpus:
    """The free ones."""

    def __init__(self, ids: Sequence[str]) -> None:
        self._all = list(ids)
        self._free = list(ids)
        self._returned = asyncio.Condition()

    @asynccontextmanager
    async def lend(self, asked: int) -> AsyncIterator[str | None]:
        """CUDA_VISIBLE_DEVICES for a pod that asks for so many, None if it asks for none.

        :raises CannotStart: if it asks for more than there are.
        """
        if asked == 0:
            yield None
            return
        if asked > len(self._all):
            raise CannotStart(
                f"the trainer asks for {asked} GPUs (nvidia.com/gpu) and this machine has {len(self._all)}: "
                "ask for fewer, or say which there are with trialkeeper run --gpus"
            )
        async with self._returned:
            await self._returned.wait_for(lambda: len(self._free) >= asked)
            lent, self._free = self._free[:asked], self._free[asked:]
        try:
            yield ",".join(lent)
        finally:
            async with self._returned:
                self._free = [gpu for gpu in self._all if gpu in self._free or gpu in lent]
                self._returned.notify_all()
