"""Layers side by side: in order, on one BLAS thread each, on a cluster by configuration alone."""

from __future__ import annotations

import os
import threading

import joblib
import numpy as np
import pytest
from distributed import Client, LocalCluster
from threadpoolctl import threadpool_info, threadpool_limits

from onnxcp.linalg.cp import cp
from onnxcp.linalg.parallel import spread
from onnxcp.linalg.svd import channel_svd

KERNELS = [np.random.default_rng(n).standard_normal((12 + n, 9, 3, 3)) for n in range(5)]


def blas_threads(_: int) -> list[int]:
    return [each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"]


def process(_: int) -> int:
    return os.getpid()


def test_results_come_in_order() -> None:
    found = spread(channel_svd, [(kernel, 4) for kernel in KERNELS])
    for kernel, (first, last) in zip(KERNELS, found, strict=True):
        one, two = channel_svd(kernel, 4)
        np.testing.assert_array_equal(first, one)
        np.testing.assert_array_equal(last, two)


def test_nothing_to_do() -> None:
    assert spread(channel_svd, []) == []


def test_jobs_run_at_the_same_time() -> None:
    both = threading.Barrier(2, timeout=30)
    spread(lambda _: both.wait(), [(0,), (1,)], workers=2)


def test_each_on_one_blas_thread_which_is_given_back() -> None:
    with threadpool_limits(limits=2, user_api="blas"):
        before = blas_threads(0)
        seen = spread(blas_threads, [(n,) for n in range(4)], workers=2)
        assert blas_threads(0) == before
    assert all(count == 1 for each in seen for count in each)


def test_an_error_comes_through() -> None:
    with pytest.raises(ValueError, match="rank is 0; it must be at least 1"):
        spread(channel_svd, [(KERNELS[0], 0)])


def test_the_same_call_runs_on_a_dask_cluster() -> None:
    here = spread(cp, [(kernel, 4) for kernel in KERNELS])
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        there = spread(cp, [(kernel, 4) for kernel in KERNELS])
        assert os.getpid() not in spread(process, [(0,), (1,)])
        assert all(count == 1 for each in spread(blas_threads, [(0,)]) for count in each)
    for one, two in zip(here, there, strict=True):
        for factor, other in zip(one.factors, two.factors, strict=True):
            np.testing.assert_array_equal(factor, other)
