"""Simulated lives by the hundred: a pool of processes, one for each processor, lives while the tests wait for their results."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest


@pytest.fixture(scope="session")
def pool() -> Iterator[ProcessPoolExecutor]:
    """Processes of their own kind, not forks: what other tests have started in this one is none of theirs."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(processors, mp_context=context, initializer=logging.disable)  # What nodes log about faults is theirs.
    yield executor
    executor.shutdown(cancel_futures=True)


@pytest.fixture
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
