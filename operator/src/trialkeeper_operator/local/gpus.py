"""GPUs of this machine, handed out to pods by CUDA_VISIBLE_DEVICES; a pod waits until enough are free."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from trialkeeper_operator.local import environment
from trialkeeper_operator.local.environment import CannotStart


def parse(text: str | None) -> list[str]:
    """`--gpus 2` or `--gpus 0,3`; without it what the driver shows in /dev.

    :raises ValueError: if it is neither a number nor a list.
    """
    if text is None:
        return sorted(p.name[6:] for p in Path("/dev").glob("nvidia[0-9]*"))
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
    async def lend(self, _uid: str, container: Mapping[str, Any]) -> AsyncIterator[str | None]:
        """CUDA_VISIBLE_DEVICES for a container, None if it asks for no GPU here.

        :raises CannotStart: if it asks for more than there are.
        """
        asked = environment.gpus(container)
        if asked == 0:
            yield None
            return
        if asked > len(self._all):
            raise CannotStart(
                f"the pod asks for {asked} GPUs and there are {len(self._all)}: see trialkeeper run --gpus"
            )
        async with self._returned:
            await self._returned.wait_for(lambda: len(self._free) >= asked)
            lent, self._free = self._free[:asked], self._free[asked:]
        try:
            yield ",".join(lent)
        finally:
            async with self._returned:
                self._free = sorted(self._free + lent)
                self._returned.notify_all()
