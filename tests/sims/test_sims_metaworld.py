"""The MetaWorld adapter from within: why its restore is as it is, its images, its experts, broken physics."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sims_helpers import SPEC

from z1.sims.pool import SimPool

SCRIPT = Path(__file__).with_name("metaworld_in_process.py")
SOURCE = Path(__file__).parents[2] / "src"
TASKS = ("assembly", "door-lock", "pick-place", "hammer")


@pytest.fixture(scope="module")
def findings() -> dict[str, Any]:
    """What the script printed, under the GL back end that a pool chooses."""
    with SimPool(SPEC) as pool:
        gl = pool.info.renderer.split(":")[0]
    environment = {**os.environ, "MUJOCO_GL": gl, "PYTHONPATH": str(SOURCE), "LP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("task", TASKS)
def test_the_restore_is_exact_and_needs_each_of_its_steps(findings: dict[str, Any], task: str) -> None:
    found = findings["restores"][task]
    assert found["exact"] == {"pixels": True, "observations": True}
    assert found["no second mj_setState"]["observations"] is False
    assert found["mjSTATE_FULLPHYSICS"]["observations"] is False
    assert found["no mj_forward"] == {"pixels": False, "observations": True}


def test_episodes_are_those_of_metaworld_itself(findings: dict[str, Any]) -> None:
    assert findings["plain env"] == dict.fromkeys(("bin-picking", "door-lock", "reach-wall", "stick-pull"), True)


def test_images_are_upright(findings: dict[str, Any]) -> None:
    """A camera whose up direction points down in the world is shown turned by 180 degrees; the others are not."""
    cameras = findings["cameras"]
    assert len(cameras) == 7
    for camera, row in cameras.items():
        assert row["turned"] == (row["up"] < -0.1), camera
        assert 60 < row["brightness"] < 200, camera
    assert cameras["corner2"]["turned"]
    assert not cameras["gripperPOV"]["turned"]


def test_leaving_out_what_is_out_of_view_changes_no_pixel(findings: dict[str, Any]) -> None:
    assert all(row["culling is exact"] for row in findings["cameras"].values())
    assert findings["cameras"]["gripperPOV"]["culled"] > 30


def test_images_are_those_of_the_usual_renderer(findings: dict[str, Any]) -> None:
    """Bit for bit above the usual size of 64 pixels; at it, meshes are drawn with less detail."""
    assert findings["renderer"]["large"] == {"same": True, "mean": 0.0}
    assert findings["renderer"]["usual"]["same"] is False
    assert findings["renderer"]["usual"]["mean"] < 1.0


def test_moving_an_object_changes_images_but_not_the_state(findings: dict[str, Any]) -> None:
    assert findings["moved object"] == {"state": False, "observation": True, "image": True}


def test_experts_cannot_write_into_the_observation(findings: dict[str, Any]) -> None:
    assert findings["experts"] == {"plain": True, "adapter": False}


@pytest.mark.parametrize("kind", ["NaN", "huge"])
def test_broken_physics_is_noticed_and_leaves_no_trace(findings: dict[str, Any], kind: str) -> None:
    assert findings["recovery"][kind] == "MuJoCo met NaN, infinite or huge values"
    assert findings["recovery"][f"{kind}, then restored"] is True
