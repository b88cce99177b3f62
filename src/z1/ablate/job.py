"""One job of a study in a process of its own: ``python -m z1.ablate.job FOLDER NAME``. ``z1 ablate`` starts these."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from z1.ablate.jobs import STANDS, Preparation, Run, SharedSft, StudyFolder, actings, jobs_of
from z1.ablate.overrides import demo_config, sft_config
from z1.ablate.study import Study, StudyTask, read_study
from z1.commands import run_demos, run_eval, run_rl, run_sft
from z1.config import EvalConfig, RlConfig
from z1.errors import RunFolderError, Z1Error
from z1.eval.stats import summarise
from z1.files import read_json, write_json
from z1.train.resume import RL_MAY_CHANGE, check_resume
from z1.train.run_folder import RunFolder
from z1.train.selective import START


def main(arguments: list[str]) -> int:
    """Does a job, or what is left of it. A user's mistake is one line on stderr and exit code 2."""
    folder, name = StudyFolder(Path(arguments[0])), arguments[1]
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
    _end_with_the_parent()
    try:
        study = read_study(folder.study_path)
        (job,) = [job for job in jobs_of(study) if job.name == name]
        if isinstance(job, SharedSft):
            train_shared(study, folder, job)
        elif isinstance(job, Preparation):
            prepare(study, folder, job)
        else:
            train_and_evaluate(study, folder, job)
    except Z1Error as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def prepare(study: Study, folder: StudyFolder, job: Preparation) -> None:
    """Demonstrations and SFT, unless the task names a policy, and the SFT policy's success on the test scenes."""
    task = job.task
    if not task.policy and not task.sft_group:
        demonstrate(study, folder, task, job.seed)
        train_sft(study, folder, (task,), Path(folder.policy(task, job.seed)), job.seed)
    reference = next(v for v in study.variants if v.name == study.reference_name)
    config = folder.config(study, Run(task=task, variant=reference, seed=job.seed or study.seeds[0], after=""))
    for acting in actings(folder, study, task):
        out = folder.sft_evaluation(task, job.seed, acting)
        if not out.exists():
            run_eval(_evaluation_config(study, replace(config, acting=acting), folder.policy(task, job.seed), out))


def train_shared(study: Study, folder: StudyFolder, job: SharedSft) -> None:
    """Demonstrations of several tasks and one SFT policy of all of them."""
    for task in job.tasks:
        demonstrate(study, folder, task, job.seed)
    train_sft(study, folder, job.tasks, folder.shared_sft(job.group, job.seed), job.seed)


def demonstrate(study: Study, folder: StudyFolder, task: StudyTask, seed: int | None) -> None:
    """Records a task's demonstrations, unless they are given or there."""
    data = folder.dataset(task, seed)
    if task.demonstrations and not data.exists():  # it appears complete or not at all
        run_demos(demo_config(study, task, seed or 0, out=str(data)))


def train_sft(study: Study, folder: StudyFolder, tasks: tuple[StudyTask, ...], out: Path, seed: int | None) -> None:
    """An SFT run on the demonstrations of some tasks, resumed where it was interrupted."""
    if (out / "policy" / STANDS).exists():
        return
    data = tuple(str(folder.dataset(task, seed)) for task in tasks)
    config = sft_config(study, tasks, seed or 0, datasets=data, out=str(out))
    run_sft(config, resume=_can_resume(out, dataset=list(data)))


def train_and_evaluate(study: Study, folder: StudyFolder, job: Run) -> None:
    """The RL run, resumed where it was interrupted, and its policy's success on the test scenes.

    A run that ended at a smaller budget goes on; what it had reached there is given up.
    """
    config = folder.config(study, job)
    run = Path(config.out)
    alone = run / "evaluation-alone.json"
    if folder.goes_on(study, job):
        _relocate(run, policy=config.policy)
        check_resume(RunFolder(run).config, config, run, may_change=RL_MAY_CHANGE)  # before anything is given up
        for result in (folder.evaluation(job), alone):
            result.unlink(missing_ok=True)
        shutil.rmtree(run / "policy", ignore_errors=True)
    if not (run / "policy" / STANDS).exists():
        run_rl(config, resume=_can_resume(run, policy=config.policy))
    if not alone.exists():
        run_eval(_evaluation_config(study, config, str(run), alone))
    own = job.seed if study.sft_per_seed else None
    before = folder.sft_evaluation(job.task, own, config.acting)
    write_json(folder.evaluation(job), joined(before, alone))
    alone.unlink()


def joined(before: Path, after: Path) -> dict[str, object]:
    """The evaluation of an SFT policy and that of the RL run that began with it as one, schema ``z1.evaluation/1``.

    Args:
        before: Evaluation of the SFT policy.
        after: Evaluation of the RL run's policy, on the same scenes.
    """
    first, second = read_json(before, RunFolderError), read_json(after, RunFolderError)
    evaluation = {
        **second,
        "policies": [{**first["policies"][0], "name": "sft"}, {**second["policies"][0], "name": "rl"}],
        "episodes": [*first["episodes"], *({**episode, "policy": 1} for episode in second["episodes"])],
    }
    evaluation["summary"] = summarise(evaluation["episodes"], evaluation["policies"])
    return evaluation


def _evaluation_config(study: Study, config: RlConfig, policy: str, out: Path) -> EvalConfig:
    """Settings of an evaluation on the test scenes, with the simulator and acting settings of a run."""
    return EvalConfig(
        policy=(policy,),
        task=(config.task,),
        out=str(out),
        episodes=study.test_episodes,
        device=config.device,
        precision=config.precision,
        sim=config.sim,
        acting=config.acting,
    )


def _can_resume(run: Path, **places: Any) -> bool:
    """Whether a run has something to go on from, which it is then told to find in its places; what is left of one that
    was interrupted before is removed.
    """
    folder = RunFolder(run)
    if folder.config_path.exists() and any(part.exists() for part in (folder.last_checkpoint, run / START)):
        _relocate(run, **places)
        return True
    shutil.rmtree(run, ignore_errors=True)
    return False


def _relocate(run: Path, **places: Any) -> None:
    """Tells a run that was begun where the study's own files are now: its folder may be named otherwise, or moved."""
    folder = RunFolder(run)
    folder.update_config({**folder.config, "out": str(run), **places})


def _end_with_the_parent() -> None:
    """Interrupts this process when its standard input ends, which the parent holds open as long as it lives."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
