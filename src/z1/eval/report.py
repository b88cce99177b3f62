"""A run folder as one self-contained HTML page: no network, no files beside it, light and dark, readable on a phone."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

import z1
from z1.errors import RunFolderError
from z1.eval import format as text
from z1.eval import sections
from z1.eval.advice import advise
from z1.eval.headline import headline
from z1.files import atomic_file, read_json
from z1.train.metrics import read_metrics
from z1.train.run_folder import RunFolder

EVALUATION_SCHEMA = "z1.evaluation/1"
MAX_VIDEO_BYTES = 48 * 1024**2
"""Videos beyond this total are left out of the page, which mail and browsers must still open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What a run folder holds.

    Attributes:
        name: Name of the folder.
        kind: The command that ran, or empty.
        config: Settings, or empty.
        environment: Versions and hardware, or empty.
        records: Records of metrics.jsonl, possibly none.
        evaluation: evaluation.json, or None.
        selection: selection.json, or None.
        videos: Rows of videos.json with the clips as data addresses, possibly none.
        notes: What is missing, one sentence each.
    """

    name: str
    kind: str
    config: dict[str, Any]
    environment: dict[str, Any]
    records: list[dict[str, Any]]
    evaluation: dict[str, Any] | None
    selection: dict[str, Any] | None
    videos: list[dict[str, Any]]
    notes: list[str]


def write_report(run_folder: Path) -> Path:
    """Writes report.html into a run folder from the files that are there.

    Args:
        run_folder: Folder of an SFT run, an RL run or an evaluation, finished or not.

    Returns:
        Path of the page.

    Raises:
        RunFolderError: There is no such folder, it holds neither metrics nor an evaluation, one of its files is
            damaged, or the page cannot be written.
    """
    page = render(read_material(run_folder))
    target = RunFolder(run_folder).report_path
    with atomic_file(target) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return target


def read_material(run_folder: Path) -> Material:
    """Reads what the report needs; missing files become notes.

    Raises:
        RunFolderError: As ``write_report``.
    """
    if not run_folder.is_dir():
        raise RunFolderError(f"run folder {run_folder} does not exist; check the path")
    run, notes = RunFolder(run_folder), list[str]()
    if not run.metrics_path.exists() and not run.evaluation_path.exists():
        raise RunFolderError(
            f"{run_folder} holds neither metrics.jsonl nor evaluation.json, so there is nothing to report; "
            "give the folder of --out of a run that has started"
        )
    settings = _optional(run.config_path, "the settings", notes)
    environment = _optional(run.environment_path, "versions and hardware", notes)
    if environment.get("stand_ins"):
        notes.append(f"Simulated with stand-ins: {environment['stand_ins']}.")
    records = read_metrics(run.metrics_path) if run.metrics_path.exists() else []
    if not records:
        notes.append("No metrics were logged, so there are no curves.")
    evaluation = _evaluation(run.evaluation_path, notes)
    if evaluation is not None and evaluation["protocol"].get("stand_ins"):
        notes.append(f"Evaluated with stand-ins: {evaluation['protocol']['stand_ins']}.")
    if evaluation is not None and evaluation["protocol"].get("perturbation"):
        notes.append(f"Evaluated with perturbed images: {evaluation['protocol']['perturbation']}.")
    return Material(
        name=run_folder.resolve().name,
        kind=str(settings.get("kind", "")),
        config=dict(settings.get("config", {})),
        environment=environment,
        records=records,
        evaluation=evaluation,
        selection=run.selection,
        videos=_videos(run.videos_path, notes),
        notes=notes,
    )


def render(material: Material) -> str:
    """The page of some material."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(percent=text.percent, interval=text.interval, p_value=text.p_value, number=text.number)
    return environment.get_template("report.html.j2").render(
        name=material.name,
        kind=material.kind,
        headline=headline(material.records, material.evaluation),
        tasks=sections.task_rows(material.evaluation),
        policies=[p["name"] for p in material.evaluation["policies"]] if material.evaluation else [],
        pairs=sections.pair_rows(material.evaluation),
        selection=sections.selection_rows(material.selection),
        learning=sections.learning_figures(material.records),
        diagnostics=sections.diagnostic_figures(material.records),
        costs=sections.cost_rows(material.records),
        phases=sections.phases(material.records),
        inside=sections.inside_rollouts(material.records),
        videos=material.videos,
        details=_details(material),
        advice=advise(material.records, material.evaluation),
        notes=material.notes,
        version=z1.__version__,
    )


def _optional(path: Path, what: str, notes: list[str]) -> dict[str, Any]:
    if not path.exists():
        notes.append(f"{path.name} is missing: {what} of this run are not known.")
        return {}
    value = read_json(path, RunFolderError)
    if not isinstance(value, dict):
        raise RunFolderError(f"{path} must hold a JSON object; restore it from a copy")
    return value


def _evaluation(path: Path, notes: list[str]) -> dict[str, Any] | None:
    if not path.exists():
        notes.append("There is no evaluation.json yet: success on held-out scenes is not known.")
        return None
    value = read_json(path, RunFolderError)
    schema = value.get("schema") if isinstance(value, dict) else None
    if schema != EVALUATION_SCHEMA:
        raise RunFolderError(f"{path} has schema {schema!r}, expected {EVALUATION_SCHEMA!r}; run z1 eval again")
    lacking = [key for key in ("protocol", "policies", "summary") if key not in value]
    lacking += [f"summary.{key}" for key in ("per_task", "average", "paired") if key not in value.get("summary", {})]
    if lacking:
        raise RunFolderError(f"{path} lacks {', '.join(lacking)}; run z1 eval again")
    return value


def _videos(folder: Path, notes: list[str]) -> list[dict[str, Any]]:
    """Rows of videos.json, the clips inside them; what cannot be shown becomes a note."""
    index = folder / "videos.json"
    if not index.exists():
        notes.append("No rollout videos were recorded.")
        return []
    entries = read_json(index, RunFolderError)
    if not isinstance(entries, list) or not all(isinstance(e, dict) and {"task", "seed"} <= e.keys() for e in entries):
        raise RunFolderError(f"{index} must hold a list of objects with task and seed; remove the folder videos")
    rows, budget = [], MAX_VIDEO_BYTES
    for entry in entries:
        clips = []
        for side in ("before", "after"):
            clip, used = _clip(folder, entry.get(side), budget, notes)
            budget -= used
            if clip:
                clips.append({"label": side, "source": clip, "success": entry.get(f"{side}_success")})
        if clips:
            rows.append({"task": entry["task"], "seed": entry["seed"], "clips": clips})
    return rows


def _clip(folder: Path, name: str | None, budget: int, notes: list[str]) -> tuple[str, int]:
    """A video as a data address (empty if it is left out), and its size in bytes."""
    if name is None:
        return "", 0
    path = folder / name
    if Path(name).name != name or not path.is_file():
        notes.append(f"Video {name} is missing from the folder videos.")
        return "", 0
    size = path.stat().st_size
    if size > budget:
        notes.append(f"Video {name} is left out to keep this page small; it lies in the folder videos.")
        return "", 0
    return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode("ascii"), size


def _details(material: Material) -> list[dict[str, Any]]:
    """Collapsible sections of names and values."""
    protocol = material.evaluation["protocol"] if material.evaluation else {}
    groups = [("Evaluation protocol", protocol), ("Settings", material.config), ("Environment", material.environment)]
    return [{"title": title, "rows": text.flatten(values)} for title, values in groups if values]
