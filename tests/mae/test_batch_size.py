"""`batch_size: auto` becomes a number that fits, is good for learning, and stays what it was."""

from types import SimpleNamespace

import pytest
import torch
from tiny_world import FOUR_EPOCHS, tiny_config

import mae.batch_size
from classify.finetune import finetune
from classify.finetune_cost import finetuning_memory
from data.config import load_config, make_config
from data.errors import UserError
from mae.batch_size import chosen_batch
from mae.encoder import Encoder
from mae.engine import machine
from mae.engine.loop import evaluating
from mae.engine.machine import free_memory
from mae.own_data import _of_machine
from mae.pretrain import pretrain, pretrain_stage
from mae.pretrain_cost import pretraining_memory
from mae.recipes import RECIPES, SIZES, good_batch, recipe_for, size_for

CPU = torch.device("cpu")
AUTO = {"pretrain__batch_size": "auto", "finetune__batch_size": "auto"}


@pytest.fixture
def free(monkeypatch):
    """Sets how much memory is free."""

    def set_to(size: float) -> None:
        monkeypatch.setattr(mae.batch_size, "free_memory", lambda device: int(size))

    return set_to


def linear(part: int) -> int:
    return 1000 + 100 * part


# ---------------------------------------------------------------- which number


@pytest.mark.parametrize("images", [1, 2, 3, 7, 20, 100, 3000, 10**6])
@pytest.mark.parametrize("parts", [1, 2, 3, 5])
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_it_is_a_power_of_two_for_each_part_and_no_more_than_is_good(images, parts, stage, free):
    free(1e12)
    part, rest = divmod(chosen_batch(stage, images, parts, CPU, linear), parts)
    assert not rest and part & (part - 1) == 0
    assert part * parts <= max(good_batch(stage, images), 2 * parts)
    if images >= 8 * 16 and parts == 1:
        assert part >= 8 and images // part >= 16


@pytest.mark.parametrize(("memory", "expected"), [(1e9, 64), (1000 + 100 * 64, 32), (1000 + 3200 / 0.7, 16)])
def test_less_memory_makes_it_smaller(memory, expected, free):
    free(memory)
    found = chosen_batch("pretrain", 5000, 1, CPU, linear)
    assert found <= expected
    assert linear(found) <= 0.7 * memory


def test_where_nothing_fits_it_says_so_and_does_not_guess(free):
    free(1300)
    with pytest.raises(UserError, match=r"pretrain\.batch_size: found 0\.00 GB of memory free .* for 2 images"):
        chosen_batch("pretrain", 5000, 1, CPU, linear)


def test_it_never_exceeds_the_images(free):
    free(1e12)
    assert [chosen_batch("finetune", images, 1, CPU, linear) for images in (1, 2, 3, 5, 9)] == [1, 2, 2, 4, 8]


def test_ranks_take_what_the_first_one_chose(monkeypatch):
    monkeypatch.setattr(
        mae.batch_size.distributed, "all_gather_objects", lambda mine: [mine if mine[0] else (24, ""), (0, "")]
    )
    assert mae.batch_size.distributed.told_to_all(lambda: 48) == 48
    monkeypatch.setattr(mae.batch_size.distributed, "rank", lambda: 1)
    assert mae.batch_size.distributed.told_to_all(lambda: 48) == 24  # although this rank would have chosen 48


def test_ranks_end_together_where_nothing_fits_the_first_one(monkeypatch):
    monkeypatch.setattr(mae.batch_size.distributed, "all_gather_objects", lambda mine: [(None, "too little"), mine])
    monkeypatch.setattr(mae.batch_size.distributed, "rank", lambda: 1)
    with pytest.raises(UserError, match="too little"):
        mae.batch_size.distributed.told_to_all(lambda: 48)


# ---------------------------------------------------------------- what is counted


def test_what_is_counted_grows_with_the_batch_and_with_what_stands_around_it(tmp_path):
    config = tiny_config(tmp_path)
    sizes = [pretraining_memory(config, part, CPU) for part in (2, 30, 300)]
    assert sizes[0] < sizes[1] < sizes[2]
    averaged = tiny_config(tmp_path, pretrain__optimizer__ema=0.9)
    assert pretraining_memory(averaged, 2, CPU) > sizes[0]
    assert finetuning_memory(config, 300, CPU) > finetuning_memory(config, 3, CPU)


def test_a_large_validation_batch_counts_where_the_training_batch_is_small(tmp_path):
    few, many = (tiny_config(tmp_path, evaluate__batch_size=size) for size in (4, 4000))
    assert finetuning_memory(many, 2, CPU) > finetuning_memory(few, 2, CPU)


def test_validation_counts_in_the_32_bits_that_it_computes_in(tmp_path):
    counted = [
        finetuning_memory(tiny_config(tmp_path, precision=precision, evaluate__batch_size=4000), 2, CPU)
        for precision in ("fp32", "bf16")
    ]
    assert counted[0] == counted[1]


def test_no_pass_of_a_pretraining_takes_more_images_at_once_than_are_counted(place, opened, monkeypatch):
    changed = {"pretrain__batch_size": 20, "pretrain__optimizer__accumulate": 4, "pretrain__probe_every": 1}
    stage = pretrain_stage(tiny_config(place, **changed), opened, CPU)
    taken: list[int] = []
    embed = Encoder.embed_kept
    monkeypatch.setattr(
        Encoder, "embed_kept", lambda self, images, keep: taken.append(len(images)) or embed(self, images, keep)
    )
    assert "probe/logistic_auc" in evaluating(stage.model, lambda model: stage.validate(model, 1)).metrics
    assert max(taken) == 20 // 4 and sum(taken) == 2 * 10 + 40  # validated and probed, and what the probe learns from


@pytest.mark.parametrize("model", ["vit", "resnet18"])
@pytest.mark.parametrize("mode", ["full", "linear"])
def test_every_classifier_is_counted(model, mode, tmp_path):
    config = tiny_config(tmp_path, finetune__model=model, finetune__mode=mode, finetune__stem="imagenet")
    assert finetuning_memory(config, 4, CPU) > 110e6


# ---------------------------------------------------------------- runs


def test_it_stands_resolved_in_config_yaml_and_stays_when_the_run_goes_on(place, opened, free):
    free(1e12)
    config = tiny_config(place, run=f"{place}/auto", **AUTO, pretrain__epochs=1)
    folder = pretrain(config, opened)
    assert load_config(folder / "config.yaml").pretrain.batch_size == 8
    assert load_config(folder / "config.yaml").finetune.batch_size == "auto"

    # the machine has changed meanwhile
    free(200e6)
    pretrain(tiny_config(place, run=f"{place}/auto", **AUTO, pretrain__epochs=2), opened)
    assert load_config(folder / "config.yaml").pretrain.batch_size == 8
    assert load_config(folder / "config.yaml").pretrain.epochs == 2


def test_fine_tuning_chooses_for_its_labelled_images(place, opened, free):
    free(1e12)
    settings = {**AUTO, "finetune__run": f"{place}/few", "finetune__sample": 6, "finetune__epochs": 1}
    folder = finetune(tiny_config(place, **settings), data=opened)
    assert load_config(folder / "config.yaml").finetune.batch_size == 4


def test_another_number_than_the_run_was_begun_with_is_refused(place, opened, free):
    free(1e12)
    config = tiny_config(place, run=f"{place}/kept", **AUTO, pretrain__epochs=1)
    pretrain(config, opened)
    with pytest.raises(UserError, match=r"made with pretrain\.batch_size = 8, expected 16"):
        pretrain(tiny_config(place, run=f"{place}/kept", pretrain__batch_size=16, pretrain__epochs=1), opened)


@pytest.mark.parametrize("wrong", [0, -1, "Auto", "all", None, 2.5])
def test_other_words_are_refused_in_a_line(wrong):
    with pytest.raises(UserError, match=r"pretrain\.batch_size: found .*, expected a number of images, 1 or more, or"):
        make_config({"data": {"source": "table"}}, "my.yaml", FOUR_EPOCHS | {"pretrain.batch_size": wrong})


# ---------------------------------------------------------------- memory that is free


def group(root, name: str, limit: str, usage: int, cache: int = 0) -> None:
    (root / name).mkdir(parents=True, exist_ok=True)
    (root / name / "memory.max").write_text(f"{limit}\n")
    (root / name / "memory.current").write_text(f"{usage}\n")
    (root / name / "memory.stat").write_text(f"anon 3\ninactive_file {cache}\n")


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """A tree of control groups; this process is in /job/step."""
    (tmp_path / "cgroup").write_text("0::/job/step\n")

    class Places(type(tmp_path)):
        """Puts /proc/self/cgroup elsewhere."""

        def __new__(cls, *parts):
            place = tmp_path / "cgroup" if parts == ("/proc/self/cgroup",) else None
            return place or super().__new__(cls, *parts)

    monkeypatch.setattr(machine, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(machine, "Path", Places)
    monkeypatch.setattr(machine, "_available", lambda: 900_000)
    return tmp_path / "groups"


def test_the_tightest_control_group_counts_and_its_caches_are_free(groups):
    assert free_memory(CPU) == 900_000
    group(groups, "job/step", "max", 5)
    group(groups, "job", "700000", 300_000, cache=50_000)
    assert free_memory(CPU) == 450_000
    group(groups, "job/step", "400000", 390_000)
    assert free_memory(CPU) == 10_000
    group(groups, "job/step", "400000", 500_000)
    assert free_memory(CPU) == 0


def test_ranks_of_a_machine_share_its_memory(groups, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert free_memory(CPU) == 300_000


def test_what_others_use_is_not_free():
    assert 0 < free_memory(CPU) < 2**50


# ---------------------------------------------------------------- the table


@pytest.mark.parametrize("device", RECIPES)
def test_there_is_a_row_for_any_number_of_images(device):
    rows = RECIPES[device]
    assert [row.up_to for row in rows] == sorted(row.up_to for row in rows)
    for images in (0, 1, 999, 10**9):
        assert recipe_for(device, images).epochs >= 1


@pytest.mark.parametrize("side", [8, 9, 15, 27, 28, 47, 64, 100, 223, 5000])
def test_no_image_is_enlarged_and_patches_divide_it(side):
    for most in (64, 224):
        size = size_for(side, most)
        assert size.side <= min(side, most)
        assert size.side % size.patch == 0 and size.side // size.patch >= 2
    assert size_for(5000, 5000) == SIZES[0]


@pytest.mark.parametrize(("emulated", "expected"), [(True, "fp16"), (False, "bf16")])
def test_a_gpu_that_only_emulates_bf16_gets_fp16(emulated, expected, monkeypatch):
    """Before Ampere (T4, V100) torch can compute in bf16, but slower than in 32 bits."""
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or not emulated
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU")
    picks = _of_machine(SimpleNamespace(kind="cuda", device=torch.device("cuda")), {})
    assert {pick.key: pick.value for pick in picks}["precision"] == expected
