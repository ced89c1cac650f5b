"""Whole trainings, small: files, repeatability, resuming after a kill, shared pre-training."""

import csv
import dataclasses
import itertools
import json
import math
import os
import shlex
import signal
import sys
import time

import pytest
import torch
from checkout import inductor
from preloaded import run_command
from processes import started, wait_until
from tiny import TINY, TINY_VOLUMES

from tcseg.data import Split, labelled_subset, load_dataset, make_split, save_splits
from tcseg.errors import DataError, RunError, RunFinished, RunStopped
from tcseg.method.losses import LOSSES
from tcseg.method.recipes import recipe
from tcseg.method.transforms import Compose, Intensity
from tcseg.method.variants import METHODS
from tcseg.runs.folder import RunFolder
from tcseg.training.batches import sample
from tcseg.training.schedule import consistency_weight, learning_rate
from tcseg.training.session import rehearse, train
from tcseg.training.state import pretrained_weights
from tcseg.training.trainer import SUPERVISED, Trainer

pytestmark = pytest.mark.usefixtures("phantoms_made_once")


def slow(value):
    """Return a value for one more case of a test of minutes."""
    return pytest.param(value, marks=pytest.mark.slow)


@pytest.fixture
def finished(finished_run):
    """One finished run of TINY: its folder and what `train` returned."""
    return finished_run


@pytest.fixture(autouse=True)
def no_panels(finished_run, monkeypatch):
    """Spare the picture of test cases, a third of a tiny training: `finished_run` has one."""
    monkeypatch.setattr("tcseg.training.session.save_panel", lambda *_: None)


def weights(out):
    """All that training changed: the network that was kept, and where training itself ended.

    What is kept may be from an early step, the best one; the end depends on every step.
    """
    checkpoint = RunFolder(out).load_checkpoint()
    parts = {"kept": RunFolder(out).load_weights()}
    parts |= {name: checkpoint[name] for name in ("network", "best", "pretrained")}
    return {f"{part}.{name}": value for part, all in parts.items() for name, value in all.items()}


def assert_same_weights(one, other):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


# ------------------------------------------------------------------------------------ records


@pytest.mark.parametrize("method", METHODS)
def test_no_labelled_image_is_in_the_unlabelled_pool(method):
    dataset = load_dataset("phantom", size=32)
    split = make_split(dataset, 0)
    labelled = labelled_subset(split, 10)
    pool = METHODS[method].unlabelled(split, labelled)
    assert not set(pool) & set(labelled)
    assert len(set(pool)) == len(pool)
    expected = {"baseline": 0, "suptc": 0, "semitc+": 90 + 20 + 40}
    assert len(pool) == expected.get(method, 90)
    assert bool(set(pool) & set(split.test)) == (method == "semitc+")


# ------------------------------------------------------------------------------------ batches


@pytest.mark.parametrize(("method", "labelled"), [("semitc", 2), ("baseline", 4), ("suptc", 4)])
def test_a_batch_holds_labelled_images_first(tmp_path, method, labelled):
    trainer = Trainer(dataclasses.replace(TINY, method=method), RunFolder(tmp_path))
    images, labels, _, _ = trainer.batches.draw(trainer.method)
    assert (len(images), len(labels)) == (4, labelled)
    known = trainer.dataset.masks[trainer.labelled]
    assert all((known == label).flatten(1).all(1).any() for label in labels)
    pool = trainer.dataset.image_batch(trainer.unlabelled) if labelled == 2 else images[:0]
    assert all((pool == image).flatten(1).all(1).any() for image in images[labelled:])


def test_no_image_comes_twice_before_each_came_once():
    labelled = [9, 4, 7, 2, 5]
    drawn = sample(torch.tensor(labelled), 7, torch.Generator().manual_seed(0)).tolist()
    assert set(drawn[:5]) == set(labelled)
    assert len(set(drawn[5:])) == 2


@pytest.mark.parametrize("method", METHODS)
def test_only_labels_of_labelled_images_are_learnt_from(tmp_path, method):
    def weights_after(spoil):
        trainer = Trainer(dataclasses.replace(TINY, method=method), RunFolder(tmp_path))
        unlabelled = sorted(set(range(len(trainer.dataset))) - set(trainer.labelled))
        masks, images = trainer.dataset.masks.clone(), trainer.dataset.images.clone()
        spoilt = dataclasses.replace(trainer.dataset, masks=masks, images=images)
        trainer.batches.dataset = spoilt
        spoil(spoilt, unlabelled)
        for _ in range(2):
            trainer.step(trainer.method)
        return torch.cat([p.detach().flatten() for p in trainer.network.parameters()])

    def spoil_nothing(dataset, unlabelled):
        pass

    def spoil_masks(dataset, unlabelled):
        dataset.masks[unlabelled] ^= 31

    def spoil_images(dataset, unlabelled):
        dataset.images[unlabelled] ^= 255

    clean = weights_after(spoil_nothing)
    assert torch.equal(weights_after(spoil_masks), clean)
    assert torch.equal(weights_after(spoil_images), clean) == (not METHODS[method].pool)


@pytest.mark.parametrize("method", ["baseline", "semitc"])
def test_data_that_do_not_fit_are_streamed(tmp_path, method, monkeypatch):
    def trained():
        trainer = Trainer(dataclasses.replace(TINY, method=method), RunFolder(tmp_path))
        terms = trainer.step(trainer.method)
        trainer.validate()
        return trainer.dataset, terms["loss"], trainer.state.best_miou

    resident = trained()
    monkeypatch.setattr("tcseg.data.dataset.fits", lambda size, device: False)
    streamed = trained()
    assert resident[0].streams_to is None
    assert streamed[0].streams_to == torch.device("cpu")
    assert streamed[1:] == resident[1:]
    # A device of its own for batches, though one without values.
    dataset = resident[0].to("meta")
    assert dataset.images.device.type == dataset.masks.device.type == "cpu"
    for batch in (dataset.image_batch([0, 1]), dataset.mask_batch(torch.tensor([2, 0]))):
        assert (batch.device.type, len(batch)) == ("meta", 2)
    assert dataset.target_batch([1]).device == dataset.device == torch.device("meta")


# ------------------------------------------------------------------------------------ files


def test_a_run_leaves_its_files(finished):
    out, summary = finished
    names = {path.name for path in out.iterdir()}
    assert {
        "config.toml",
        "metrics.csv",
        "checkpoint.pt",
        "model.safetensors",
        "summary.json",
        "test.png",
    } <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert json.loads((out / "summary.json").read_text()).keys() == summary.keys()
    for name in ("data", "size", "method", "labelled", "split", "seed", "steps", "seconds"):
        assert name in summary
    for part in ("test", "validation", "pretrained_test"):
        assert 0 <= summary[part]["miou"] <= 1
        assert len(summary[part]["iou"]) == len(summary[part]["iou_std"]) == 5
        assert len(summary[part]["macd_mm"]) == 5


def test_figures_are_logged_by_step(finished):
    with open(finished[0] / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    losses = {int(row["step"]): row for row in rows if row["loss"]}
    assert list(losses) == [2, 4, 6, 8, 10, 12]  # before every checkpoint
    assert losses[6]["phase"] == "pre-training"
    assert float(losses[6]["consistency"]) == 0
    assert losses[12]["phase"] == "semitc"
    assert float(losses[12]["consistency"]) > 0
    validated = [int(row["step"]) for row in rows if row["validation_miou"]]
    assert validated == [3, 6, 6, 9, 12]  # at 6 once more, as the start of the method


def test_one_seed_gives_the_same_weights_and_another_does_not(finished, tmp_path):
    train(TINY, tmp_path / "again", False)
    assert_same_weights(finished[0], tmp_path / "again")
    train(dataclasses.replace(TINY, seed=1), tmp_path / "other", False)
    with pytest.raises(AssertionError):
        assert_same_weights(finished[0], tmp_path / "other")


# ------------------------------------------------------------------------------------ resuming


def hang_after(step, out):
    """Train, but for ever stop right after the checkpoint of a step."""
    save = Trainer.save

    def then_hang(trainer):
        save(trainer)
        if trainer.state.step == step:
            (out / "reached").touch()
            time.sleep(600)

    Trainer.save = then_hang
    train(TINY, out / "run", False)


@pytest.mark.slow  # starts a process
@pytest.mark.parametrize("step", [4, 6, 8])
def test_a_killed_run_goes_on_bit_for_bit(finished, tmp_path, step, child):
    """SIGKILL in pre-training, at its end, and in fine-tuning."""
    process = child(hang_after, step, tmp_path)
    wait_until(lambda: (tmp_path / "reached").exists(), process.is_alive)
    process.kill()
    process.join()
    out = tmp_path / "run"
    assert not (out / "summary.json").exists()
    train(TINY, out, True)
    assert_same_weights(finished[0], out)


def endless(folder):
    """Return the command of a training that would take hours, and its run."""
    run = RunFolder(folder / "run")
    config = dataclasses.replace(TINY, pretrain_steps=100_000, checkpoint_every=100_000)
    config.save(folder / "config.toml")
    return ["train", "--config", str(folder / "config.toml"), "--out", str(run.path)], run


def assert_it_can_go_on(run):
    with RunFolder.create(run.path, run.config(), resume=True):  # no lock is left
        assert run.load_checkpoint()["step"] >= 1


@pytest.mark.parametrize("name", ["SIGTERM", *(slow(name) for name in ("SIGINT", "SIGHUP"))])
def test_a_signal_stops_a_training_after_a_checkpoint(tmp_path, child, name):
    """Ctrl-C, a scheduler's limit of time, a closed terminal."""
    number = getattr(signal, name)
    command, run = endless(tmp_path)
    process = child(run_command, tmp_path / "log", command)
    wait_until(run.metrics.path.exists, process.is_alive)
    os.kill(process.pid, number)
    os.kill(process.pid, number)  # the group and the process, from a scheduler: one request
    process.join(timeout=60)
    errors = (tmp_path / "log").read_text()
    assert process.exitcode == 128 + number, errors
    assert f"tcseg train --out {shlex.quote(str(run.path))} --resume" in errors
    assert "Traceback" not in errors
    assert_it_can_go_on(run)


@pytest.mark.slow
def test_a_training_that_ignores_ctrl_c_ends_on_sigterm(tmp_path):
    """As under nohup; a process started as users' are."""
    command, run = endless(tmp_path)
    with started([sys.executable, "-m", "tcseg", *command], ctrl_c=False) as process:
        wait_until(run.metrics.path.exists, lambda: process.poll() is None)
        process.send_signal(signal.SIGINT)
        process.terminate()
        assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert_it_can_go_on(run)


class Dropout(torch.nn.Sequential):
    """A network that draws random numbers of its own."""

    def __init__(self, in_channels, out_channels):
        super().__init__(
            torch.nn.Conv2d(in_channels, 8, 3, padding=1),
            torch.nn.BatchNorm2d(8),
            torch.nn.Dropout(0.5),
            torch.nn.Conv2d(8, out_channels, 3, padding=1),
        )


def interrupted(config, out, at, monkeypatch):
    """Train until step `at` is about to be done, as Ctrl-C would; then go on to the end."""
    step = Trainer.step

    def stop(self, method):
        if self.state.step + 1 == at:
            raise KeyboardInterrupt
        return step(self, method)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "step", stop)
        train(config, out, False)
    torch.manual_seed(99)  # nothing may hang on what this process did before
    train(config, out, True)


# Before any checkpoint; in pre-training; at the first step of the method; between checkpoints.
@pytest.mark.parametrize("at", [2, 6, 7, 10])
def test_an_interrupted_run_leaves_the_same_figures(finished, tmp_path, monkeypatch, at):
    interrupted(TINY, tmp_path / "run", at, monkeypatch)
    assert_same_weights(finished[0], tmp_path / "run")
    logged = [(out / "metrics.csv").read_text() for out in (finished[0], tmp_path / "run")]
    assert logged[0] == logged[1]


DROPOUT = dataclasses.replace(TINY, network=f"{__name__}.Dropout")


VOLUMES = slow(TINY_VOLUMES)


@pytest.mark.parametrize("config", [DROPOUT, VOLUMES], ids=["dropout", "volumes"])
def test_others_go_on_bit_for_bit(config, tmp_path, monkeypatch):
    train(config, tmp_path / "whole", False)
    interrupted(config, tmp_path / "run", 10, monkeypatch)
    assert_same_weights(tmp_path / "whole", tmp_path / "run")
    shared = dataclasses.replace(config, pretrained=str(tmp_path / "whole"))
    train(shared, tmp_path / "shared", False)
    assert_same_weights(tmp_path / "whole", tmp_path / "shared")


def test_shared_pretraining_gives_the_same_weights(finished, tmp_path):
    baseline = dataclasses.replace(TINY, method="baseline")
    train(baseline, tmp_path / "baseline", False)
    shared = dataclasses.replace(TINY, pretrained=str(tmp_path / "baseline"))
    summary = train(shared, tmp_path / "semitc", False)
    assert_same_weights(finished[0], tmp_path / "semitc")
    assert summary["pretrained_test"]["miou"] == finished[1]["pretrained_test"]["miou"]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("size", 48),
        ("labelled", 10),
        ("split", 1),
        ("seed", 1),
        ("recipe", "paper"),
        ("network", "torch.nn.Identity"),
        ("pretrain_steps", 5),
        ("batch_size", 6),
        ("learning_rate", 0.5),
        ("validate_every", 2),
        ("precision", "bfloat16"),
    ],
)
def test_pretraining_with_other_options_is_refused(finished, option, value):
    config, there = dataclasses.replace(TINY, **{option: value}), getattr(TINY, option)
    message = rf"pre-training had other options \(`{option}`: {value!r} here, {there!r} there\)"
    with pytest.raises(RunError, match=message):
        pretrained_weights(finished[0], config, RunFolder(finished[0]).split_record())


def test_pretraining_that_is_missing_or_not_finished_is_refused(tmp_path, monkeypatch):
    config = dataclasses.replace(TINY, pretrained=str(tmp_path / "nowhere"))
    with pytest.raises(RunError, match="there is no such folder"):
        train(config, tmp_path / "run", False)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "begin_method", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(TINY, tmp_path / "begun", False)
    config = dataclasses.replace(TINY, pretrained=str(tmp_path / "begun"))
    with pytest.raises(RunError, match="its pre-training is not finished"):
        train(config, tmp_path / "run", False)


def test_pretraining_whose_weights_do_not_fit_is_refused(finished, tmp_path):
    trainer = Trainer(TINY, RunFolder(tmp_path))
    trainer.network.extra = torch.nn.Linear(1, 1)  # the code of the network has changed
    message = r"`pretrained` .*: its weights do not fit network.*missing, the network has \(1, 1\)"
    with pytest.raises(RunError, match=message):
        trainer.take_pretrained(finished[0])


def test_the_learning_rate_falls_to_0_over_the_method():
    config = dataclasses.replace(TINY, learning_rate=0.8)
    rates = [learning_rate(config, step) for step in range(TINY.pretrain_steps + TINY.steps + 1)]
    assert rates[: TINY.pretrain_steps + 1] == [0.8] * (TINY.pretrain_steps + 1)
    steps = [before - after for before, after in itertools.pairwise(rates[TINY.pretrain_steps :])]
    assert steps == pytest.approx([0.8 / TINY.steps] * TINY.steps)
    assert rates[-1] == pytest.approx(0)


# ------------------------------------------------------------------------------------ bad input


def test_lambda_rises_over_the_first_steps_of_the_method():
    config = dataclasses.replace(TINY, consistency_weight=2.0, consistency_rampup=4)
    begin = TINY.pretrain_steps
    weights = [consistency_weight(config, step) for step in range(begin, begin + 6)]
    assert weights == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert consistency_weight(dataclasses.replace(TINY, consistency_rampup=0), begin) == 1.0


def test_few_validation_images_choose_the_network(tmp_path):
    config = dataclasses.replace(TINY, validation_images=3)
    trainer = Trainer(config, RunFolder(tmp_path))
    assert trainer.validation == trainer.split.validation[:3]
    # All of them may still be used without labels.
    pool = METHODS["semitc+"].unlabelled(trainer.split, trainer.labelled)
    assert set(trainer.split.validation) <= set(pool)
    with pytest.raises(DataError, match="`validation_images` must be 1 to 20"):
        Trainer(dataclasses.replace(TINY, validation_images=21), RunFolder(tmp_path))


def test_a_file_of_splits_is_used(tmp_path):
    dataset = load_dataset("phantom", size=32)
    split = Split(train=[7, 3, 5, 2, 1, 9], validation=[4], test=[8, 6])
    save_splits(tmp_path / "splits.json", dataset, [split])
    config = dataclasses.replace(TINY, split_file=str(tmp_path / "splits.json"), labelled=2)
    trainer = Trainer(config, RunFolder(tmp_path))
    assert trainer.split == split
    assert trainer.labelled == [7, 3]
    assert trainer.unlabelled == [5, 2, 1, 9]


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_trains(tmp_path, name):
    config = dataclasses.replace(TINY, loss=name, consistency_loss=name)
    trainer = Trainer(config, RunFolder(tmp_path))

    def weights():
        return torch.cat([p.detach().flatten() for p in trainer.network.parameters()])

    before = weights()
    assert trainer.step(trainer.method)["consistency"] > 0
    assert weights().isfinite().all() and not torch.equal(weights(), before)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["stopgrad", "mean-teacher", "semitc-average", "semitc-teacher", "semitc-paste"]
)
def test_the_other_methods_go_on_bit_for_bit(tmp_path, monkeypatch, method):
    config = dataclasses.replace(TINY, method=method)
    train(config, tmp_path / "whole", False)
    interrupted(config, tmp_path / "run", 10, monkeypatch)
    assert_same_weights(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("method", ["mean-teacher", "semitc-average"])
def test_the_network_that_is_kept_is_the_moving_average(tmp_path, method):
    config = dataclasses.replace(TINY, method=method, pretrain_steps=0, teacher_decay=0.75)
    trainer = Trainer(config, RunFolder(tmp_path))
    trainer.begin_method()
    expected = {k: v.double().clone() for k, v in trainer.network.state_dict().items()}
    for _ in range(3):
        trainer.step(trainer.method)
        for name, value in trainer.network.state_dict().items():
            expected[name] += (value.double() - expected[name]) * 0.25
    assert not trainer.teacher.training
    for name, value in trainer.teacher.module.state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(value.double(), expected[name], rtol=1e-5, atol=1e-6), name
    trainer.state.best_miou = -1.0
    trainer.validate()
    for name, value in trainer.state.best.items():
        assert torch.equal(value, trainer.teacher.module.state_dict()[name])


def test_keeping_the_average_does_not_change_the_training(tmp_path):
    networks = []
    for method in ("semitc", "semitc-average"):
        config = dataclasses.replace(TINY, method=method, pretrain_steps=0)
        trainer = Trainer(config, RunFolder(tmp_path))
        trainer.begin_method()
        for _ in range(2):
            trainer.step(trainer.method)
        networks.append(trainer.network.state_dict())
    for name, value in networks[0].items():
        assert torch.equal(value, networks[1][name]), name


def test_pretraining_has_a_field_of_its_own(tmp_path):
    config = dataclasses.replace(TINY, method="semitc-teacher", pretrain_displacement_std=24.0)
    trainer = Trainer(config, RunFolder(tmp_path))
    weak = trainer.views(SUPERVISED)
    assert weak == (recipe("strong", 24.0), recipe("strong", 24.0))
    trainer.state.step = config.pretrain_steps
    first, second = trainer.views(trainer.method)
    assert first == recipe("strong")
    assert second == Compose([recipe("strong"), Intensity()])
    changed = dataclasses.replace(config, displacement_std=8.0)
    assert Trainer(changed, RunFolder(tmp_path)).views(SUPERVISED) == weak


def test_losses_over_the_batch_are_of_all_its_images(tmp_path):
    trainer = Trainer(dataclasses.replace(TINY, loss_over="batch"), RunFolder(tmp_path))
    images, labels, views, _ = trainer.batches.draw(SUPERVISED, trainer.views(SUPERVISED))
    labels[:2], labels[2:] = 31, 0  # everything in two images, nothing in two, however deformed
    trainer.batches.draw = lambda *_: (images, labels, views, None)
    seen = []
    forward = trainer.network.forward
    trainer.network.forward = lambda images: seen.append(forward(images)) or seen[-1]
    loss = trainer.step(SUPERVISED)["loss"]
    expected = []
    for y in seen[0].chunk(2):
        full, empty = y[:2].sum(dim=(0, 2, 3)), y[2:].sum(dim=(0, 2, 3))
        ratios = full / (2 * 32 * 32 + empty)
        ratios[-1] = empty[-1] / (2 * 32 * 32 + full[-1])
        expected.append(1 - ratios.mean())
    assert loss.item() == pytest.approx(sum(expected).item() / 2, abs=1e-5)


def test_training_stops_where_it_is_told_to_and_goes_on_bit_for_bit(finished, tmp_path):
    asked = itertools.count(1)
    with pytest.raises(RunStopped, match="stopped at step 9"):
        train(TINY, tmp_path / "run", False, stop=lambda: next(asked) // 9)
    assert not RunFolder(tmp_path / "run").finished
    train(TINY, tmp_path / "run", True)
    assert_same_weights(finished[0], tmp_path / "run")


def test_pretraining_alone_is_a_run(tmp_path):
    config = dataclasses.replace(TINY, steps=0, method="baseline")
    summary = train(config, tmp_path / "pretraining", False)
    assert summary["test"]["miou"] == summary["pretrained_test"]["miou"]
    shared = dataclasses.replace(TINY, pretrained=str(tmp_path / "pretraining"))
    after = train(shared, tmp_path / "run", False)
    assert after["pretrained_test"]["miou"] == summary["test"]["miou"]


def test_a_finished_run_is_left_alone(finished):
    out = finished[0]
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    with pytest.raises(RunError, match="holds a finished run"):
        train(TINY, out, False)
    with pytest.raises(RunFinished):
        train(TINY, out, True)
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_an_incomplete_checkpoint_is_one_clear_line(tmp_path):
    RunFolder.create(tmp_path / "run", TINY, resume=False).save_checkpoint({"step": 3})
    with pytest.raises(RunError, match=r"checkpoint.pt: incomplete, or of another network"):
        train(TINY, tmp_path / "run", True)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labelled": 1000}, DataError, "`labelled` must be 1 to 100"),
        ({"network": "no.such.network"}, ValueError, "'no.such.network' cannot be imported"),
        ({"network": "torch.pi"}, ValueError, "cannot be called, it is float"),
        ({"network": "torch.nn.Linear"}, ValueError, "must take in_channels and out_channels"),
        ({"network": "builtins.dict"}, ValueError, r"must return a torch.nn.Module, got dict"),
        ({"batch_size": 5}, ValueError, "`batch_size` must be even"),
        ({"data": "jsrt", "root": "/nonexistent"}, DataError, "nonexistent"),
    ],
)
def test_bad_options_are_one_clear_line_and_block_nothing(tmp_path, change, error, message):
    out = tmp_path / "run"
    with pytest.raises(error, match=message):
        train(dataclasses.replace(TINY, **change), out, False)
    assert RunFolder.create(out, TINY, resume=False)  # the folder can still be used


@pytest.mark.parametrize(
    "change",
    [
        {"labelled": 101},
        {"validation_images": 21},
        {"network": "no.such.network"},
        {"pretrained": "/nowhere"},
        {"split_file": "/nowhere.json"},
    ],
)
def test_what_needs_no_image_is_checked_before_they_are_drawn(tmp_path, monkeypatch, change):
    monkeypatch.setattr("tcseg.data.phantom.population.load", None)
    for act in (train, rehearse):
        with pytest.raises((DataError, ValueError, RunError), match=rf"`{next(iter(change))}`"):
            act(dataclasses.replace(TINY, **change), tmp_path / "run", False)


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path, monkeypatch):
    step = Trainer.step
    monkeypatch.setattr(
        Trainer,
        "step",
        lambda self, method: {n: v * math.nan for n, v in step(self, method).items()},
    )
    with pytest.raises(RunError, match=r"the loss became nan before step 2.*`learning_rate`"):
        train(TINY, tmp_path / "run", False)
    monkeypatch.undo()
    # No checkpoint was written of it, and the run can go on.
    assert RunFolder(tmp_path / "run").load_checkpoint() is None
    assert train(TINY, tmp_path / "run", True)["method"] == "semitc"


# ------------------------------------------------------------------------------------ learning


@pytest.mark.slow
def test_training_learns(tmp_path):
    config = dataclasses.replace(TINY, pretrain_steps=80, steps=1, batch_size=8, validate_every=40)
    train(config, tmp_path / "run", False)
    with open(tmp_path / "run" / "metrics.csv") as file:
        losses = [float(row["supervised"]) for row in csv.DictReader(file) if row["supervised"]]
    # Whether predictions are any good takes more steps to say.
    assert losses[-2] < 0.7 * losses[0]


@pytest.mark.slow
def test_bfloat16_trains_to_nearly_the_same(finished, tmp_path):
    train(dataclasses.replace(TINY, precision="bfloat16"), tmp_path / "run", False)
    rounded, exact = (RunFolder(out).metrics.rows() for out in (tmp_path / "run", finished[0]))
    losses = [[float(row["loss"]) for row in rows if "loss" in row] for rows in (rounded, exact)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)  # 1.1e-4 was seen
    assert losses[0] != losses[1]
    # Only convolutions are rounded.
    assert {value.dtype for value in weights(tmp_path / "run").values()} == {
        value.dtype for value in weights(finished[0]).values()
    }


def test_jsrt_trains_to_the_end(tmp_path):
    root = os.environ.get("TCSEG_JSRT_ROOT")
    if not root:
        pytest.skip("TCSEG_JSRT_ROOT is not set: the JSRT radiographs cannot be tested")
    config = dataclasses.replace(TINY, data="jsrt", root=root, pretrain_steps=2, steps=2)
    summary = train(config, tmp_path / "run", False)
    assert summary["data"] == "jsrt"
    assert math.isfinite(summary["test"]["miou"])


class Plain(torch.nn.Sequential):
    """A network that is quickly compiled."""

    def __init__(self, in_channels, out_channels):
        super().__init__(
            torch.nn.Conv2d(in_channels, 8, 3, padding=1),
            torch.nn.BatchNorm2d(8),
            torch.nn.Conv2d(8, out_channels, 3, padding=1),
        )


@pytest.mark.slow
@inductor
def test_a_compiled_network_trains_to_nearly_the_same(tmp_path):
    compiled = dataclasses.replace(TINY, compile=True, steps=2, network=f"{__name__}.Plain")
    summary = train(compiled, tmp_path / "run", False)
    plain = train(dataclasses.replace(compiled, compile=False), tmp_path / "plain", False)
    assert summary["test"]["miou"] == pytest.approx(plain["test"]["miou"], abs=0.05)
    # Its weights are those of the network itself: other commands know nothing of compilation.
    one, other = (RunFolder(tmp_path / name).load_weights() for name in ("run", "plain"))
    assert one.keys() == other.keys()
