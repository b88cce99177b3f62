"""Coarser meshes for small images: what a camera of few pixels cannot tell apart need not be drawn.

Software rendering costs by vertices, hardly by pixels: MetaWorld's 69,000 triangles make the same effort at 64 pixels
as at 640. Vertices that fall into the same small cell are merged, and the triangles that vanish with it are left out.
Only what is uploaded for drawing changes; the model that is simulated keeps its meshes.

Level 1: standard library, numpy and MuJoCo only, Python 3.10 syntax.

Source: vertex clustering of Rossignac and Borrel, "Multi-resolution 3D approximations for rendering complex scenes"
(1993), with an existing vertex as the representative of each cell.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

CELL_PIXELS_M = 0.64
"""Edge of a cell in metres times the image's size in pixels: 1 cm at 64 pixels, 2.9 mm at 224. A camera that sees a
metre and a half of the scene shows 2.3 cm in one of 64 pixels.
"""

CELLS_PER_EXTENT = 8
"""Cells along the shortest side of a mesh, at least: small parts keep their shape."""


def coarsen(vertices: np.ndarray, faces: np.ndarray, cell: float) -> tuple[np.ndarray, np.ndarray]:
    """Merges the vertices of each cell of a grid.

    Args:
        vertices: float ``[V, 3]``.
        faces: int ``[F, 3]``, vertex numbers; their order says which side is outside.
        cell: Edge of a cell, in the unit of the vertices.

    Returns:
        Numbers of the faces that are left, int64 ``[N]`` in order, and their vertex numbers, int64 ``[N, 3]``. No two
        are the same triangle with the same outside.
    """
    cells = np.floor(vertices / cell).astype(np.int64)
    _, first, inverse = np.unique(cells, axis=0, return_index=True, return_inverse=True)
    merged = first[inverse.reshape(-1)][faces]
    a, b, c = merged.T
    left = np.flatnonzero((a != b) & (b != c) & (a != c))
    turned = (merged[left].argmin(axis=1)[:, None] + np.arange(3)) % 3
    _, distinct = np.unique(np.take_along_axis(merged[left], turned, axis=1), axis=0, return_index=True)
    left = left[np.sort(distinct)]
    return left, merged[left]


def coarse_copy(model: Any, size: int) -> Any:
    """A copy of a model whose meshes suffice for images of a size; for drawing only, never for simulation.

    Args:
        model: ``mujoco.MjModel``; it is not changed.
        size: Height and width of the images in pixels.
    """
    drawn = copy.copy(model)
    for mesh in range(model.nmesh):
        rows = slice(model.mesh_vertadr[mesh], model.mesh_vertadr[mesh] + model.mesh_vertnum[mesh])
        vertices = np.asarray(model.mesh_vert[rows], np.float64)
        start, count = int(model.mesh_faceadr[mesh]), int(model.mesh_facenum[mesh])
        if not count:
            continue
        cell = min(CELL_PIXELS_M / size, max(np.ptp(vertices, axis=0).min(), 1e-4) / CELLS_PER_EXTENT)
        left, faces = coarsen(vertices, np.asarray(model.mesh_face[start : start + count]), cell)
        end = start + len(left)
        drawn.mesh_face[start:end] = faces
        for corners in ("mesh_facenormal", "mesh_facetexcoord"):
            getattr(drawn, corners)[start:end] = getattr(model, corners)[start + left]
        drawn.mesh_facenum[mesh] = len(left)
    return drawn
