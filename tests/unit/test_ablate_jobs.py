"""The jobs of a study: their order, what is skipped, processes that fail or are interrupted, and the plan."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from command_line import z1
from z1.ablate.command import locked
from z1.ablate.job import joined, prepare, train_and_evaluate
from z1.ablate.jobs import USUAL_RATES, Preparation, Run, StudyFolder, actings, jobs_of, usual_rate
from z1.ablate.schedule import Work, next_job, remaining_seconds, run_jobs, tail
from z1.ablate.study import Study, study_from_dict, study_to_dict
from z1.config import ActingConfig, RlConfig, config_to_dict
from z1.errors import ConfigError
from z1.files import write_json
from z1.sims.suites import all_tasks, simulator_of
from z1.train.resume import RL_MAY_CHANGE, check_resume
from z1.train.run_folder import SCHEMA, RunFolder


def study_of(**changes: Any) -> Study:
    tasks = [
        {"task": task, "horizon": 100, "demonstrations": 2, "sft_steps": 30}
        for task in ("metaworld/door-open", "metaworld/lever-pull")
    ]
    variants = [{"name": "flat"}, {"name": "tree", "set": {"rollout.plan": "tree", "rollout.prefix": 6}}]
    data = {"name": "s", "tasks": tasks, "variants": variants, "seeds": [5, 1], "env_step_budget": 6000, **changes}
    return study_from_dict(data)


@dataclass(frozen=True)
class Step:
    """A job for the schedule."""

    name: str
    after: str = ""


def test_seeds_come_one_after_the_other() -> None:
    assert [job.name for job in jobs_of(study_of())] == [
        "prepare metaworld/door-open",
        "prepare metaworld/lever-pull",
        "metaworld/door-open flat seed 5",
        "metaworld/door-open tree seed 5",
        "metaworld/lever-pull flat seed 5",
        "metaworld/lever-pull tree seed 5",
        "metaworld/door-open flat seed 1",
        "metaworld/door-open tree seed 1",
        "metaworld/lever-pull flat seed 1",
        "metaworld/lever-pull tree seed 1",
    ]
    assert {job.after for job in jobs_of(study_of())[2:4]} == {"prepare metaworld/door-open"}


def test_each_seed_may_have_its_own_sft(tmp_path: Path) -> None:
    study = study_of(sft_per_seed=True)
    jobs = jobs_of(study)
    assert [job.name for job in jobs if not job.after] == [
        "prepare metaworld/door-open seed 5",
        "prepare metaworld/lever-pull seed 5",
        "prepare metaworld/door-open seed 1",
        "prepare metaworld/lever-pull seed 1",
    ]
    assert jobs[2].after == "prepare metaworld/door-open seed 5"
    last = jobs[-1]
    assert isinstance(last, Run)
    place = tmp_path / "tasks" / "metaworld-lever-pull" / "seed-1"
    assert StudyFolder(tmp_path).config(study, last).policy == str(place / "sft")


def test_a_job_is_finished_when_its_last_file_is_there(tmp_path: Path) -> None:
    study, folder = study_of(), StudyFolder(tmp_path)
    preparation, run = jobs_of(study)[0], jobs_of(study)[2]
    assert isinstance(run, Run)
    assert not folder.is_finished(study, preparation)
    assert not folder.is_finished(study, run)
    (acting,) = actings(folder, study, preparation.task)
    write_json(folder.sft_evaluation(preparation.task, None, acting), {})
    write_json(tmp_path / "runs" / "metaworld-door-open" / "flat" / "seed-5" / "evaluation.json", {})
    assert folder.is_finished(study, preparation)
    assert folder.is_finished(study, run)
    grown = study_of(variants=[{"name": "flat"}, {"name": "short", "set": {"acting.chunk_length": 4}}])
    assert not folder.is_finished(grown, preparation), "the SFT policy is to be evaluated with the new chunk length too"
    assert folder.is_finished(grown, run)


def test_a_job_waits_for_what_it_needs() -> None:
    waiting = [Step("run", after="prepare"), Step("other")]
    assert next_job(waiting, {"prepare", "run", "other"}) == waiting[1]
    assert next_job(waiting, {"run", "other"}) == waiting[0]
    assert next_job(waiting[:1], {"prepare", "run"}) is None


def perform(jobs: Sequence[Step], scripts: dict[str, str], folder: Path, *, workers: int = 2, **named: Any) -> Work:
    """Runs jobs whose processes execute Python text."""
    return run_jobs(
        jobs,
        workers=workers,
        command=lambda name: [sys.executable, "-c", scripts[name]],
        log=lambda name: folder / f"{name}.log",
        **named,
    )


def test_a_failure_takes_only_what_needs_it(tmp_path: Path) -> None:
    jobs = [Step("a"), Step("b", after="a"), Step("c"), Step("d", after="c")]
    fails = "import sys; print('one'); print(); print('two', file=sys.stderr); sys.exit(3)"
    begun = f"open({str(tmp_path / 'order')!r}, 'a').write("
    scripts = {"a": fails, "b": "", "c": begun + "'c')", "d": begun + "'d')"}
    work = perform(jobs, scripts, tmp_path)
    assert set(work.seconds) == {"c", "d"}
    assert (tmp_path / "order").read_text() == "cd"
    first, second = work.failures
    assert (first.name, first.code, first.reason, first.log) == ("a", 3, "one\ntwo", tmp_path / "a.log")
    assert (second.name, second.code, second.reason) == ("b", None, "needs 'a'")
    assert not work.running


def test_processes_have_one_thread_and_as_many_run_as_there_are_workers(tmp_path: Path) -> None:
    most = 0

    def watch(work: Work) -> None:
        nonlocal most
        most = max(most, len(work.running))

    script = "import os, time; time.sleep(0.3); print(os.environ['OMP_NUM_THREADS'])"
    jobs = [Step(name) for name in "abc"]
    perform(jobs, dict.fromkeys("abc", script), tmp_path, on_change=watch)
    assert most == 2
    assert (tmp_path / "c.log").read_text() == "1\n"


def test_an_interruption_reaches_the_processes(tmp_path: Path) -> None:
    """One ends on the interrupt; it may close its files."""
    script = f"""
import time
try:
    open({str(tmp_path / "begun")!r}, "w").close()
    time.sleep(60)
except KeyboardInterrupt:
    print("closed")
"""

    def interrupt(work: Work) -> None:
        if (tmp_path / "begun").exists():
            raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        perform([Step("a"), Step("b", after="a")], {"a": script}, tmp_path, on_change=interrupt)
    assert time.monotonic() - began < 20
    assert (tmp_path / "a.log").read_text() == "closed\n"


def test_deaf_processes_are_killed_with_their_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("z1.ablate.schedule.STOP_S", 0.2)
    script = f"""
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open({str(tmp_path / "writing")!r}, "w").write(str(child.pid))
import os
os.replace({str(tmp_path / "writing")!r}, {str(tmp_path / "pid")!r})
time.sleep(60)
"""

    def interrupt(work: Work) -> None:
        if (tmp_path / "pid").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        perform([Step("a")], {"a": script}, tmp_path, on_change=interrupt)
    pid = int((tmp_path / "pid").read_text())
    for _ in range(50):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the child of a killed process lives on")


def test_jobs_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    script = f"""
import sys, time
from z1.ablate.job import _end_with_the_parent
_end_with_the_parent()
try:
    open({str(tmp_path / "begun")!r}, "w").close()
    time.sleep(60)
except KeyboardInterrupt:
    sys.exit(7)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE)
    assert process.stdin is not None
    while not (tmp_path / "begun").exists():
        time.sleep(0.05)
    assert process.poll() is None
    process.stdin.close()
    assert process.wait(timeout=30) == 7


def test_the_remaining_time_follows_the_finished_jobs() -> None:
    estimates = {"a": 10.0, "b": 20.0, "c": 20.0, "d": 30.0}
    nothing_yet = Work(total=4)
    assert remaining_seconds(nothing_yet, estimates, workers=2, now=0) == 40
    # a took three times its estimate; b, 60 s, has run for 15 s, so 45 + 60 + 90 are left for two workers
    work = Work(total=4, seconds={"a": 30.0}, running={"b": 100.0})
    assert remaining_seconds(work, estimates, workers=2, now=115) == 97.5
    # the last job cannot be shared
    work = Work(total=4, seconds={"a": 10.0, "b": 20.0, "c": 20.0}, running={"d": 0.0})
    assert remaining_seconds(work, estimates, workers=2, now=5) == 25
    done = Work(total=4, seconds=estimates)
    assert remaining_seconds(done, estimates, workers=2, now=5) == 0


def test_the_end_of_a_log(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("".join(f"{number}\n\n" for number in range(9)))
    assert tail(tmp_path / "log", 2) == "7\n8"
    assert tail(tmp_path / "none") == ""


def evaluation(name: str, successes: dict[int, bool]) -> dict[str, Any]:
    rows = [
        {"policy": 0, "task": "t", "seed": seed, "success": success, "steps": 3, "invalid": False}
        for seed, success in successes.items()
    ]
    return {"schema": "z1.evaluation/1", "policies": [{"name": name, "path": name}], "episodes": rows, "summary": {}}


def test_the_evaluation_of_a_run_holds_its_sft_policy(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", evaluation("x", {1: True, 2: False}))
    write_json(tmp_path / "b.json", evaluation("y", {1: True, 2: True}))
    found: Any = joined(tmp_path / "a.json", tmp_path / "b.json")
    assert found["policies"] == [{"name": "sft", "path": "x"}, {"name": "rl", "path": "y"}]
    assert [(e["policy"], e["seed"], e["success"]) for e in found["episodes"]] == [
        (0, 1, True),
        (0, 2, False),
        (1, 1, True),
        (1, 2, True),
    ]
    assert found["summary"]["paired"][0]["difference"] == 0.5


class Stages:
    """Stands in for the commands: notes what is asked for, and leaves the files that they would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[str, Any, bool]] = []
        self.interrupt = ""
        for name in ("run_demos", "run_sft", "run_rl", "run_eval"):
            monkeypatch.setattr(f"z1.ablate.job.{name}", self.stage(name))

    def stage(self, name: str) -> Callable[..., None]:
        def run(config: Any, *, resume: bool = False) -> None:
            self.asked.append((name, config, resume))
            out = Path(config.out)
            if name in ("run_sft", "run_rl"):
                if resume:
                    may_change = RL_MAY_CHANGE if isinstance(config, RlConfig) else ()
                    check_resume(RunFolder(out).config, config, out, may_change=may_change)
                settings = {"schema": SCHEMA, "kind": name, "config": config_to_dict(config)}
                write_json(out / "config.json", settings)
                write_json(out / "metrics.jsonl", {})
                (out / "checkpoints" / "last").mkdir(parents=True, exist_ok=True)
            if name == self.interrupt:
                raise KeyboardInterrupt
            if name == "run_eval":
                write_json(out, evaluation("x", {1: True}))
            else:
                write_json(out / "policy" / "model.safetensors", {})

        return run


def test_a_preparation_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, folder, stages = study_of(test_episodes=7), StudyFolder(tmp_path), Stages(monkeypatch)
    job = jobs_of(study)[1]
    assert isinstance(job, Preparation)
    stages.interrupt = "run_sft"
    with pytest.raises(KeyboardInterrupt):
        prepare(study, folder, job)
    stages.interrupt = ""
    prepare(study, folder, job)
    place = tmp_path / "tasks" / "metaworld-lever-pull"
    assert [(name, resume) for name, _, resume in stages.asked] == [
        ("run_demos", False),
        ("run_sft", False),
        ("run_sft", True),
        ("run_eval", False),
    ]
    demos, sft, _, test = (config for _, config, _ in stages.asked)
    assert (demos.task, demos.episodes, demos.seed, demos.hosts) == (("metaworld/lever-pull",), 2, 0, 1)
    assert (sft.dataset, sft.out, sft.steps, sft.seed) == ((demos.out,), str(place / "sft"), 30, 0)
    assert (test.policy, test.split, test.episodes, test.sim.horizon) == ((str(place / "sft"),), "test", 7, 100)
    assert folder.is_finished(study, job)
    prepare(study, folder, job)
    assert len(stages.asked) == 4


def test_a_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, folder, stages = study_of(), StudyFolder(tmp_path), Stages(monkeypatch)
    job = jobs_of(study)[6]
    assert isinstance(job, Run)
    write_json(folder.sft_evaluation(job.task, None, ActingConfig()), evaluation("x", {1: False}))
    run = tmp_path / "runs" / "metaworld-door-open" / "flat" / "seed-1"
    write_json(run / "config.json", {})  # interrupted before its first record: begins again
    for stages.interrupt in ("run_rl", "run_eval"):
        with pytest.raises(KeyboardInterrupt):
            train_and_evaluate(study, folder, job)
    stages.interrupt = ""
    train_and_evaluate(study, folder, job)
    assert [(name, resume) for name, _, resume in stages.asked] == [
        ("run_rl", False),
        ("run_rl", True),
        ("run_eval", False),
        ("run_eval", False),
    ]
    rl, test = stages.asked[0][1], stages.asked[-1][1]
    assert (rl.seed, rl.out, rl.policy) == (1, str(run), str(tmp_path / "tasks" / "metaworld-door-open" / "sft"))
    assert (test.policy, test.task, test.acting) == ((str(run),), ("metaworld/door-open",), rl.acting)
    assert folder.is_finished(study, job)
    assert sorted(path.name for path in run.iterdir()) == [
        "checkpoints",
        "config.json",
        "evaluation.json",
        "metrics.jsonl",
        "policy",
    ]


def test_a_study_goes_on_after_its_folder_was_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, folder, stages = study_of(), StudyFolder(tmp_path / "here"), Stages(monkeypatch)
    prepared, job = jobs_of(study)[1], jobs_of(study)[6]
    assert isinstance(prepared, Preparation)
    assert isinstance(job, Run)
    write_json(folder.sft_evaluation(job.task, None, ActingConfig()), evaluation("x", {1: False}))
    stages.interrupt = "run_sft"
    with pytest.raises(KeyboardInterrupt):
        prepare(study, folder, prepared)
    stages.interrupt = "run_rl"
    with pytest.raises(KeyboardInterrupt):
        train_and_evaluate(study, folder, job)
    stages.interrupt = ""
    folder.path.rename(tmp_path / "there")
    moved = StudyFolder(tmp_path / "there")
    prepare(study, moved, prepared)
    train_and_evaluate(study, moved, job)
    assert [name for name, _, resume in stages.asked if resume] == ["run_sft", "run_rl"]
    assert moved.is_finished(study, job)


def test_an_interrupted_probe_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run with probes has records of its own only after the decision."""
    study, folder, stages = study_of(), StudyFolder(tmp_path), Stages(monkeypatch)
    job = jobs_of(study)[6]
    assert isinstance(job, Run)
    write_json(folder.sft_evaluation(job.task, None, ActingConfig()), evaluation("x", {1: False}))
    stages.interrupt = "run_rl"
    with pytest.raises(KeyboardInterrupt):
        train_and_evaluate(study, folder, job)
    run = folder.run(job.task, job.variant, job.seed)
    (run / "metrics.jsonl").unlink()
    shutil.rmtree(run / "checkpoints")
    write_json(run / "probes" / "start" / "policy" / "config.json", {})
    stages.interrupt = ""
    train_and_evaluate(study, folder, job)
    assert [resume for name, _, resume in stages.asked if name == "run_rl"] == [False, True]


def test_nothing_is_given_up_for_a_run_that_cannot_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, folder = study_of(), StudyFolder(tmp_path)
    Stages(monkeypatch)
    job = jobs_of(study)[2]
    assert isinstance(job, Run)
    write_json(folder.sft_evaluation(job.task, None, ActingConfig()), evaluation("x", {1: False}))
    train_and_evaluate(study, folder, job)
    run = RunFolder(folder.run(job.task, job.variant, job.seed))
    run.update_config({**run.config, "seed": 77})
    with pytest.raises(ConfigError, match="seed was 77, is"):
        train_and_evaluate(study_of(env_step_budget=9000, marks=6), folder, job)
    assert folder.evaluation(job).exists()
    assert (run.policy_path / "model.safetensors").exists()


def test_a_finished_run_goes_on_to_a_larger_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, folder, stages = study_of(), StudyFolder(tmp_path), Stages(monkeypatch)
    longer = study_of(env_step_budget=9000, marks=6)
    job = jobs_of(study)[2]
    assert isinstance(job, Run)
    write_json(folder.sft_evaluation(job.task, None, ActingConfig()), evaluation("x", {1: False}))
    train_and_evaluate(study, folder, job)
    assert folder.is_finished(study, job)
    assert not folder.is_finished(longer, job)
    for stages.interrupt in ("run_rl", "run_eval", ""):
        try:
            train_and_evaluate(longer, folder, job)
        except KeyboardInterrupt:
            assert not folder.is_finished(longer, job)
    assert folder.is_finished(longer, job)
    assert folder.is_finished(study, job)
    asked = [(name, resume, getattr(config, "env_step_budget", None)) for name, config, resume in stages.asked]
    assert asked == [
        ("run_rl", False, 6000),
        ("run_eval", False, None),
        ("run_rl", True, 9000),
        ("run_rl", True, 9000),
        ("run_eval", False, None),
        ("run_eval", False, None),
    ]
    train_and_evaluate(study, folder, job)  # a smaller budget leaves what is there


def write_study(path: Path, **changes: Any) -> Path:
    write_json(path, study_to_dict(study_of(**changes)))
    return path


def test_the_plan_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_study(tmp_path / "s.json", marks=2, validation_episodes=10, test_episodes=20)
    assert z1("ablate", path, "--out", tmp_path / "o", "--plan", "--jobs", "2", "--rate", "500") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["1", "2,400", "env", "steps", "prepare", "metaworld/door-open"]
    # 6000 + 3 validations of 10 x 100 + 20 x 100
    assert lines[2].split()[:2] == ["3", "11,000"]
    assert lines[2].endswith("metaworld/door-open flat seed 5")
    # 2 x 2400 + 8 x 11000; divided by 500, with 2 x 30 SFT steps at 3 a second, halved: (185.6 + 20) / 2
    assert lines[-1] == (
        "10 jobs to run: 92,800 env steps at most, 48,000 of them training. About 1\u202fmin 43\u202fs on 2 cores at "
        "500 env steps/s each."
    )
    assert not (tmp_path / "o").exists()
    assert z1("ablate", path, "--out", tmp_path / "o", "--plan") == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(" at 600 env steps/s each.")


def test_folders_are_continued_only_with_the_same_study(tmp_path: Path, refused: Callable[..., str]) -> None:
    path, out = write_study(tmp_path / "s.json"), tmp_path / "o"
    write_study(out / "study.json")
    text = f"{out} exists already; choose another --out, or pass --resume to continue it"
    assert refused("ablate", path, "--out", out) == text
    write_study(path, marks=3, seeds=[5, 1, 7])
    text = (
        f"cannot continue {out} with another study: marks was 4, is 3. Only tasks, variants, seeds and marks at the "
        "same distance may be added; put the rest back, or choose another --out."
    )
    for mode in ("--resume", "--report", "--plan"):
        assert refused("ablate", path, "--out", out, mode) == text
    text = f"{tmp_path} is not the folder of a study: it has no study.json; choose another --out"
    assert refused("ablate", path, "--out", tmp_path, "--resume") == text
    text = f"out is '{tmp_path}/none'; it must be the folder of a study that has begun"
    assert refused("ablate", path, "--out", tmp_path / "none", "--report") == text
    text = "plan and report exclude each other; choose one"
    assert refused("ablate", path, "--out", out, "--report", "--plan") == text
    assert refused("ablate", path, "--out", out, "--jobs", "-1") == "jobs is -1; it must be at least 0"
    assert sorted(p.name for p in out.iterdir()) == ["study.json"]


def test_a_study_runs_once_at_a_time(tmp_path: Path, refused: Callable[..., str]) -> None:
    path, out = write_study(tmp_path / "s.json"), tmp_path / "o"
    with locked(StudyFolder(out)) as lock:
        write_study(out / "study.json")
        text = f"jobs are running in {out}; wait for them, or see the results so far with --report"
        assert refused("ablate", path, "--out", out, "--resume") == text
        assert os.get_inheritable(lock.fileno()) is False
    with (out / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_report_of_nothing_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = write_study(tmp_path / "s.json"), tmp_path / "o"
    write_study(out / "study.json", seeds=[5])
    assert z1("ablate", path, "--out", out, "--report") == 0
    assert "Missing: 8 of 8 runs: metaworld/door-open flat seed 5, " in capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    assert results["schema"] == "z1.ablation/1"
    assert results["marks"] == [0, 1500, 3000, 4500, 6000]
    assert (out / "table.md").exists()
    assert (out / "figure.png").exists()


def test_a_request_to_end_is_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(*arguments: Any, **named: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr("z1.ablate.command.run_jobs", end)
    before = signal.getsignal(signal.SIGTERM)
    path = write_study(tmp_path / "s.json")
    assert z1("ablate", path, "--out", tmp_path / "o") == 130
    assert signal.getsignal(signal.SIGTERM) is before
    assert (tmp_path / "o" / "table.md").exists()


def test_usual_rates_are_those_of_the_simulator() -> None:
    def job(task: str) -> Run:
        study = study_of(tasks=[{"task": task, "horizon": 100, "policy": "p"}])
        (run, *_) = [job for job in jobs_of(study) if isinstance(job, Run)]
        return run

    assert usual_rate(job("robocasa/CloseDrawer")) < usual_rate(job("metaworld/door-open"))
    assert set(USUAL_RATES) == {simulator_of(task) for task in all_tasks()}
