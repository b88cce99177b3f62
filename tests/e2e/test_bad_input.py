"""What users get wrong: one line that says what to do, exit code 2, nothing overwritten, nothing left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from command_line import TASK
from toy import toy_policy
from z1.policy.policy import Policy

Refused = Callable[..., str]


def listing(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder in which a refused command may change nothing; ``given`` in it is for what a test prepares."""
    (tmp_path / "given").mkdir()
    yield tmp_path
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given"]


@pytest.fixture
def data(place: Path, demonstrations: Path) -> Path:
    """A copy of the dataset that may be damaged."""
    return Path(shutil.copytree(demonstrations, place / "given" / "data"))


@pytest.fixture
def policy(place: Path, sft_run: Path) -> Path:
    """A copy of the policy that may be damaged."""
    return Path(shutil.copytree(sft_run / "policy", place / "given" / "policy"))


@pytest.mark.parametrize(
    ("task", "text"),
    [
        (
            "metaworld/windw-open",
            "unknown task 'metaworld/windw-open'; did you mean 'metaworld/window-open' or 'metaworld/window-close' "
            "or 'metaworld/drawer-open'?",
        ),
        (
            "handle-press",
            "unknown task 'handle-press'; did you mean 'metaworld/handle-press' or 'metaworld/handle-press-side'?",
        ),
    ],
)
def test_unknown_tasks(task: str, text: str, refused: Refused, place: Path, sft_run: Path) -> None:
    assert refused("demos", "--task", task, "--out", place / "x") == text
    assert refused("demo", "--task", task, "--out", place / "x") == text
    assert refused("rl", "--policy", sft_run, "--task", task, "--out", place / "x") == text
    assert refused("eval", "--policy", sft_run, "--task", TASK, "--task", task, "--out", place / "x.json") == text
    assert refused("check-sim", task) == text


def test_unknown_cameras(refused: Refused, place: Path, policy: Path) -> None:
    text = "unknown MetaWorld camera 'corner9'; did you mean 'corner' or 'corner4' or 'corner3'?"
    assert refused("demos", "--task", TASK, "--cameras", "corner9", "--out", place / "x") == text
    config = json.loads((policy / "config.json").read_text())
    config["processor"]["cameras"] = ["corner9"]
    (policy / "config.json").write_text(json.dumps(config))
    assert refused("rl", "--policy", policy, "--task", TASK, "--out", place / "x") == text


def damage_info(data: Path) -> str:
    (data / "meta" / "info.json").write_text("{")
    return f"{data}/meta/info.json cannot be read as JSON: Expecting property name enclosed in double quotes: line 1 "


def cut_video(data: Path) -> str:
    (video,) = data.rglob("*.mp4")
    video.write_bytes(video.read_bytes()[:200])
    return f"{video}: expected an mp4 video, it cannot be decoded (Invalid data found when processing input); copy "


def remove_video(data: Path) -> str:
    (video,) = data.rglob("*.mp4")
    video.unlink()
    return f"{video} is missing (episode 0 is in it); copy the whole videos folder"


def cut_table(data: Path) -> str:
    (table,) = (data / "data").rglob("*.parquet")
    table.write_bytes(table.read_bytes()[:100])
    return f"{table}: expected a parquet file, it cannot be read ("


def narrow_stats(data: Path) -> str:
    path = data / "meta" / "stats.json"
    stats = json.loads(path.read_text())
    stats["action"] = {key: value[:3] if len(value) == 4 else value for key, value in stats["action"].items()}
    path.write_text(json.dumps(stats))
    return f"{path}: expected 4 numbers for action, got 3; remove the file to compute it"


def resize_images(size: int) -> Callable[[Path], str]:
    def resize(data: Path) -> str:
        path = data / "meta" / "info.json"
        info = json.loads(path.read_text())
        info["features"]["observation.images.corner2"]["shape"] = [size, size, 3]
        path.write_text(json.dumps(info))
        if size % 16:
            return (
                f"{data} has images of {size} pixels; a new tiny policy needs a multiple of 16, "
                "record with another --image-size"
            )
        (video,) = data.rglob("*.mp4")
        return f"{video}: expected images of ({size}, {size}) pixels as meta/info.json says, got (32, 32); the video "

    return resize


@pytest.mark.parametrize(
    "damage",
    [damage_info, cut_video, remove_video, cut_table, narrow_stats, resize_images(40), resize_images(48)],
    ids=["info", "cut-video", "no-video", "cut-table", "stats", "odd-size", "other-size"],
)
def test_damaged_datasets(damage: Callable[[Path], str], refused: Refused, place: Path, data: Path) -> None:
    text = damage(data)
    assert refused("sft", "--dataset", data, "--out", place / "x").startswith(text)


def test_a_missing_dataset(refused: Refused, place: Path) -> None:
    text = f"dataset folder {place / 'none'} does not exist; give the folder that holds meta, data and videos"
    assert refused("sft", "--dataset", place / "none", "--out", place / "x") == text


def test_training_that_could_not_begin_leaves_no_run_folder(
    refused: Refused, place: Path, demonstrations: Path
) -> None:
    text = "validation_fraction 0.9 leaves no training episode of 3; lower it"
    arguments = ["sft", "--dataset", demonstrations, "--out", place / "x"]
    assert refused(*arguments, "--validation-fraction", "0.9") == text
    text = 'logging to Weights & Biases needs the package wandb; install it: pip install "wandb>=0.19"'
    assert refused(*arguments, "--wandb") == text
    text = "device is 'tpu'; it must be 'cpu', 'cuda' or 'auto'"
    assert refused(*arguments, "--device", "tpu") == text


def cut_weights(policy: Path) -> str:
    path = policy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return f"{path} is damaged: "


def damage_config(policy: Path) -> str:
    (policy / "config.json").write_text("{")
    return f"{policy}/config.json cannot be read as JSON: "


def narrow_policy_stats(policy: Path) -> str:
    path = policy / "config.json"
    config = json.loads(path.read_text())
    stats = config["processor"]["action_stats"]
    config["processor"]["action_stats"] = {k: v[:3] if isinstance(v, list) else v for k, v in stats.items()}
    path.write_text(json.dumps(config))
    return f"{path}: processor.action_dim is 4, but the statistics have 3 dims; they must agree"


def remove_tokenizer(policy: Path) -> str:
    (policy / "tokenizer.model").unlink()
    return f"{policy}/tokenizer.model cannot be read: No such file or directory"


def poison(policy: Path) -> str:
    path = policy / "model.safetensors"
    tensors = load_file(path)
    tensors["action_out.bias"] = torch.full_like(tensors["action_out.bias"], torch.nan)
    save_file(tensors, path)
    return f"actions of row 0 ({TASK}) are NaN or infinite; the policy has diverged"


@pytest.mark.parametrize("damage", [cut_weights, damage_config, narrow_policy_stats, remove_tokenizer, poison])
def test_damaged_policies(damage: Callable[[Path], str], refused: Refused, place: Path, policy: Path) -> None:
    text = damage(policy)
    arguments = ["--episodes", "1", "--sim.hosts", "1"]
    shown = refused("eval", "--policy", policy, "--task", TASK, "--out", place / "x.json", *arguments)
    assert shown.startswith(text)


def test_missing_policies(refused: Refused, place: Path) -> None:
    text = f"policy {place}/none does not exist; give a run folder of z1 sft or z1 rl, or a policy folder"
    for command, out in (("rl", place / "x"), ("eval", place / "x.json")):
        assert refused(command, "--policy", place / "none", "--task", TASK, "--out", out) == text


def test_policies_of_another_robot(refused: Refused, place: Path, demonstrations: Path) -> None:
    other = toy_policy()
    folder = place / "given" / "other"
    other.save(folder)
    arguments = ["sft", "--dataset", demonstrations, "--policy", folder, "--out", place / "x"]
    text = f"{demonstrations} has no camera 'front', which the policy looks through; it has corner2"
    assert refused(*arguments) == text
    processor = replace(other.processor, cameras=("corner2",))
    Policy(other.model, processor, other.tokenizer).save(folder, replace=True)
    assert refused(*arguments) == f"{demonstrations} has 4 state dims; the policy was made for 2"
    run = ["rl", "--policy", folder, "--task", TASK, "--out", place / "x"]
    text = "acting.chunk_length is 8, but the policy predicts 4 env steps; choose at most 4"
    assert refused(*run) == text
    text = "the policy has 2 state dims, but metaworld has 4; choose a policy that was trained on metaworld"
    assert refused(*run, "--acting.chunk-length", "4") == text


def test_chunks_longer_than_the_horizon(refused: Refused, place: Path, sft_run: Path) -> None:
    text = "acting.chunk_length is 9, but the policy predicts 8 env steps; choose at most 8"
    for command, out in (("rl", place / "x"), ("eval", place / "x.json")):
        arguments = ["--policy", sft_run, "--task", TASK, "--out", out, "--acting.chunk-length", "9"]
        assert refused(command, *arguments) == text


def test_simulators_that_do_not_start(refused: Refused, place: Path, sft_run: Path) -> None:
    arguments = ["rl", "--policy", sft_run, "--task", TASK, "--out", place / "x"]
    text = "the interpreter of the simulator hosts, '/nowhere/python', does not exist or cannot be run"
    assert refused(*arguments, "--sim.python", "/nowhere/python") == text
    text = "sim.timeout_s is 0.0; it must be a positive number of seconds"
    assert refused(*arguments, "--sim.timeout-s", "0") == text


def test_what_exists_is_not_overwritten(
    refused: Refused, place: Path, data: Path, policy: Path, demonstrations: Path
) -> None:
    taken = place / "given"
    before = listing(taken)
    text = f"{data} exists already; choose another path, or overwrite it explicitly (overwrite)"
    assert refused("demos", "--task", TASK, "--out", data) == text
    text = f"path {taken} exists already and is not empty; choose another --out, or continue a run with --resume"
    assert refused("sft", "--dataset", data, "--out", taken) == text
    assert refused("rl", "--policy", policy, "--task", TASK, "--out", taken, "--sim.hosts", "1") == text
    text = f"{policy}/config.json exists already; choose another --out, or pass --overwrite"
    assert refused("eval", "--policy", policy, "--task", TASK, "--out", policy / "config.json") == text
    text = f"{taken} exists already; choose another --out, or pass --resume to continue it"
    assert refused("demo", "--out", taken) == text
    assert listing(taken) == before


def test_a_run_folder_is_not_overwritten(refused: Refused, demonstrations: Path, sft_run: Path) -> None:
    before = listing(sft_run)
    text = (
        f"run folder {sft_run} exists already and is not empty; choose another --out, or continue a run with --resume"
    )
    assert refused("sft", "--dataset", demonstrations, "--out", sft_run) == text
    assert refused("rl", "--policy", sft_run, "--task", TASK, "--out", sft_run, "--sim.hosts", "1") == text
    assert listing(sft_run) == before


def test_outputs_that_cannot_be_written(refused: Refused, place: Path, demonstrations: Path, sft_run: Path) -> None:
    file = place / "given" / "file"
    file.write_text("kept")
    text = f"cannot write {file}/x: Not a directory; choose another folder"
    assert refused("demos", "--task", TASK, "--out", file / "x", "--hosts", "1") == text
    text = f"cannot create {file}/x: Not a directory; choose another --out"
    assert refused("sft", "--dataset", demonstrations, "--out", file / "x") == text
    assert refused("rl", "--policy", sft_run, "--task", TASK, "--out", file / "x", "--sim.hosts", "1") == text
    text = f"cannot write {file}/x.json: File exists; choose another --out"
    assert refused("eval", "--policy", sft_run, "--task", TASK, "--out", file / "x.json") == text
    text = f"cannot write {file}/x/demo.json: Not a directory; free some space or choose another folder"
    assert refused("demo", "--out", file / "x") == text
    assert file.read_text() == "kept"


def test_evaluations_that_make_no_sense(refused: Refused, place: Path, sft_run: Path) -> None:
    arguments = ["eval", "--policy", sft_run, "--task", TASK, "--out", place / "x.json"]
    assert refused(*arguments, "--task", TASK) == f"task names {TASK} 2 times; name each task once"
    text = f"{place / 'given'} is a folder; --out names the JSON file to write"
    assert refused("eval", "--policy", sft_run, "--task", TASK, "--out", place / "given") == text


def test_resuming_nothing(refused: Refused, place: Path, sft_run: Path) -> None:
    for command in ("sft", "rl"):
        text = f"run folder {place}/x does not exist; check the path"
        assert refused(command, "--resume", "--out", place / "x") == text
        text = f"{place}/given is not a run folder: it has no config.json; give the folder of --out"
        assert refused(command, "--resume", "--out", place / "given") == text
    assert refused("rl", "--resume", "--out", sft_run) == f"{sft_run} is a run of z1 sft; expected one of z1 rl"


def test_resuming_with_other_settings(refused: Refused, sft_run: Path) -> None:
    before = listing(sft_run)
    text = (
        f"cannot resume {sft_run} with other settings: steps was 60, is 61; ema_decay was 0.0, is 0.5; "
        "mode was 'joint', is 'expert'. "
        "Leave them out to resume with the stored ones, or start a new run with another --out."
    )
    arguments = ["--steps", "61", "--mode", "expert", "--ema-decay", "0.5"]
    assert refused("sft", "--resume", "--out", sft_run, *arguments) == text
    assert listing(sft_run) == before


def test_resuming_from_a_damaged_checkpoint(refused: Refused, place: Path, sft_run: Path) -> None:
    run = Path(shutil.copytree(sft_run, place / "given" / "run"))
    last = run / "checkpoints" / "last"
    optimizer = last / "optimizer.safetensors"
    optimizer.write_bytes(optimizer.read_bytes()[:-10])
    before = listing(run)
    shown = refused("sft", "--resume", "--out", run)
    assert shown.startswith(f"optimizer state in {last} cannot be read: ")
    assert shown.endswith("; use an older checkpoint")
    shutil.rmtree(last)
    del_last = {name: content for name, content in before.items() if not name.startswith("checkpoints/last/")}
    assert refused("sft", "--resume", "--out", run) == f"{last}/state.json is missing"
    assert listing(run) == del_last


def test_reports_of_nothing(refused: Refused, place: Path, data: Path) -> None:
    assert refused("report", place / "none") == f"run folder {place}/none does not exist; check the path"
    text = (
        f"{data} holds neither metrics.jsonl nor evaluation.json, so there is nothing to report; "
        "give the folder of --out of a run that has started"
    )
    assert refused("report", data) == text
