"""``check_sim`` passes on MetaWorld, and fails when a promise is broken."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from z1.errors import UnknownNameError
from z1.sims import check
from z1.sims.check import CheckFailed, CheckRow, check_sim, check_table, compare_outcomes
from z1.sims.pool import SimPool, SimSpec
from z1.types import ChunkOutcome, Observations

SPEC = SimSpec(simulator="metaworld")


def printed(rows: list[CheckRow]) -> str:
    text = io.StringIO()
    Console(width=150, file=text).print(check_table(rows, "metaworld/push"))
    return text.getvalue()


def failed(rows: list[CheckRow]) -> set[str]:
    return {row.name for row in rows if not row.passed}


@pytest.mark.parametrize("task", ["metaworld/bin-picking", "metaworld/door-unlock"])
def test_metaworld_keeps_the_contract(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = check_sim(SPEC, task)
    table = printed(rows)
    with capsys.disabled():
        print(f"\n{next(row.detail for row in rows if row.name == 'states are taken and put fast enough')}", end=" ")
    assert failed(rows) == set(), table
    assert len(rows) == 15
    assert "us each" in table
    assert "FAIL" not in table


def test_a_stale_snapshot_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool whose snapshots are always the first one taken of a scene."""
    kept: dict[Any, bytes] = {}
    snapshot = SimPool.snapshot
    monkeypatch.setattr(SimPool, "snapshot", lambda pool, member: kept.setdefault(member.scene, snapshot(pool, member)))
    rows = check_sim(SPEC, "metaworld/push")
    assert {
        "snapshot is exact on the same host",
        "snapshot is exact on another host",
        "snapshot is exact in a new process",
    } <= failed(rows)
    assert "FAIL" in printed(rows)


def test_hosts_that_disagree_and_slow_swaps_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    step_chunk = SimPool.step_chunk

    def step(pool: SimPool, members: list, actions: np.ndarray) -> ChunkOutcome:
        outcome = step_chunk(pool, members, actions)
        if len(pool.host_pids) == 1:
            outcome.observations.images[:, 0, 0, 0] ^= 1
        return outcome

    monkeypatch.setattr(SimPool, "step_chunk", step)
    rows = check_sim(SPEC, "metaworld/push", max_swap_ms=1e-6)
    assert failed(rows) == {
        "one host and two hosts agree",
        "snapshot is exact in a new process",
        "states are taken and put fast enough",
    }
    assert next(row.detail for row in rows if row.name == "one host and two hosts agree") == "images differs"


def test_a_failed_check_is_a_row_not_an_exception() -> None:
    def broken() -> str:
        raise CheckFailed("the images differ")

    row = check._run("name", broken)
    assert (row.name, row.passed, row.detail) == ("name", False, "the images differ")


def test_outcomes_are_compared_bit_by_bit() -> None:
    def outcome(pixel: int = 0, executed: int = 5) -> ChunkOutcome:
        flags = np.zeros(1, np.bool_)
        images = np.full((1, 1, 2, 2, 3), pixel, np.uint8)
        return ChunkOutcome(
            executed=np.array([executed]),
            success=flags,
            truncated=flags,
            invalid=flags,
            observations=Observations(images=images, state=np.zeros((1, 4), np.float32), instructions=("",)),
        )

    assert compare_outcomes(outcome(), outcome()) == ""
    assert compare_outcomes(outcome(), outcome(pixel=1)) == "images"
    assert compare_outcomes(outcome(), outcome(executed=4)) == "executed"


def test_unknown_tasks_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="unknown task 'metaworld/pussh'; did you mean 'metaworld/push'"):
        check_sim(SPEC, "metaworld/pussh")
