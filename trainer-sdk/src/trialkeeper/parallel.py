"""Several things at once, also while the interpreter shuts down, when no new thread may be started."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable


def run(jobs: Iterable[Callable[[], object]], workers: int) -> None:
    """Do all jobs, the caller among the workers; the first exception ends it, once the jobs in hand are done."""
    waiting = iter(jobs)
    lock = threading.Lock()
    failed: list[BaseException] = []

    def work() -> None:
        while not failed:
            try:
                with lock:
                    job = next(waiting, None)
                if job is None:
                    return
                job()
            except BaseException as error:
                failed.append(error)

    others = [threading.Thread(target=work, daemon=True) for _ in range(workers - 1)]
    started = []
    for other in others:
        try:
            other.start()
        except RuntimeError:
            break
        started.append(other)
    work()
    for other in started:
        other.join()
    if failed:
        raise failed[0]
