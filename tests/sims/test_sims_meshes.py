"""Coarser meshes for small images: what is merged, what stays, and that simulation never sees it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("mujoco")
pytest.importorskip("metaworld")

import mujoco

from z1.sims.meshes import coarse_copy, coarsen
from z1.sims.pool import SimPool
from z1.sims.spec import SimSpec
from z1.types import Scene

CUBE = np.array([[x, y, z] for x in (0.0, 1.0) for y in (0.0, 1.0) for z in (0.0, 1.0)])
CUBE_FACES = np.array(
    [
        *([0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1]),
        *([2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]),
    ]
)


def sphere(rings: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """A unit sphere as a grid of triangles."""
    polar, azimuth = np.meshgrid(np.linspace(0, np.pi, rings), np.linspace(0, 2 * np.pi, rings), indexing="ij")
    vertices = np.stack([np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar)], -1)
    corner = np.arange(rings * rings).reshape(rings, rings)
    a, b, c, d = (part.ravel() for part in (corner[:-1, :-1], corner[:-1, 1:], corner[1:, 1:], corner[1:, :-1]))
    return vertices.reshape(-1, 3), np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])


def test_vertices_that_are_far_apart_stay() -> None:
    left, faces = coarsen(CUBE, CUBE_FACES, 0.4)
    np.testing.assert_array_equal(left, np.arange(12))
    np.testing.assert_array_equal(faces, CUBE_FACES)


def test_a_mesh_within_one_cell_vanishes() -> None:
    left, faces = coarsen(CUBE, CUBE_FACES, 2.0)
    assert len(left) == len(faces) == 0


def test_faces_are_named_by_their_number_and_keep_their_orientation() -> None:
    """Cells of two thirds merge 0.0 and 0.5 along x, not 1.0: the small face vanishes, the other keeps its turn."""
    vertices = np.array([[0.0, 0, 0], [0.5, 0, 0], [1.0, 0, 0], [0, 1.0, 0]])
    left, faces = coarsen(vertices, np.array([[0, 1, 3], [1, 2, 3]]), 2 / 3)
    assert left.tolist() == [1]
    assert faces.tolist() == [[0, 2, 3]]


def test_both_sides_of_a_thin_plate_stay_and_doubles_go() -> None:
    """Top and bottom become the same triangle seen from either side; a copy of the top seen from the same side goes."""
    top = np.array([[0.0, 0, 0.1], [1, 0, 0.1], [0, 1, 0.1]])
    vertices = np.concatenate([top, top - np.array([0, 0, 0.05]), top + np.array([0, 0, 0.01])])
    left, faces = coarsen(vertices, np.array([[0, 1, 2], [5, 4, 3], [7, 8, 6]]), 0.3)
    assert left.tolist() == [0, 1]
    assert faces.tolist() == [[0, 1, 2], [2, 1, 0]]


def test_a_fine_sphere_keeps_its_shape_with_far_fewer_faces() -> None:
    vertices, faces = sphere()
    _, coarse = coarsen(vertices, faces, 0.25)
    assert len(coarse) < len(faces) / 3
    a, b, c = (vertices[coarse[:, corner]] for corner in range(3))
    volume = float((a * np.cross(b, c)).sum() / 6)
    assert abs(volume) == pytest.approx(4 / 3 * np.pi, rel=0.12)


@pytest.fixture(scope="module")
def model() -> Any:
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    return ALL_V3_ENVIRONMENTS["lever-pull-v3"]().model


def arrays(model: Any) -> dict[str, np.ndarray]:
    names = ("mesh_vert", "mesh_face", "mesh_facenum", "mesh_facenormal", "geom_size", "body_inertia", "geom_rbound")
    return {name: np.array(getattr(model, name)) for name in names}


def test_the_simulated_model_is_left_alone(model: Any) -> None:
    before = arrays(model)
    drawn = coarse_copy(model, 64)
    for name, array in arrays(model).items():
        np.testing.assert_array_equal(array, before[name])
    assert drawn.mesh_facenum.sum() < model.mesh_facenum.sum() / 3
    np.testing.assert_array_equal(drawn.body_inertia, before["body_inertia"])


def test_larger_images_keep_more(model: Any) -> None:
    faces = [int(coarse_copy(model, size).mesh_facenum.sum()) for size in (32, 64, 128, 224, 4096)]
    assert faces == sorted(faces)
    assert faces[-1] > 0.95 * model.mesh_facenum.sum()


def test_face_numbers_stay_within_their_mesh(model: Any) -> None:
    drawn = coarse_copy(model, 48)
    for mesh in range(model.nmesh):
        start = drawn.mesh_faceadr[mesh]
        faces = drawn.mesh_face[start : start + drawn.mesh_facenum[mesh]]
        assert faces.min() >= 0
        assert faces.max() < model.mesh_vertnum[mesh]
    assert isinstance(drawn, mujoco.MjModel)


@pytest.mark.parametrize("task", ["lever-pull", "coffee-pull", "peg-insert-side"])
def test_images_hardly_change(task: str) -> None:
    """The same camera at the usual size (coarse) and, seen by a pool of larger images, without any detail left out."""
    images = []
    for size in (64, 256):
        spec = SimSpec(simulator="metaworld", cameras=("corner2", "gripperPOV"), image_size=size)
        with SimPool(spec) as pool:
            member = pool.start([Scene.of_split(f"metaworld/{task}", "train", 3)])[0][0]
            images.append([pool.frames([member], camera, 64)[0].astype(int) for camera in spec.cameras])
    for coarse, fine in zip(*images, strict=True):
        difference = np.abs(coarse - fine)
        assert difference.mean() < 1.0
        assert (difference.max(axis=-1) > 8).mean() < 0.03
        assert coarse.std() > 10
    assert any((coarse != fine).any() for coarse, fine in zip(*images, strict=True))


def test_large_frames_show_every_detail() -> None:
    """A video of a policy that sees 64 pixels is not drawn with its coarse meshes."""
    frames = []
    for size in (64, 256):
        with SimPool(SimSpec(simulator="metaworld", cameras=("corner2",), image_size=size)) as pool:
            member = pool.start([Scene.of_split("metaworld/lever-pull", "train", 3)])[0][0]
            pool.observe([member])
            frames.append(pool.frames([member], "corner2", 224)[0])
    difference = np.abs(frames[0].astype(int) - frames[1])
    assert (difference.max(axis=-1) > 8).mean() < 0.005
