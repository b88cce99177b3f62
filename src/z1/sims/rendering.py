"""Off-screen rendering of MuJoCo models: one GL context per process, one set of GL objects per model.

Level 1: standard library, numpy and mujoco only, Python 3.10 syntax.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np
from mujoco import gl_context

from z1.errors import RenderError
from z1.sims.adapter import AdapterSettings
from z1.sims.meshes import coarse_copy

_PROBE_XML = """<mujoco><worldbody>
<light pos="0 0 3"/><geom type="plane" size="1 1 .1" rgba="1 0 0 1"/><geom size=".3" pos="0 0 .3" rgba="0 1 0 1"/>
<camera name="probe" pos="0 -1 1" xyaxes="1 0 0 0 1 1"/></worldbody></mujoco>"""
_PROBE = AdapterSettings(simulator="", cameras=(), image_size=32, horizon=0, quality="default")

CAMERA_TURN = 10.0
"""Degrees by which the perturbation ``camera`` turns each camera to its left, about its upright axis, at strength 1."""

_EXCHANGED = (1, 2, 0)
"""Which channel the perturbation ``colours`` shows as red, as green and as blue, at strength 1."""

_MAX_GEOMS = 10_000
_HIDDEN_GROUP = 5
"""A geom group that ``mjvOption`` leaves out by default."""


class GlContext:
    """The GL context of this process; all models are rendered in it.

    A context per model would have to be made current before every call that touches GL, and each switch flushes the
    driver.

    Attributes:
        description: Back end and renderer, for example ``egl: llvmpipe (LLVM 15.0.6, 256 bits)``.
    """

    def __init__(self) -> None:
        """Creates the context and renders one image.

        Raises:
            RenderError: The back end named by ``MUJOCO_GL`` does not work here.
        """
        backend = os.environ.get("MUJOCO_GL", "")
        try:
            self._context = gl_context.GLContext(64, 64)
            self._context.make_current()
            model = mujoco.MjModel.from_xml_string(_PROBE_XML)
            data = mujoco.MjData(model)
            mujoco.mj_forward(model, data)
            image = np.zeros((32, 32, 3), np.uint8)
            probe = ModelRenderer(model, _PROBE)
            probe.render(data, "probe", image)
            probe.close()
            from OpenGL import GL  # type: ignore[import-untyped]

            name = GL.glGetString(GL.GL_RENDERER).decode()
        except Exception as problem:  # PyOpenGL and the drivers raise whatever they like
            raise RenderError(f"MUJOCO_GL={backend} does not work: {type(problem).__name__}: {problem}") from problem
        if image.std() < 1.0:
            raise RenderError(f"MUJOCO_GL={backend} does not work: the image of a test scene has a single colour")
        self.description = f"{backend}: {name}"

    def close(self) -> None:
        """Frees the context; the renderers in it must be closed before."""
        self._context.free()


class ModelRenderer:
    """GL objects of one MuJoCo model in the process's GL context."""

    def __init__(self, model: Any, settings: AdapterSettings, hidden_groups: Sequence[int] = ()) -> None:
        """Uploads the model's meshes and textures.

        Args:
            model: ``mujoco.MjModel``; its visual settings are changed for ``quality="fast"``, and its cameras by a
                perturbation; neither touches its physics.
            settings: How images look: at quality ``fast`` no shadows, reflections, multisampling, and for images up to
                the usual size also no detail of meshes that would not show; and a perturbation.
            hidden_groups: Geom groups that are not drawn, besides those that MuJoCo leaves out by itself.
        """
        self._model = model
        size, strength = settings.image_size, settings.perturbation_strength
        self._exchange = strength if settings.perturbation == "colours" else 0.0
        if settings.perturbation == "camera":
            _turn_cameras(model, CAMERA_TURN * strength)
        self._fast = settings.quality == "fast"
        if self._fast:
            model.vis.quality.shadowsize = 0
            model.vis.quality.offsamples = 0
        self._buffer_size = max(size, 256)
        model.vis.global_.offwidth = self._buffer_size
        model.vis.global_.offheight = self._buffer_size
        self._scene = mujoco.MjvScene(model, maxgeom=_MAX_GEOMS)
        self._option = mujoco.MjvOption()
        for group in hidden_groups:
            self._option.geomgroup[group] = 0
        assert not self._option.geomgroup[_HIDDEN_GROUP]
        self._size = size
        self._usual = _upload(coarse_copy(model, size) if self._fast else model)
        self._large = None if self._fast else self._usual
        self._cameras: dict[str, Any] = {}

    def _camera(self, name: str) -> Any:
        camera = self._cameras.get(name)
        if camera is None:
            camera = mujoco.MjvCamera()
            camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
            camera.fixedcamid = mujoco.mj_name2id(self._model, mujoco.mjtObj.mjOBJ_CAMERA, name)
            assert camera.fixedcamid >= 0, name
            self._cameras[name] = camera
        return camera

    def _out_of_view(self, data: Any, camera: int) -> np.ndarray:
        """bool ``[geoms]``: whether a geom's bounding sphere lies wholly outside a camera's square view."""
        model = self._model
        position = (data.geom_xpos - data.cam_xpos[camera]) @ data.cam_xmat[camera].reshape(3, 3)
        half_angle = np.radians(model.cam_fovy[camera]) / 2
        edge = -position[:, 2] * np.sin(half_angle) + model.geom_rbound
        hidden = (position[:, 2] > model.geom_rbound) | (
            np.abs(position[:, :2]) * np.cos(half_angle) > edge[:, None]
        ).any(1)
        return hidden & (model.geom_type != mujoco.mjtGeom.mjGEOM_PLANE)  # a plane has no bounding sphere

    def _update(self, data: Any, camera: Any) -> None:
        """Fills the scene. Without shadows and reflections, geoms out of view change no pixel: they are left out."""
        model, categories = self._model, mujoco.mjtCatBit.mjCAT_ALL.value
        if not self._fast:
            mujoco.mjv_updateScene(model, data, self._option, None, camera, categories, self._scene)
            return
        groups = model.geom_group.copy()
        model.geom_group[self._out_of_view(data, camera.fixedcamid)] = _HIDDEN_GROUP
        mujoco.mjv_updateScene(model, data, self._option, None, camera, categories, self._scene)
        model.geom_group[:] = groups
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0

    def render(self, data: Any, camera: str, image: np.ndarray) -> None:
        """Renders a camera of the model into uint8 ``[size, size, 3]``, first row at the top of the camera's view."""
        size = image.shape[0]
        assert image.shape == (size, size, 3)
        context = self._context(size)
        self._update(data, self._camera(camera))
        view = mujoco.MjrRect(0, 0, size, size)
        pixels = np.zeros((size, size, 3), np.uint8)  # black, not what was in memory, should GL draw nothing
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, context)
        mujoco.mjr_render(view, self._scene, context)
        mujoco.mjr_readPixels(pixels, None, view, context)
        image[:] = pixels[::-1]
        if self._exchange:
            image[:] = np.rint((1 - self._exchange) * image + self._exchange * image[..., _EXCHANGED])

    def _context(self, size: int) -> Any:
        """The uploaded model for images of a size, with room for them."""
        if self._fast and size <= self._size:
            return self._usual
        if self._large is None:
            self._large = _upload(self._model)
        if size > self._buffer_size:
            mujoco.mjr_resizeOffscreen(size, size, self._large)
            self._buffer_size = size
        return self._large

    def close(self) -> None:
        """Frees the GL objects."""
        self._usual.free()
        if self._large is not None and self._large is not self._usual:
            self._large.free()


def _turn_cameras(model: Any, degrees: float) -> None:
    """Turns every camera of a model about its own upright axis (``cam_mat0``: those that do not turn with a body)."""
    angle = np.radians(degrees)
    turn, matrix = np.array([np.cos(angle / 2), 0.0, np.sin(angle / 2), 0.0]), np.zeros(9)
    mujoco.mju_quat2Mat(matrix, turn)
    for camera in range(model.ncam):
        mujoco.mju_mulQuat(model.cam_quat[camera], model.cam_quat[camera].copy(), turn)
        model.cam_mat0[camera] = (model.cam_mat0[camera].reshape(3, 3) @ matrix.reshape(3, 3)).ravel()


def _upload(model: Any) -> Any:
    return mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
