"""The checks of the machine: what they find, what they advise, and the verdict."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import av
import pytest

from z1 import doctor, machine
from z1.doctor import DoctorRow, Frame, check_rendering, doctor_table, is_healthy, render_frame, run_doctor


def row(status: doctor.Status, *, required: bool = True) -> DoctorRow:
    return DoctorRow(name="thing", status=status, detail="found", fix="do this", required=required)


def fake_versions(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    monkeypatch.setattr(doctor, "installed_version", lambda package: versions.get(package))


def test_only_what_is_required_counts():
    assert is_healthy([row("ok"), row("warning"), row("missing", required=False)])
    assert not is_healthy([row("ok"), row("missing")])


def test_doctor_runs_here_and_names_every_subject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "render_frame", lambda backend: Frame(ms=1.0, renderer="fake"))
    rows = run_doctor(tmp_path)
    names = [r.name for r in rows]
    assert names[:2] == ["Python", "PyTorch"]
    for name in ("processor", "memory", "disk", "MetaWorld", "MuJoCo", "rendering, EGL", "rendering, OSMesa", "video"):
        assert name in names
    assert names[-5:] == ["robocasa", "robosuite", "libero", "wandb", "ray"]
    assert all(r.status == "ok" or r.fix for r in rows), rows


def test_a_real_frame_is_drawn_or_the_reason_is_told():
    pytest.importorskip("mujoco")
    frames = {backend: render_frame(backend) for backend in doctor.RENDERERS}
    for frame in frames.values():
        assert frame.renderer
        assert frame.ms is None or 0 < frame.ms < 5000
    if all(frame.ms is None for frame in frames.values()):
        pytest.skip("no GL library on this machine")


def test_one_renderer_is_enough():
    good, bad = Frame(ms=9.0, renderer="llvmpipe"), Frame(ms=None, renderer="ImportError: no EGL")
    assert is_healthy(check_rendering({"egl": good, "osmesa": bad}))
    rows = check_rendering({"egl": bad, "osmesa": bad})
    assert not is_healthy(rows)
    assert [r.fix for r in rows] == [
        "Debian, Ubuntu: apt-get install --no-install-recommends libegl1 libgl1",
        "Debian, Ubuntu: apt-get install --no-install-recommends libosmesa6",
    ]
    assert rows[0].detail == "does not work: ImportError: no EGL"


def test_a_renderer_that_hangs_or_draws_nothing_does_not_count(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "RENDER_PROGRAM", "import time; time.sleep(30)")
    assert render_frame("egl", timeout_s=0.3) == Frame(ms=None, renderer="no frame within 0.3 s")
    monkeypatch.setattr(doctor, "RENDER_PROGRAM", 'print(\'{"ms": 1, "spread": 0, "renderer": "blind"}\')')
    assert render_frame("egl") == Frame(ms=None, renderer="blind drew an empty image")
    monkeypatch.setattr(doctor, "RENDER_PROGRAM", "raise ImportError('no libEGL')")
    assert render_frame("egl") == Frame(ms=None, renderer="ImportError: no libEGL")
    monkeypatch.setattr(doctor, "RENDER_PROGRAM", "import os; os._exit(3)")
    assert render_frame("egl") == Frame(ms=None, renderer="exit code 3")


def test_the_renderer_is_asked_for_by_environment(monkeypatch: pytest.MonkeyPatch):
    asked = {}

    def run(command, *, env, **_):
        asked.update(env)
        return SimpleNamespace(stdout='{"ms": 2.5, "spread": 9, "renderer": "x"}\n', stderr="", returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    assert render_frame("osmesa") == Frame(ms=2.5, renderer="x")
    assert (asked["MUJOCO_GL"], asked["PYOPENGL_PLATFORM"]) == ("osmesa", "osmesa")


@pytest.mark.parametrize(
    ("version", "status", "detail"),
    [
        ((3, 10, 9), "missing", "needs 3.11 or newer, below 3.13"),
        ((3, 11, 0), "ok", ""),
        ((3, 12, 4), "ok", ""),
        ((3, 13, 0), "missing", "needs 3.11"),
    ],
)
def test_python_range(monkeypatch: pytest.MonkeyPatch, version, status, detail):
    monkeypatch.setattr(doctor, "sys", SimpleNamespace(version_info=version, executable=sys.executable))
    found = doctor.check_python()
    assert found.status == status
    assert detail in found.detail


def test_torch_missing_old_and_new(monkeypatch: pytest.MonkeyPatch):
    fake_versions(monkeypatch, torch=None)
    assert doctor.check_torch()[0].fix == 'pip install "torch>=2.9"'
    fake_versions(monkeypatch, torch="2.8.1+cu126")
    assert doctor.check_torch()[0].detail == "2.8.1+cu126; needs 2.9 or newer"
    fake_versions(monkeypatch, torch="2.10.0")
    assert doctor.check_torch()[0].status == "ok"


def test_gpus_with_and_without_bfloat16(monkeypatch: pytest.MonkeyPatch):
    fake_versions(monkeypatch, torch="2.9.0")
    new = machine.Gpu(name="New", memory_gib=24.0, bf16=True)
    old = machine.Gpu(name="Old", memory_gib=8.0, bf16=False)
    monkeypatch.setattr(machine, "gpus", lambda: [new, old])
    rows = doctor.check_torch()[1:]
    assert [(r.name, r.status) for r in rows] == [("GPU 0", "ok"), ("GPU 1", "warning")]
    assert rows[0].detail == "New, 24 GiB, bfloat16"
    monkeypatch.setattr(machine, "gpus", list)
    assert doctor.check_torch()[1].status == "warning"


def test_metaworld_missing_and_with_another_mujoco(monkeypatch: pytest.MonkeyPatch):
    fake_versions(monkeypatch)
    assert [(r.status, r.fix) for r in doctor.check_metaworld()] == [
        ("missing", "pip install metaworld==3.1.1 packaging")
    ] * 2
    fake_versions(monkeypatch, metaworld="3.1.1", mujoco="4.0.0")
    rows = doctor.check_metaworld()
    assert [r.status for r in rows[:2]] == ["ok", "warning"]
    assert rows[1].detail == "4.0.0; z1 is tested with 3.3.0"


def test_a_missing_packaging_module_is_told(monkeypatch: pytest.MonkeyPatch):
    fake_versions(monkeypatch, metaworld="3.1.1", mujoco="3.3.0")
    monkeypatch.setattr(doctor.util, "find_spec", lambda module: None)
    assert doctor.check_metaworld()[2].fix == "pip install packaging"


@pytest.mark.parametrize(("free", "status"), [(100, "ok"), (5, "warning"), (0.5, "missing")])
def test_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free, status):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=free * machine.GIB))
    found = doctor.check_disk(tmp_path / "not" / "yet")
    assert found.status == status
    assert found.detail == f"{free:.1f} GiB free at {tmp_path}"


def test_small_machines_get_a_warning(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "cores", lambda: 1)
    monkeypatch.setattr(machine, "memory_gib", lambda: 3.0)
    assert doctor.check_cpu().status == doctor.check_memory().status == "warning"
    assert "1 usable core" in doctor.check_cpu().detail


def test_a_pyav_without_h264_is_found(monkeypatch: pytest.MonkeyPatch):
    assert doctor.check_video().status == "ok"
    monkeypatch.setattr(av, "codecs_available", set())
    found = doctor.check_video()
    assert (found.status, found.required) == ("missing", True)
    assert "has no H.264 encoder" in found.detail


def test_table_marks_required_and_optional_gaps_differently(capsys: pytest.CaptureFixture[str]):
    from rich.console import Console

    rows = [row("ok"), row("missing"), row("missing", required=False), row("warning")]
    Console(width=80).print(doctor_table(rows))
    marks = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "found" in line]
    assert marks == ["ok", "missing", "optional", "warning"]


def test_memory_respects_a_container_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    limit = tmp_path / "memory.max"
    limit.write_text(f"{machine.GIB // 2}\n")
    monkeypatch.setattr(machine, "CGROUP_LIMITS", (limit,))
    assert machine.memory_gib() == 0.5
    limit.write_text("max\n")
    assert machine.memory_gib() > 0.5
