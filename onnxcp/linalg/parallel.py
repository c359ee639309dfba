"""Decompositions of many kernels side by side.

A layer is the unit of work: layers are independent, and a BLAS that splits up products of one layer
gains less than another layer at the same time. Each job therefore runs on one BLAS thread, so that
what comes out does not depend on how many jobs there are or where they run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

Result = TypeVar("Result")


def spread(
    call: Callable[..., Result], jobs: Iterable[tuple[Any, ...]], *, workers: int = -1
) -> list[Result]:
    """Call a function for every job, several at a time.

    Runs on threads of this process (numerics let go of the interpreter), or wherever
    `joblib.parallel_config` says: processes, a Dask or a Ray cluster. There, function, arguments
    and results must pickle.

    Parameters
    ----------
    call : callable
        The function: a decomposition, say.
    jobs : iterable of tuple
        Arguments of each call.
    workers : int
        How many calls at a time; -1 for one on each core.

    Returns
    -------
    list
        What the calls returned, in the order of the jobs.
    """
    # Neither is needed by a command that decomposes nothing.
    from joblib import Parallel, delayed
    from threadpoolctl import threadpool_limits

    home = os.getpid()
    with threadpool_limits(limits=1, user_api="blas"):
        made = Parallel(n_jobs=workers, prefer="threads")(
            delayed(_alone)(call, job, home) for job in jobs
        )
    return list(made)


def _alone(call: Callable[..., Result], job: tuple[Any, ...], home: int) -> Result:
    """Do one job; in a process of its own, on one BLAS thread."""
    if os.getpid() != home:
        from threadpoolctl import threadpool_limits

        # For good: a worker's threads share the limit, and one must not lift it for another.
        threadpool_limits(limits=1, user_api="blas")
    return call(*job)
