"""``z1 demos`` and ``z1 import``."""

from __future__ import annotations

from z1.commands.base import (
    console,
    progress_bar,
)
from z1.data.importing import ImportConfig, ImportProgress, ImportSummary, import_dataset
from z1.data.record import DemoConfig, DemoSummary, record_demonstrations


def run_demos(config: DemoConfig) -> DemoSummary:
    """``z1 demos``: records scripted experts' demonstrations."""
    with progress_bar("demonstrations", config.episodes * len(config.task)) as (bar, task):
        summary = record_demonstrations(
            config,
            on_progress=lambda p: bar.update(
                task, completed=p.episodes, note=f"{p.frames} frames, {p.failures} failures"
            ),
        )
    failures = sum(summary.failures.values())
    console.print(
        f"Dataset: {summary.path}: {summary.episodes} episodes ({summary.resumed} of them from an interrupted "
        "recording), "
        f"{summary.frames} frames recorded in {summary.seconds:.0f} s; the experts failed in {failures} scenes"
    )
    console.print(f"Next: z1 sft --dataset {summary.path} --recipe tiny --out runs/sft")
    return summary


def _import_note(progress: ImportProgress) -> str:
    return f"{progress.verified} episodes verified" if progress.verified else f"{progress.frames} frames"


def run_import(config: ImportConfig) -> ImportSummary:
    """``z1 import``: others' demonstrations as a dataset."""
    with progress_bar("import", None) as (bar, task):
        summary = import_dataset(
            config,
            on_progress=lambda p: bar.update(task, completed=p.episodes, total=p.total, note=_import_note(p)),
        )
    layout = summary.layout
    for found in summary.verified:
        for line in found.lines():
            console.print(line, soft_wrap=True, markup=False)
    console.print(
        f"Dataset: {summary.path}: {summary.episodes} episodes ({summary.resumed} of them from an interrupted import), "
        f"{summary.frames} frames stored in {summary.seconds:.0f} s; {len(layout.state_names)} state and "
        f"{len(layout.action_names)} action dims, cameras {', '.join(layout.cameras) or 'none'}, "
        f"{layout.height} x {layout.width} pixels",
        soft_wrap=True,
        markup=False,
    )
    for path in summary.assumed:
        console.print(
            f"Note: {path} has no meta/modality.json; its numbers were taken in the order of the published sets",
            soft_wrap=True,
            markup=False,
        )
    console.print(
        f"Next: z1 sft --dataset {summary.path} --recipe pi05 --policy POLICY --out runs/sft "
        "(or --recipe tiny: a new small policy)",
        soft_wrap=True,
        markup=False,
    )
    return summary
