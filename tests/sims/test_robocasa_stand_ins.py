"""Generated stand-ins for RoboCasa's assets, on a made-up checkout with one fixture and one category."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from command_line import z1
from z1.errors import SimulatorError
from z1.sims.robocasa_stand_ins import INSTANCES, object_folders, object_xml, write_robocasa_stand_ins
from z1.sims.stand_in_files import MANIFEST, read_manifest, remove_stand_ins
from z1.sims.stand_in_shapes import axis_box, obj_text, texture_png

FIXTURE = """<mujoco>
  <asset>
    <texture type="2d" name="t" file="visuals/t.png"/>
    <mesh file="visuals/door.obj" name="door" scale="2 2 2"/>
    <mesh file="visuals/unused.obj" name="unused"/>
  </asset>
  <worldbody><body><body name="object">
    <geom type="mesh" mesh="door" pos="1 0 0"/>
    <geom type="box" size="0.1 0.2 0.3" pos="1 0 0" name="door_collision"/>
    <geom type="box" size="9 9 9" name="reg_main"/>
  </body></body></worldbody>
</mujoco>"""
OBJECTS = """OBJ_CATEGORIES = dict(
    mug=dict(types=("drink"), objaverse=dict(scale=2.0, exclude=["mug_%d" % i for i in range(3)])),
    tofu=dict(types=(), aigen=dict()),
    liquor=dict(types=(), objaverse=dict(model_folders=["objaverse/alcohol"])),
)
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    models = tmp_path / "robocasa" / "models"
    for path, text in (
        (models / "assets/fixtures/microwaves/one/model.xml", FIXTURE),
        (models / "assets/fixtures/fixture_registry/wall.yaml", "texture: textures/flat/white.png\n"),
        (models / "objects/kitchen_objects.py", OBJECTS),
        (
            tmp_path / "robocasa/utils/texture_swap.py",
            "\n".join(f'{n}_TEX_NAMES = ["a b.png"]' for n in ("CABINET", "COUNTER_TOP", "FLOOR", "WALL")),
        ),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def vertices(path: Path) -> np.ndarray:
    return np.array([line.split()[1:] for line in path.read_text().splitlines() if line.startswith("v ")], float)


def test_what_is_missing_is_written_listed_and_removed(checkout: Path) -> None:
    assets = checkout / "robocasa/models/assets"
    mine = assets / "fixtures/microwaves/one/visuals/t.png"
    mine.parent.mkdir()
    mine.write_bytes(b"a real texture")
    before = {path for path in checkout.rglob("*") if path.is_file()}
    stand_ins = write_robocasa_stand_ins(checkout)
    assert mine.read_bytes() == b"a real texture"
    assert read_manifest(assets) == stand_ins
    assert {assets / name for name in stand_ins.files} | {assets / MANIFEST} | before == {
        path for path in checkout.rglob("*") if path.is_file()
    }
    names = set(stand_ins.files)
    assert "textures/flat/white.png" in names
    assert "generative_textures/counter/a b.png" in names
    assert sum(name.startswith("objects/objaverse/mug/standin_mug_") for name in names) == INSTANCES
    assert sum(name.startswith("objects/objaverse/alcohol/") for name in names) == INSTANCES
    assert not any("tofu" in name for name in names)
    assert write_robocasa_stand_ins(checkout) == stand_ins  # a second call adds and loses nothing
    assert remove_stand_ins(assets) == len(names)
    assert {path for path in checkout.rglob("*") if path.is_file()} == before
    with pytest.raises(SimulatorError, match="holds no list of stand-ins; nothing was removed"):
        remove_stand_ins(assets)


def test_meshes_are_the_collision_shapes_in_the_meshs_own_units(checkout: Path) -> None:
    write_robocasa_stand_ins(checkout)
    folder = checkout / "robocasa/models/assets/fixtures/microwaves/one/visuals"
    door = vertices(folder / "door.obj")  # scaled by 2 and moved by 1 when shown
    np.testing.assert_allclose(door.max(0), np.array([0.1, 0.2, 0.3]) * 1.002 / 2, atol=1e-5)
    np.testing.assert_allclose(door.min(0), -door.max(0), atol=1e-6)
    assert np.abs(vertices(folder / "unused.obj")).max() == pytest.approx(0.01)


def test_boxes_are_closed_and_face_outwards() -> None:
    lines = obj_text([axis_box((0, 0, 0), (1, 2, 3))]).splitlines()
    corners = np.array([line.split()[1:] for line in lines if line[0] == "v"], float)
    faces = np.array([line.split()[1:] for line in lines if line[0] == "f"], int) - 1
    a, b, c = (corners[faces[:, k]] for k in range(3))
    volume = (np.cross(a, b) * c).sum() / 6
    assert volume == pytest.approx(8 * 1 * 2 * 3)


def test_objects_have_what_robocasa_reads() -> None:
    root = ET.fromstring(object_xml("mug", 0, 2.0))
    body = root.find("worldbody/body")
    assert body is not None
    assert root.find("asset") is not None
    inner = body.find("body[@name='object']")
    assert inner is not None
    geoms = inner.findall("geom")
    assert {geom.get("group") for geom in geoms} == {"0", "1"}
    assert len(geoms) == 2 * 9  # a vessel: things can lie inside
    visual = [geom for geom in geoms if geom.get("group") == "1"]
    assert all((geom.get("contype"), geom.get("conaffinity")) == ("0", "0") for geom in visual)
    sites = {site.get("name"): [float(x) for x in str(site.get("pos")).split()] for site in body.findall("site")}
    assert set(sites) == {"bottom_site", "top_site", "horizontal_radius_site"}
    assert sites["top_site"][2] == -sites["bottom_site"][2] > 0
    assert object_xml("mug", 0, 2.0) != object_xml("mug", 1, 2.0)


def test_textures_are_png_and_differ() -> None:
    assert texture_png("a").startswith(b"\x89PNG\r\n\x1a\n")
    assert texture_png("a") != texture_png("b")


def test_categories_are_read_without_running_robocasa(checkout: Path) -> None:
    assert object_folders(checkout / "robocasa") == {"objaverse/mug": 2.0, "objaverse/alcohol": 1.0}


def test_errors(checkout: Path, tmp_path: Path, refused, capsys: pytest.CaptureFixture[str]) -> None:
    assert "expected a checkout of v0.2" in refused("sims", "stand-ins", "robocasa", "--source", tmp_path / "nowhere")
    assert z1("sims", "stand-ins", "robocasa", "--source", checkout) == 0
    assert "Every result made with them says so." in capsys.readouterr().out
    manifest = checkout / "robocasa/models/assets" / MANIFEST
    manifest.write_text(manifest.read_text().replace('"generator": 1', '"generator": 0'))
    text = refused("sims", "stand-ins", "robocasa", "--source", checkout)
    assert "holds stand-ins of version 0, this z1 writes version 1; remove them first" in text
    manifest.write_text(manifest.read_text().replace('"fixtures/', '"../fixtures/', 1))
    assert "lies outside the folder" in refused("sims", "stand-ins", "robocasa", "--source", checkout, "--remove")
