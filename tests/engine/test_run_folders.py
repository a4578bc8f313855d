"""Laws of run folders: a run goes on only as it was begun, and each start is recorded."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from tiny_world import files, mistake, tiny_config

from classify import cli as stage_two
from classify.settings import ClassifyConfig
from data.errors import UserError
from mae import cli as stage_one
from mae import load_checkpoint
from mae.engine.checkpoint import save_checkpoint
from mae.engine.run import check_run, device_of, start_run
from mae.pretrain import RESUMABLE, pretrain


def refused_run(folder: Path, config: ClassifyConfig, facts: dict) -> str:
    with pytest.raises(UserError) as caught:
        check_run(folder, config, RESUMABLE, facts)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_run_of_another_config_is_refused_by_the_settings_name(place, tmp_path):
    facts = {"store": "abc"}
    start_run(tmp_path, tiny_config(place), facts)
    for key, then, now in (
        ("seed", 0, 3),
        ("precision", "fp32", "bf16"),
        ("model.width", 12, 24),
        ("pretrain.mask_ratio", 0.75, 0.5),
        ("pretrain.optimizer.base_lr", 0.05, 0.1),
        ("pretrain.augment.flip", 0.0, 0.5),
        ("data.uncertain", "unknown", "positive"),
    ):
        message = refused_run(tmp_path, tiny_config(place, **{key: now}), facts)
        assert f"{tmp_path}: found a run made with {key} = {then}, expected {now}; choose another" in message
    assert "store = abc, expected def" in refused_run(tmp_path, tiny_config(place), {"store": "def"})


def test_what_does_not_change_the_result_may_change(place, tmp_path):
    facts = {"store": "abc"}
    check_run(tmp_path, tiny_config(place), RESUMABLE, facts)  # an empty folder
    start_run(tmp_path, tiny_config(place), facts)
    check_run(tmp_path, tiny_config(place), RESUMABLE, facts)
    free = (
        ("pretrain__epochs", 9),
        ("engine__save_minutes", 1.0),
        ("data__store", "x"),
        ("data__workers", 2),
        ("data__patients", "p"),
    )
    for key, value in (*free, ("finetune__epochs", 9), ("finetune__mode", "linear"), ("run", "elsewhere")):
        check_run(tmp_path, tiny_config(place, **{key: value}), RESUMABLE, facts)


def test_a_part_of_a_mix_may_get_a_table_of_patients_and_no_other_root():
    before = [{"source": "table", "root": "a"}, {"source": "images", "root": "b", "table": None}]
    after = [before[0] | {"patients": "people.csv", "views": None}, before[1]]
    assert RESUMABLE.may_change("data.sources", before, after)
    assert RESUMABLE.may_change("data.sources", after, before)
    assert not RESUMABLE.may_change("data.sources", before, [before[0] | {"root": "c"}, before[1]])
    assert not RESUMABLE.may_change("data.sources", before, before[:1])
    assert not RESUMABLE.may_change("data.views", ["AP"], ["AP", "PA"])


def test_commands_refuse_a_run_of_another_config(place, opened, tmp_path):
    changed = {"run": str(tmp_path / "run"), "pretrain__epochs": 1}
    pretrain(tiny_config(place, **changed), opened)
    before = (tmp_path / "run/last.pt").read_bytes()
    with pytest.raises(UserError, match=r"pretrain.mask_ratio = 0.75, expected 0.5"):
        pretrain(tiny_config(place, **changed, pretrain__mask_ratio=0.5), opened)
    assert (tmp_path / "run/last.pt").read_bytes() == before


def test_a_run_folder_records_each_start(place, tmp_path):
    for _ in range(2):
        start_run(tmp_path, tiny_config(place), {"store": "abc"})
    record = json.loads((tmp_path / "environment.json").read_text())
    assert record["facts"] == {"store": "abc"}
    assert len(record["starts"]) == 2
    assert record["starts"][0]["packages"]["torch"].startswith(torch.__version__.split("+")[0])
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["model"]["width"] == 12
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "environment.json"]


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "cpu:x"])
def test_a_device_that_is_not_there_is_one_line(name, place):
    with pytest.raises(UserError, match=f"device: found '{name}', which is not available") as caught:
        device_of(name)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- what stands in the folder was changed


@pytest.fixture(scope="module")
def made(place, opened, tmp_path_factory) -> Path:
    """A run that has ended; tests copy it."""
    return pretrain(tiny_config(place, run=str(tmp_path_factory.mktemp("made") / "run"), pretrain__epochs=1), opened)


def without_config(folder: Path) -> None:
    (folder / "config.yaml").unlink()


def edited_config(folder: Path) -> None:
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace("mask_ratio: 0.75", "mask_ratio: 0.5").replace("\nseed: 0", "\nseed: 3"))


@pytest.mark.parametrize("change", [without_config, edited_config])
@pytest.mark.parametrize("left", ["last.pt", "previous.pt"])
def test_a_run_goes_on_as_its_checkpoint_was_made(change, left, made, place, opened, tmp_path):
    """Whatever config.yaml says, and even without one."""
    run = Path(shutil.copytree(made, tmp_path / "run"))
    (run / "last.pt").rename(run / left)
    change(run)
    before = (run / left).read_bytes()
    with pytest.raises(UserError, match=r"found a run made with pretrain.mask_ratio = 0.75, expected 0.5;"):
        config = tiny_config(place, run=str(run), pretrain__epochs=2, pretrain__mask_ratio=0.5, seed=3)
        pretrain(config, opened)
    assert (run / left).read_bytes() == before


def test_a_missing_config_is_written_anew_when_the_run_goes_on(made, place, opened, tmp_path, capsys):
    run = Path(shutil.copytree(made, tmp_path / "run"))
    without_config(run)
    pretrain(tiny_config(place, run=str(run), pretrain__epochs=2), opened)
    assert f"note: {run}/config.yaml: found no such file, so it is written anew" in capsys.readouterr().err
    assert yaml.safe_load((run / "config.yaml").read_text())["pretrain"]["epochs"] == 2


def test_a_run_of_a_version_without_a_setting_goes_on_where_the_setting_is_its_default(made, place, opened, tmp_path):
    run = Path(shutil.copytree(made, tmp_path / "run"))
    path = run / "config.yaml"
    settings = yaml.safe_load(path.read_text())
    assert settings["pretrain"].pop("validate_every") == 1
    path.write_text(yaml.safe_dump(settings))

    with pytest.raises(UserError, match=r"found a run made with pretrain.validate_every = 1, expected 2;"):
        pretrain(tiny_config(place, run=str(run), pretrain__epochs=2, pretrain__validate_every=2), opened)
    pretrain(tiny_config(place, run=str(run), pretrain__epochs=2), opened)
    assert load_checkpoint(run / "last.pt").progress["epoch"] == 2


@pytest.mark.parametrize("content", [None, "{}", '{"starts": []}'])
def test_a_run_that_no_longer_says_what_it_trains_on_is_not_gone_on_with(content, made, place, opened, tmp_path):
    run = Path(shutil.copytree(made, tmp_path / "run"))
    (run / "environment.json").unlink()
    if content is not None:
        (run / "environment.json").write_text(content)
    before = (run / "last.pt").read_bytes()
    found = rf"^{run}/environment.json: found no record of the images .* put the file back, or choose another folder"
    with pytest.raises(UserError, match=found):
        pretrain(tiny_config(place, run=str(run), pretrain__epochs=2), opened)
    assert (run / "last.pt").read_bytes() == before


def test_without_a_config_the_epochs_of_a_grid_must_be_the_checkpoints(made, place, tmp_path):
    run = Path(shutil.copytree(made, tmp_path / "run"))
    without_config(run)
    decided = {"model__norm_pixel_loss": True}  # as `pretrain` leaves it
    check_run(run, tiny_config(place, pretrain__epochs=1, **decided), RESUMABLE, same_epochs=True)
    with pytest.raises(UserError, match=r"found a run made with pretrain.epochs = 1, expected 2"):
        check_run(run, tiny_config(place, pretrain__epochs=2, **decided), RESUMABLE, same_epochs=True)


def test_nothing_is_written_before_an_odd_checkpoint_is_refused(place, opened, tmp_path):
    run = pretrain(tiny_config(place, run=str(tmp_path / "run"), pretrain__epochs=1), opened)
    raw = torch.load(run / "last.pt", weights_only=True)
    del raw["digests"]
    raw["optimizer"]["state"] = []
    torch.save(raw, run / "last.pt")
    before = files(run)
    with pytest.raises(UserError, match=r"last\.pt"):
        pretrain(tiny_config(place, run=str(run), pretrain__epochs=2), opened)
    assert files(run) == before


def test_kept_weights_without_the_run_to_go_on_from_are_not_replaced(place, opened, tmp_path):
    config = tiny_config(place, run=str(tmp_path / "run"), pretrain__epochs=2, pretrain__batch_size=16)
    pretrain(config, opened)
    best = tmp_path / "run/best.pt"
    reached = load_checkpoint(best)
    (tmp_path / "run/last.pt").unlink()
    before = best.read_bytes()
    assert reached.epoch == 2
    with pytest.raises(UserError, match=r"best.pt: found the weights of epoch 2 without a last.pt to go on from"):
        pretrain(config, opened)
    assert best.read_bytes() == before

    # a kill between the first best.pt and the first last.pt loses an epoch, and is no mistake
    save_checkpoint(replace(reached, progress=reached.progress | {"epoch": 1}), best)
    pretrain(config, opened)


def test_other_settings_are_refused_before_images_are_decoded_for_them(world, tmp_path):
    """Of a large data set that takes hours, which would end in the same refusal."""
    store = f"data.store={tmp_path}/stores"
    other = (f"run={world.pretrained.parent}", store, "data.image_size=16")
    line = mistake(stage_one.pretrain, "--config", world.config, *other, keep=world.root)
    assert "found a run made with data.image_size = 12, expected 16" in line

    run = f"finetune.run={world.classifier}"
    words = ("--checkpoint", world.pretrained, run, store, "data.uncertain=positive")
    line = mistake(stage_two.finetune, *words, keep=world.root)
    assert "found a run made with data.uncertain = unknown, expected positive" in line
    assert not list(tmp_path.iterdir())
