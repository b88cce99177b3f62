"""The report of a run folder: complete, self-contained, honest about what is missing."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import av
import numpy as np
import pytest

from z1.errors import RunFolderError
from z1.eval import plots, report
from z1.eval.advice import advise
from z1.eval.format import count, duration, flatten, interval, p_value, percent
from z1.eval.headline import headline
from z1.eval.report import write_report
from z1.eval.stats import summarise
from z1.eval.video import write_mp4
from z1.files import write_json
from z1.train.metrics import MetricsWriter
from z1.train.run_folder import RunFolder

TASKS = ("metaworld/window-open", "metaworld/<script>alert(1)</script>")
POLICIES = [{"name": "SFT", "path": "runs/sft"}, {"name": "RL & co", "path": "runs/rl"}]
VOID = {"meta", "link", "br", "img", "input"}


def write_metrics(folder: Path, records: list[dict]) -> None:
    with MetricsWriter(folder, tensorboard=False) as metrics:
        for record in records:
            metrics.write(record)


def rl_records(iterations: int = 20) -> list[dict]:
    """A plausible RL run."""
    records: list[dict] = [{"iteration": -1, "eval/success": 0.3, "eval/low": 0.18, "eval/high": 0.45}]
    for i in range(iterations):
        rate = 0.3 + 0.6 * (1 - np.exp(-i / 8))
        record = {
            "iteration": i,
            "rollout/success": rate - 0.06,
            "rollout/episodes": 80,
            "rollout/groups_kept": 8,
            "rollout/groups_dropped": 2,
            "update/loss": -0.01 * np.exp(-i / 9),
            "update/approx_kl": 0.004 + 0.001 * np.sin(i),
            "update/clip_fraction": 0.08,
            "update/grad_norm": 0.9 - i / 40,
            "update/epochs_run": 4,
            "cost/env_steps": 6120 * (i + 1),
            "cost/renders": 1600 * (i + 1),
            "cost/policy_calls": 800 * (i + 1),
            "cost/vlm_prefixes": 800 * (i + 1),
            "cost/denoise_steps": 3200 * (i + 1),
            "time/rollout_s": 40.0 * (i + 1),
            "time/update_s": 25.0 * (i + 1),
            "time/eval_s": 5.0 * (i + 1),
            "time/policy_s": 18.0 * (i + 1),
            "time/sim_s": 30.0 * (i + 1),
            "time/render_s": 12.0 * (i + 1),
            "time/total_s": 72.0 * (i + 1),
        }
        if i % 5 == 4:
            record |= {"eval/success": rate, "eval/low": max(rate - 0.13, 0), "eval/high": min(rate + 0.1, 1)}
        records.append(record)
    return records


def evaluation(policies: int = 2, *, split: str = "test", rates: tuple[float, float] = (0.4, 0.8)) -> dict:
    episodes = [
        {"policy": p, "task": task, "seed": s, "success": s < rates[p] * 50, "steps": 60, "invalid": False}
        for p in range(policies)
        for task in TASKS
        for s in range(50)
    ]
    return {
        "schema": "z1.evaluation/1",
        "protocol": {"split": split, "episodes": 50, "denoise_steps": 4, "success": "first success"},
        "policies": POLICIES[:policies],
        "episodes": episodes,
        "summary": summarise(episodes, POLICIES[:policies]),
    }


def add_videos(folder: Path) -> None:
    moving = np.arange(12 * 48 * 48 * 3, dtype=np.uint32).reshape(12, 48, 48, 3).astype(np.uint8)
    for name in ("before.mp4", "after.mp4"):
        write_mp4(folder / "videos" / name, moving, 16)
    rows = [
        {
            "task": TASKS[1],
            "seed": 2000000003,
            "before": "before.mp4",
            "after": "after.mp4",
            "before_success": False,
            "after_success": True,
        }
    ]
    write_json(folder / "videos" / "videos.json", rows)


@pytest.fixture
def rl_run(tmp_path: Path) -> Path:
    """A finished RL run with everything in it."""
    run = RunFolder.create(tmp_path / "rl-run", {"task": TASKS[0], "update": {"epochs": 4}, "wandb": False}, "rl")
    write_metrics(run.path, rl_records())
    write_json(run.evaluation_path, evaluation())
    add_videos(run.path)
    return run.path


class Page(HTMLParser):
    """Checks that elements nest, and collects attributes and text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.feed(source)
        assert self.open == [], self.open

    def handle_starttag(self, tag, attributes):
        self.attributes += [(tag, name, value or "") for name, value in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.attributes += [(tag, name, value or "") for name, value in attributes]

    def handle_endtag(self, tag):
        assert self.open[-1:] == [tag], (self.open, tag)
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split()).replace("\u202f", " ")


def page_of(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def test_report_of_a_whole_rl_run_says_what_changed(rl_run: Path):
    shown = page_of(rl_run).text
    assert "Average success over 2 tasks rose from 40 % to 80 % on 100 held-out test scenes" in shown
    assert "Paired difference +40 points, 95 % interval" in shown
    assert "40 scenes gained, 0 lost, p < 0.0001 (exact McNemar test)" in shown
    assert "122 400" in shown  # 20 iterations of 6120 env steps
    assert "rollouts 13 min 20 s (55.6 %)" in shown  # 800 of 1440 s
    assert "other 0 min 40 s" not in shown
    assert "153 env steps per second of rollout" in shown
    assert "update.epochs" in shown
    assert "first success" in shown
    for title in ("Success per task", "Rollouts", "Learning curve", "Update diagnostics", "What it cost"):
        assert title in shown
    assert "is missing" not in shown


def test_report_loads_nothing(rl_run: Path):
    page = page_of(rl_run)
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href"):
            assert value.startswith(("data:video/mp4;base64,", "#")), (tag, name, value[:60])
        else:
            assert "//" not in value, (tag, name, value)
        assert tag not in ("link", "script", "iframe", "img"), tag
    source = (rl_run / "report.html").read_text(encoding="utf-8")
    assert "@import" not in source
    assert not re.search(r"url\((?!#)", source)
    assert "default-src 'none'" in source


def test_report_escapes_names(rl_run: Path):
    source = write_report(rl_run).read_text(encoding="utf-8")
    assert "<script>" not in source
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in source
    assert "RL &amp; co" in source


def test_bars_and_whiskers_have_the_widths_of_the_numbers(rl_run: Path):
    row = next(r for r in evaluation()["summary"]["per_task"] if r["policy"] == 1)
    source = write_report(rl_run).read_text(encoding="utf-8")
    assert 'class="fill p1" style="width: 80.00%"' in source
    width = 100 * (row["high"] - row["low"])
    assert f'class="whisker" style="left: {100 * row["low"]:.2f}%; width: {width:.2f}%"' in source


def test_videos_stand_side_by_side_with_their_outcomes(rl_run: Path):
    page = page_of(rl_run)
    clips = [value for tag, name, value in page.attributes if (tag, name) == ("video", "src")]
    assert len(clips) == 2
    badges = [v for tag, name, v in page.attributes if name == "class" and v.startswith("badge")]
    assert badges == ["badge bad", "badge good"]
    assert "before failure" in page.text
    assert "after success" in page.text


def test_figures_are_svg_in_theme_colours(rl_run: Path):
    source = write_report(rl_run).read_text(encoding="utf-8")
    figures = re.findall(r"<svg.*?</svg>", source, flags=re.DOTALL)
    assert len(figures) == 2 + 5  # success by experience and by wall-clock; loss, KL, clip fraction, norm, dropped
    for figure in figures:
        ElementTree.fromstring(figure)
        assert "var(--main)" in figure
        assert not re.search(r"(fill|stroke): #", figure)


def test_a_video_beyond_the_budget_or_outside_the_folder_is_noted(rl_run: Path, monkeypatch: pytest.MonkeyPatch):
    index = rl_run / "videos" / "videos.json"
    rows = json.loads(index.read_text())
    index.write_text(json.dumps([*rows, {**rows[0], "before": "../config.json", "after": "gone.mp4"}]))
    monkeypatch.setattr(report, "MAX_VIDEO_BYTES", (rl_run / "videos" / "before.mp4").stat().st_size)
    page = page_of(rl_run)
    assert len([1 for tag, name, _ in page.attributes if (tag, name) == ("video", "src")]) == 1
    assert "Video after.mp4 is left out to keep this page small" in page.text
    assert "Video ../config.json is missing" in page.text
    assert "Video gone.mp4 is missing" in page.text


def test_report_of_an_sft_run_shows_losses(tmp_path: Path):
    run = RunFolder.create(tmp_path / "sft-run", {"steps": 300}, "sft")
    records: list[dict] = [
        {"sft/step": s, "sft/loss": 2 / s, "sft/grad_norm": 1.0, "sft/learning_rate": 1e-3} for s in range(10, 310, 10)
    ]
    records[-1]["sft/validation_loss"] = 0.02
    write_metrics(run.path, records)
    page = page_of(run.path)
    assert "Training loss fell from 0.2 to 0.006667" in page.text
    assert "300 optimizer steps on demonstrations" in page.text
    assert "Flow-matching loss" in page.text
    assert "held-out episodes" in page.text
    assert "There is no evaluation.json yet" in page.text
    assert "No rollout videos were recorded" in page.text
    assert "Success per task" not in page.text
    assert "Evaluate the policy, then improve it with RL" in page.text


def test_report_of_an_unfinished_rl_run_uses_the_validation(tmp_path: Path):
    run = RunFolder.create(tmp_path / "run", {}, "rl")
    write_metrics(run.path, rl_records(7))
    page = page_of(run.path)
    assert "Validation success went from 30 % to 53.6 %, at best 53.6 %" in page.text
    assert "held-out scenes give the honest number" in page.text


def test_report_of_a_bare_metrics_file_notes_what_is_missing(tmp_path: Path):
    write_metrics(tmp_path, [{"iteration": 0, "rollout/success": 0.5}])
    page = page_of(tmp_path)
    assert "No results yet" in page.text
    assert "config.json is missing: the settings of this run are not known" in page.text
    assert "environment.json is missing" in page.text
    assert "Success by iteration" in page.text


def test_report_of_an_evaluation_alone(tmp_path: Path):
    write_json(tmp_path / "evaluation.json", evaluation(1, split="validation"))
    page = page_of(tmp_path)
    assert "Average success over 2 tasks is 40 % on 100 validation scenes" in page.text
    assert "No metrics were logged" in page.text


def test_a_difference_that_may_be_luck_is_not_called_a_rise():
    shown = headline([], evaluation(rates=(0.4, 0.42)))
    assert shown["title"].replace("\u202f", " ") == (
        "Average success over 2 tasks did not change clearly: 40 % to 42 % on 100 held-out test scenes"
    )
    assert shown["tiles"][-1]["tone"] == ""
    assert "fell from 80" in headline([], evaluation(rates=(0.8, 0.4)))["title"]


def test_a_missing_folder_and_an_empty_one_are_refused(tmp_path: Path):
    with pytest.raises(RunFolderError) as error:
        write_report(tmp_path / "gone")
    assert str(error.value) == f"run folder {tmp_path / 'gone'} does not exist; check the path"
    with pytest.raises(RunFolderError) as error:
        write_report(tmp_path)
    assert str(error.value) == (
        f"{tmp_path} holds neither metrics.jsonl nor evaluation.json, so there is nothing to report; "
        "give the folder of --out of a run that has started"
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("evaluation.json", "{", "evaluation.json cannot be read as JSON"),
        (
            "evaluation.json",
            '{"schema": "z1.evaluation/7"}',
            "has schema 'z1.evaluation/7', expected 'z1.evaluation/1'",
        ),
        (
            "evaluation.json",
            '{"schema": "z1.evaluation/1", "protocol": {}, "policies": [], "summary": {}}',
            "lacks summary.per_task, summary.average, summary.paired; run z1 eval again",
        ),
        ("config.json", "[]", "config.json must hold a JSON object"),
        ("videos/videos.json", "{}", "videos.json must hold a list of objects with task and seed"),
    ],
)
def test_damaged_files_are_named(rl_run: Path, name: str, content: str, message: str):
    (rl_run / name).write_text(content)
    with pytest.raises(RunFolderError, match=re.escape(message)):
        write_report(rl_run)


def titles(records: list[dict], result: dict | None = None) -> list[str]:
    return [a.title for a in advise(records, result)]


def test_advice_follows_the_numbers():
    healthy = [{**r, "time/policy_s": 600.0} for r in rl_records()]
    assert titles(healthy, evaluation()) == ["Train longer"]
    assert titles([], evaluation(rates=(0.4, 0.42))) == ["Evaluate on more scenes"]
    assert titles([], evaluation(rates=(0.4, 0.0))) == ["Record more demonstrations of the tasks that never succeed"]
    assert titles([{"iteration": 0, "update/first_ratio_max": 0.01}])[0] == "Report a likelihood mismatch"
    assert titles([{"iteration": i, "update/clip_fraction": 0.5} for i in range(5)])[0] == "Take smaller updates"
    stopped = [{"iteration": i, "update/epochs_run": 4 if i == 0 else 1} for i in range(20)]
    assert titles(stopped)[0] == "Lower the learning rate"
    lost = [{"iteration": 0, "rollout/invalid_members": 9, "rollout/episodes": 71}]
    assert titles(lost)[0] == "Find out why rollouts were lost"
    groups = {"iteration": 0, "rollout/groups_kept": 2, "rollout/groups_dropped": 8}
    assert titles([{**groups, "rollout/success": 0.95}])[0] == "Give the policy something harder"
    assert titles([{**groups, "rollout/success": 0.02}])[0] == "Start from a better policy"
    slow = [{"iteration": 0, "time/rollout_s": 80.0, "time/policy_s": 8.0, "time/total_s": 100.0}]
    assert titles(slow)[0] == "Use more simulator hosts"


def test_advice_on_overfitting_and_on_a_fallen_policy():
    losses = [{"sft/step": i, "sft/loss": 0.1, "sft/validation_loss": v} for i, v in enumerate((0.5, 0.3, 0.4))]
    assert titles(losses)[0] == "Train for fewer steps, or record more demonstrations"
    rates = [{"iteration": i, "eval/success": r, "eval/low": r - 0.1} for i, r in enumerate((0.5, 0.9, 0.6))]
    assert titles(rates)[0] == "Stop earlier, or lower the learning rate"


def test_numbers_as_text():
    assert percent(0.815).replace("\u202f", " ") == "81.5 %"
    assert percent(0.8, unit="") == "80"
    assert percent(-0.125, sign=True, unit="") == "−12.5"
    assert percent(None) == "–"
    assert interval(0.714, 0.882) == "71–88"
    assert interval(-0.02, 0.31, sign=True) == "−2 to +31"
    assert (p_value(0.0321), p_value(1e-9)) == ("p = 0.032", "p < 0.0001")
    assert [duration(s).replace("\u202f", " ") for s in (12.34, 200, 7500)] == ["12.3 s", "3 min 20 s", "2 h 05 min"]
    assert count(1234567).replace("\u202f", " ") == "1 234 567"
    assert flatten({"a": {"b": [1, 2], "c": None}, "d": [{"e": True}], "f": []}) == [
        ("a.b", "1, 2"),
        ("a.c", "not known"),
        ("d[0].e", "yes"),
        ("f", "none"),
    ]
    assert [plots.short_number(v) for v in (0, 0.0004, 1500, 2e6)] == ["0", "0.0004", "1.5k", "2M"]
    assert [plots.time_scale(s)[1] for s in (60, 600, 9000)] == ["seconds", "minutes", "hours"]


@pytest.mark.parametrize("size", [(48, 64), (49, 63)])
def test_mp4_plays_in_browsers(tmp_path: Path, size: tuple[int, int]):
    frames = np.zeros((9, *size, 3), dtype=np.uint8)
    frames[:, :, : size[1] // 2, 0] = 255
    write_mp4(tmp_path / "clip.mp4", frames, 12.5)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 12.5
        decoded = [f.to_ndarray(format="rgb24") for f in container.decode(stream)]
    assert len(decoded) == 9
    assert decoded[0].shape == (size[0] + size[0] % 2, size[1] + size[1] % 2, 3)
    assert decoded[4][20, 5, 0] > 200
    assert decoded[4][20, -5, 0] < 50
    data = (tmp_path / "clip.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # the index comes first: playback starts before the end is read


def test_mp4_refuses_what_is_not_a_video(tmp_path: Path):
    for frames in (np.zeros((0, 8, 8, 3), np.uint8), np.zeros((2, 8, 8, 3), np.float32), np.zeros((8, 8, 3), np.uint8)):
        with pytest.raises(ValueError, match=r"frames must be uint8 \[T, H, W, 3\]"):
            write_mp4(tmp_path / "clip.mp4", frames, 10)
    with pytest.raises(ValueError, match="fps must be positive, got 0"):
        write_mp4(tmp_path / "clip.mp4", np.zeros((1, 8, 8, 3), np.uint8), 0)
    assert list(tmp_path.iterdir()) == []
