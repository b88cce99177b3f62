"""Checks of this machine: is everything there that training needs, and what to install if it is not."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Literal

from rich.table import Table
from rich.text import Text

from z1 import machine
from z1.sims.catalogue import INSTALLATIONS
from z1.sims.registry import install_command, registered

Status = Literal["ok", "warning", "missing"]

PYTHON_RANGE = ((3, 11), (3, 13))
TORCH_MINIMUM = (2, 9)
METAWORLD, MUJOCO = "3.1.1", "3.3.0"
METAWORLD_INSTALL = f"pip install metaworld=={METAWORLD} packaging"
ENOUGH_DISK_GIB, LEAST_DISK_GIB = 20.0, 1.0
ENOUGH_MEMORY_GIB = 8.0
RENDER_TIMEOUT_S = 8.0

OWN_INTERPRETER_SIMULATORS = {
    "robosuite": 'pip install robosuite==1.5.2 "mujoco>=3.3,<3.9" in an environment of its own',
    "libero": "pip install hf-libero==0.1.4 in an environment of its own",
}
OPTIONAL_PACKAGES = {
    "wandb": ("logging to Weights & Biases", 'pip install "wandb>=0.19"'),
    "ray": ("training on several machines", 'pip install "ray>=2.40"'),
}
RENDERERS = {
    "egl": "apt-get install --no-install-recommends libegl1 libgl1",
    "osmesa": "apt-get install --no-install-recommends libosmesa6",
}

RENDER_PROGRAM = """
import json, time
import mujoco
from OpenGL import GL
model = mujoco.MjModel.from_xml_string(
    "<mujoco><worldbody><light pos='0 0 3'/><camera name='c' pos='0 -2 1' xyaxes='1 0 0 0 1 2'/>"
    "<geom type='plane' size='2 2 .1'/><geom type='box' size='.3 .3 .3' pos='0 0 .3' rgba='.9 .2 .1 1'/>"
    "</worldbody></mujoco>")
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 64, 64)
seconds = []
for _ in range(5):
    began = time.perf_counter()
    renderer.update_scene(data, 'c')
    image = renderer.render()
    seconds.append(time.perf_counter() - began)
name = GL.glGetString(GL.GL_RENDERER).decode()
spread = int(image.max()) - int(image.min())
print(json.dumps({'ms': 1000 * min(seconds), 'spread': spread, 'renderer': name}), flush=True)
renderer.close()
"""
"""Draws a red box on a plane and prints one line of JSON; run with MUJOCO_GL set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorRow:
    """One check.

    Attributes:
        name: What was checked.
        status: ``ok``, ``warning`` (works, with a limit) or ``missing`` (not there, or does not work).
        detail: What was found.
        fix: What to do about it; empty when there is nothing to do.
        required: Whether simulating and training need it; what is optional may be missing.
    """

    name: str
    status: Status
    detail: str
    fix: str = ""
    required: bool = True


def run_doctor(folder: Path = Path(".")) -> list[DoctorRow]:
    """Runs all checks, in a few seconds.

    Args:
        folder: Where runs would be written; its file system is checked for space.
    """
    with ThreadPoolExecutor(len(RENDERERS)) as pool:
        frames = [pool.submit(render_frame, backend) for backend in RENDERERS]
        rows = [check_python(), *check_torch(), check_cpu(), check_memory(), check_disk(folder), *check_metaworld()]
        rows += check_rendering(dict(zip(RENDERERS, (frame.result() for frame in frames), strict=True)))
    return [*rows, check_video(), *check_other_simulators(), *check_optional_packages()]


def is_healthy(rows: Sequence[DoctorRow]) -> bool:
    """Whether everything required works; what is optional may be missing."""
    return not any(row.required and row.status == "missing" for row in rows)


def doctor_table(rows: Sequence[DoctorRow]) -> Table:
    """The checks for a terminal, the fix under the finding."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        mark, style = _mark(row)
        detail = Text(row.detail)
        if row.fix:
            detail.append(f"\n→ {row.fix}", style="dim" if mark == "optional" else "cyan")
        table.add_row(Text(mark, style=style), Text(row.name), detail)
    return table


def _mark(row: DoctorRow) -> tuple[str, str]:
    if row.status == "missing":
        return ("missing", "bold red") if row.required else ("optional", "dim")
    return (row.status, "yellow") if row.status == "warning" else (row.status, "green")


def check_python() -> DoctorRow:
    """Whether this interpreter is supported."""
    low, high = PYTHON_RANGE
    if low <= sys.version_info[:2] < high:
        return DoctorRow(name="Python", status="ok", detail=platform.python_version())
    wanted = f"{low[0]}.{low[1]} or newer, below {high[0]}.{high[1]}"
    fix = f"make the virtual environment with python{low[0]}.{low[1]}"
    return DoctorRow(name="Python", status="missing", detail=f"{platform.python_version()}; needs {wanted}", fix=fix)


def version_tuple(version: str) -> tuple[int, ...]:
    """Leading numbers of a version: ``2.13.0+cpu`` gives (2, 13, 0)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def installed_version(package: str) -> str | None:
    """Version of an installed package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def check_torch() -> list[DoctorRow]:
    """The version of PyTorch, and the GPUs it can use."""
    version, minimum = installed_version("torch"), ".".join(str(part) for part in TORCH_MINIMUM)
    fix = f'pip install "torch>={minimum}"'
    if version is None:
        return [DoctorRow(name="PyTorch", status="missing", detail="not installed", fix=fix)]
    if version_tuple(version) < TORCH_MINIMUM:
        return [DoctorRow(name="PyTorch", status="missing", detail=f"{version}; needs {minimum} or newer", fix=fix)]
    try:
        devices = machine.gpus()
    except (ImportError, OSError, RuntimeError) as error:
        return [DoctorRow(name="PyTorch", status="missing", detail=f"{version} does not load: {error}", fix=fix)]
    return [DoctorRow(name="PyTorch", status="ok", detail=version), *_gpu_rows(devices)]


def _gpu_rows(devices: Sequence[machine.Gpu]) -> list[DoctorRow]:
    if not devices:
        detail = "none that PyTorch can use; small policies train on the processor, pi0.5 needs a GPU"
        fix = "with an NVIDIA GPU: check nvidia-smi, and install the CUDA build of PyTorch"
        return [DoctorRow(name="GPU", status="warning", detail=detail, fix=fix, required=False)]
    return [
        DoctorRow(
            name=f"GPU {index}",
            status="ok" if gpu.bf16 else "warning",
            detail=f"{gpu.name}, {gpu.memory_gib:g} GiB, {'bfloat16' if gpu.bf16 else 'no bfloat16, so slow'}",
            required=False,
        )
        for index, gpu in enumerate(devices)
    ]


def check_cpu() -> DoctorRow:
    """Cores for the simulator hosts."""
    cores = machine.cores()
    detail = f"{machine.cpu_model()}, {cores} usable core{'' if cores == 1 else 's'}"
    if cores >= 2:
        return DoctorRow(name="processor", status="ok", detail=detail)
    fix = "with one core the simulator and the policy take turns; use sim.hosts 1"
    return DoctorRow(name="processor", status="warning", detail=detail, fix=fix)


def check_memory() -> DoctorRow:
    """Memory for policy and simulators."""
    memory = machine.memory_gib()
    detail = f"{memory:.1f} GiB"
    if memory >= ENOUGH_MEMORY_GIB:
        return DoctorRow(name="memory", status="ok", detail=detail)
    fix = f"{ENOUGH_MEMORY_GIB:g} GiB are comfortable; use fewer hosts (sim.hosts) and live members"
    return DoctorRow(name="memory", status="warning", detail=detail, fix=fix)


def check_disk(folder: Path) -> DoctorRow:
    """Free space where runs are written."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free / machine.GIB
    detail = f"{free:.1f} GiB free at {existing}"
    if free >= ENOUGH_DISK_GIB:
        return DoctorRow(name="disk", status="ok", detail=detail)
    status: Status = "warning" if free >= LEAST_DISK_GIB else "missing"
    fix = "free some space or write to another disk with --out; checkpoints of pi0.5 need the most"
    return DoctorRow(name="disk", status=status, detail=detail, fix=fix)


def check_metaworld() -> list[DoctorRow]:
    """MetaWorld, the MuJoCo it pins, and a package it imports without declaring it."""
    rows = [_pinned("MetaWorld", "metaworld", METAWORLD), _pinned("MuJoCo", "mujoco", MUJOCO)]
    if rows[0].status != "missing" and util.find_spec("packaging") is None:
        detail = "not installed; MetaWorld imports it without saying so"
        rows.append(DoctorRow(name="packaging", status="missing", detail=detail, fix="pip install packaging"))
    return rows


def _pinned(name: str, package: str, expected: str) -> DoctorRow:
    version = installed_version(package)
    if version is None:
        return DoctorRow(name=name, status="missing", detail="not installed", fix=METAWORLD_INSTALL)
    if version != expected:
        detail = f"{version}; z1 is tested with {expected}"
        return DoctorRow(name=name, status="warning", detail=detail, fix=METAWORLD_INSTALL)
    return DoctorRow(name=name, status="ok", detail=version)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What came of drawing a frame.

    Attributes:
        ms: Milliseconds of the fastest of five frames, or None when nothing was drawn.
        renderer: What the GL library calls itself, or why it failed.
    """

    ms: float | None
    renderer: str


def render_frame(backend: str, *, timeout_s: float = RENDER_TIMEOUT_S) -> Frame:
    """Draws a small scene with a GL back end, in a process of its own, since a wrong one can crash.

    Args:
        backend: ``egl`` or ``osmesa``.
        timeout_s: Seconds after which it counts as failed.
    """
    environment = {**os.environ, "MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend, "LP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RENDER_PROGRAM]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return Frame(ms=None, renderer=f"no frame within {timeout_s:g} s")
    try:
        drawn = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        return Frame(ms=None, renderer=failure_reason(done.stderr, done.returncode))
    if drawn["spread"] == 0:
        return Frame(ms=None, renderer=f"{drawn['renderer']} drew an empty image")
    return Frame(ms=float(drawn["ms"]), renderer=str(drawn["renderer"]))


def failure_reason(stderr: str, returncode: int) -> str:
    """The last line of a traceback, shortened, or the exit code."""
    lines = [line.strip() for line in stderr.splitlines() if re.match(r"\s*[\w.]*(Error|Exception)\b", line)]
    return lines[0][:120] if lines else f"exit code {returncode}"


def check_rendering(frames: Mapping[str, Frame]) -> list[DoctorRow]:
    """Whether images can be drawn; one of the back ends is enough.

    Args:
        frames: What ``render_frame`` said of each back end.
    """
    works = any(frame.ms is not None for frame in frames.values())
    rows = []
    for backend, frame in frames.items():
        name = f"rendering, {backend.upper() if backend == 'egl' else 'OSMesa'}"
        if frame.ms is not None:
            detail = f"{frame.ms:.1f} ms for a small frame ({frame.renderer})"
            rows.append(DoctorRow(name=name, status="ok", detail=detail, required=not works))
        else:
            fix = f"Debian, Ubuntu: {RENDERERS[backend]}"
            detail = f"does not work: {frame.renderer}"
            rows.append(DoctorRow(name=name, status="missing", detail=detail, fix=fix, required=not works))
    return rows


def check_video() -> DoctorRow:
    """Whether PyAV can write mp4 files, by writing one."""
    fix = "pip install --force-reinstall av"
    try:
        import numpy as np

        from z1.eval.video import write_mp4

        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            write_mp4(Path(folder) / "clip.mp4", np.zeros((4, 64, 64, 3), dtype=np.uint8), 10)
            milliseconds = 1000 * (time.perf_counter() - began)
    except Exception as error:  # any failure of a native library is the finding itself
        return DoctorRow(name="video", status="missing", detail=f"no mp4 can be written: {error}", fix=fix)
    detail = f"PyAV {installed_version('av')} writes H.264 mp4 ({milliseconds:.0f} ms for a small clip)"
    return DoctorRow(name="video", status="ok", detail=detail)


def check_other_simulators() -> list[DoctorRow]:
    """Simulators besides MetaWorld, which need interpreters of their own."""
    entries = registered()
    rows = []
    for name in sorted(INSTALLATIONS):
        entry = entries.get(name)
        if entry is None:
            detail, fix = "not installed, simulator", install_command(name)
            rows.append(DoctorRow(name=name, status="missing", detail=detail, fix=fix, required=False))
        elif not Path(entry.python).exists():
            detail, fix = f"{entry.python} has gone", install_command(name)
            rows.append(DoctorRow(name=name, status="missing", detail=detail, fix=fix, required=False))
        else:
            version = entry.versions.get(name, "found")
            detail = f"{version} in {entry.folder}; z1 sims doctor tells more"
            rows.append(DoctorRow(name=name, status="ok", detail=detail, required=False))
    return rows + [_optional(name, "simulator", fix) for name, fix in OWN_INTERPRETER_SIMULATORS.items()]


def check_optional_packages() -> list[DoctorRow]:
    """Packages that only some commands need."""
    return [_optional(name, purpose, fix) for name, (purpose, fix) in OPTIONAL_PACKAGES.items()]


def _optional(module: str, purpose: str, fix: str) -> DoctorRow:
    if util.find_spec(module) is not None:
        found = installed_version(module) or "found"
        return DoctorRow(name=module, status="ok", detail=f"{found}, {purpose}", required=False)
    detail = f"not installed here, {purpose}"
    return DoctorRow(name=module, status="missing", detail=detail, fix=fix, required=False)
