"""Pools shared by the tests of a file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sims_helpers import SPEC

from z1.sims.pool import SimPool


@pytest.fixture(scope="module")
def pool() -> Iterator[SimPool]:
    """One host."""
    with SimPool(SPEC, 1) as pool:
        yield pool


@pytest.fixture(scope="module")
def two_hosts() -> Iterator[SimPool]:
    """Two hosts."""
    with SimPool(SPEC, 2) as pool:
        yield pool
