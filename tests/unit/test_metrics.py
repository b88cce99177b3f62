"""metrics.jsonl: the catalogue, the writer with its mirrors, and the reader."""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from z1.errors import MissingExtraError, RunFolderError
from z1.train.metrics import GROUPS, METRICS, MetricsWriter, completed, metrics_markdown, read_metrics

ROOT = Path(__file__).parents[2]


def writer(folder: Path, **options) -> MetricsWriter:
    return MetricsWriter(folder, tensorboard=False, **options)


def iterations(folder: Path) -> list[int]:
    return [r["iteration"] for r in read_metrics(folder / "metrics.jsonl")]


def test_docs_page_is_made_from_the_catalogue():
    assert (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8") == metrics_markdown(), (
        "run: python -m z1.train.metrics > docs/metrics.md"
    )


def test_every_metric_is_on_the_page_once_with_unit_and_text():
    page = metrics_markdown()
    for key, metric in METRICS.items():
        assert key.split("/")[0] in GROUPS
        assert page.count(f"| `{key}` | {metric.unit} | {metric.text} |") == 1
        assert metric.unit
        assert not metric.text.endswith(".")


def test_every_key_that_the_code_names_is_in_the_catalogue():
    pattern = re.compile(r'"((?:rollout|update|eval|cost|time|sft)/[a-z_0-9]+)"')
    used = {key for path in (ROOT / "src" / "z1").rglob("*.py") for key in pattern.findall(path.read_text())}
    assert used - METRICS.keys() == set()


def test_records_come_back_in_order_as_plain_numbers(tmp_path: Path):
    with writer(tmp_path) as metrics:
        metrics.write({"iteration": -1, "eval/success": 0.25})
        metrics.write({"iteration": np.int64(0), "update/loss": np.float32(0.5), "rollout/episodes": 80})
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"iteration": -1, "eval/success": 0.25},
        {"iteration": 0, "update/loss": 0.5, "rollout/episodes": 80},
    ]


def test_a_record_is_on_disk_when_write_returns(tmp_path: Path):
    metrics = writer(tmp_path)
    metrics.write({"iteration": 0})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"iteration": 0}\n'


@pytest.mark.parametrize(
    ("record", "kind", "message"),
    [
        ({"iteration": 0, "update/los": 1.0}, ValueError, "metric 'update/los' is not in z1.train.metrics.METRICS"),
        ({"iteration": 0, "update/loss": float("nan")}, ValueError, "metric 'update/loss' is nan"),
        ({"iteration": 0, "update/loss": np.float32("inf")}, ValueError, "metric 'update/loss' is inf"),
        ({"iteration": 0, "update/loss": [1.0]}, TypeError, "must be a number or a string, got list"),
        ({"update/loss": 1.0}, ValueError, "needs 'iteration' or 'sft/step'"),
    ],
)
def test_bad_records_are_refused_and_not_written(tmp_path: Path, record, kind, message):
    metrics = writer(tmp_path)
    with pytest.raises(kind, match=message):
        metrics.write(record)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_completed_counts_iterations_and_sft_steps():
    assert completed({"iteration": -1}) == 0
    assert completed({"iteration": 4}) == 5
    assert completed({"sft/step": 30}) == 30


def test_resume_at_drops_what_will_be_done_again(tmp_path: Path):
    first = writer(tmp_path)
    for iteration in range(-1, 5):
        first.write({"iteration": iteration})
    again = writer(tmp_path, resume=True)
    again.resume_at("iteration", 3)  # the checkpoint has completed iterations 0, 1 and 2
    assert iterations(tmp_path) == [-1, 0, 1, 2]
    again.write({"iteration": 3})
    assert iterations(tmp_path) == [-1, 0, 1, 2, 3]


def test_resume_at_of_sft_steps_keeps_the_completed_one(tmp_path: Path):
    first = writer(tmp_path)
    for step in (10, 20, 30):
        first.write({"sft/step": step, "sft/loss": 1.0})
    writer(tmp_path, resume=True).resume_at("sft/step", 20)
    assert [r["sft/step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [10, 20]


def test_resuming_without_resume_at_is_refused(tmp_path: Path):
    first = writer(tmp_path)
    first.write({"iteration": 4})
    with pytest.raises(ValueError, match=r"record of step 1 after step 5 .* on resume call resume_at first"):
        writer(tmp_path, resume=True).write({"iteration": 0})


def test_a_fresh_run_may_also_say_where_it_begins(tmp_path: Path):
    metrics = writer(tmp_path)
    metrics.resume_at("iteration", 0)
    metrics.write({"iteration": -1, "eval/success": 0.5})
    assert iterations(tmp_path) == [-1]


def test_records_of_an_earlier_run_are_not_overwritten(tmp_path: Path):
    writer(tmp_path).write({"iteration": 0})
    with pytest.raises(RunFolderError) as error:
        writer(tmp_path)
    assert str(error.value) == (
        f"{tmp_path / 'metrics.jsonl'} exists already; choose another --out, or continue it with --resume"
    )
    assert iterations(tmp_path) == [0]


def test_a_torn_last_line_is_dropped_and_writing_goes_on(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 0}\n{"iteration": 1, "update/lo')
    assert read_metrics(path) == [{"iteration": 0}]
    writer(tmp_path, resume=True).write({"iteration": 1})
    assert iterations(tmp_path) == [0, 1]


def test_a_last_line_of_zero_bytes_is_dropped(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"iteration": 0}\n' + bytes(20) + b"\n")
    assert read_metrics(path) == [{"iteration": 0}]


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 0}\nsomething\n{"iteration": 1}\n')
    with pytest.raises(RunFolderError, match=r"metrics.jsonl line 2 is not a JSON object"):
        read_metrics(path)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(RunFolderError) as error:
        read_metrics(tmp_path / "metrics.jsonl")
    assert str(error.value) == f"{tmp_path / 'metrics.jsonl'} is missing: the run has logged nothing yet"


def test_a_full_disk_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    metrics = writer(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFolderError, match="No space left on device; free some space, then continue with --resume"):
        metrics.write({"iteration": 0})


def test_numbers_are_mirrored_to_tensorboard(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsWriter(tmp_path) as metrics:
        metrics.write({"iteration": 0, "update/loss": 0.5})
        metrics.write({"iteration": 1, "update/loss": 0.25})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("update/loss")] == [(1, 0.5), (2, 0.25)]


def test_a_resumed_tensorboard_hides_what_was_done_again(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsWriter(tmp_path) as metrics:
        for iteration in range(4):
            metrics.write({"iteration": iteration, "update/loss": 1.0})
    with MetricsWriter(tmp_path, resume=True) as metrics:
        metrics.resume_at("iteration", 2)
        metrics.write({"iteration": 2, "update/loss": 3.0})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("update/loss")] == [(1, 1.0), (2, 1.0), (3, 3.0)]


class FakeWandb:
    """Records what would be sent to Weights & Biases."""

    def __init__(self) -> None:
        self.inits: list[dict] = []
        self.logged: list[dict] = []
        self.finished = 0

    def init(self, **options):
        self.inits.append(options)
        return SimpleNamespace(
            id=options["id"] or "abc123",
            log=self.logged.append,
            finish=self._finish,
            define_metric=lambda *a, **k: None,
        )

    def _finish(self) -> None:
        self.finished += 1


def test_weights_and_biases_gets_the_numbers_and_continues_the_same_run(tmp_path: Path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with writer(tmp_path, wandb=True, config={"seed": 1}) as metrics:
        metrics.write({"iteration": 0, "update/loss": 0.5})
    with writer(tmp_path, wandb=True, resume=True):
        pass
    assert fake.inits[0]["config"] == {"seed": 1}
    assert fake.inits[0]["name"] == tmp_path.name
    assert [i["id"] for i in fake.inits] == [None, "abc123"]
    assert fake.logged == [{"iteration": 0.0, "update/loss": 0.5, "completed": 1}]
    assert fake.finished == 2
    assert json.loads((tmp_path / "wandb.json").read_text()) == {"id": "abc123"}


def test_missing_weights_and_biases_names_the_command(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError) as error:
        writer(tmp_path, wandb=True)
    assert str(error.value) == (
        'logging to Weights & Biases needs the package wandb; install it: pip install "wandb>=0.19"'
    )
