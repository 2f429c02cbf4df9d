from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from fake_machines import gpu, machine

import hsr_train
from hsr_train import hardware
from hsr_train.config.architectures import NAMES, split, step
from hsr_train.config.compose import compose
from hsr_train.config.paths import CONF_DIR
from hsr_train.config.registration import SCHEMAS
from hsr_train.config.schema import DetectExperiment
from hsr_train.errors import InputError

MODEL_OF_TIER = {
    "low": ("yolov8s", 8, 480, 4, "none"),
    "medium": ("yolov8m", 16, 640, 8, "auto"),
    "high": ("yolov8l", 32, 640, 8, "auto"),
    "workstation": ("yolov8x", 64, 800, 8, "auto"),
    "cpu": ("yolov8n", 4, 320, 2, "none"),
    "manual": ("yolov8m", 16, 640, 8, "auto"),
}


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "detect", machine)


def use(monkeypatch: pytest.MonkeyPatch, *gib: float) -> None:
    monkeypatch.setattr(hardware, "detect", lambda: machine(*(gpu(i, size) for i, size in enumerate(gib))))


def tier_values(e: DetectExperiment) -> tuple[str, object, int, int, object]:
    return e.model.name, e.train.batch, e.train.imgsz, e.train.workers, e.train.cache


def decided(e: DetectExperiment) -> dict[str, object]:
    return {d.key: d.value for d in e.origin.decisions}


def groups() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in sorted(CONF_DIR.rglob("*.yaml")):
        group = path.parent.relative_to(CONF_DIR).as_posix()
        if group != "." and not group.startswith("hydra"):
            found.setdefault(group, []).append(path.stem)
    return found


def tasks_of(group: str, name: str) -> list[str]:
    """The tasks that a choice is made for."""
    if group == "model":
        return ["detect" if split(name) is not None else "classify"]
    if group in ("optimizer", "augmentation", "preset"):
        return ["classify" if name.startswith("classify_") else "detect"]
    if group == "task":
        return [name]
    return ["classify"] if group == "trainer" else list(SCHEMAS)


def rows(task: str) -> list[list[str]]:
    """Every choice of every group that fits a task, one of each group at a time."""
    table = {group: [n for n in names if task in tasks_of(group, n)] for group, names in groups().items()}
    table = {group: names for group, names in table.items() if names}
    longest = max(map(len, table.values()))
    return [[f"{group}={names[i % len(names)]}" for group, names in table.items()] for i in range(longest)]


def test_choices_are_as_many_as_the_interface_promises() -> None:
    counts = {group: len(names) for group, names in groups().items()}
    least = {"task": 2, "data": 2, "model": 19, "gpu_tier": 6, "optimizer": 11, "augmentation": 7, "preset": 8,
             "trainer": 2}  # fmt: skip
    assert counts.keys() >= least.keys()
    assert all(counts[group] >= number for group, number in least.items()), counts


@pytest.mark.parametrize("choices", rows("detect") + rows("classify"), ids=" ".join)
def test_compose_every_choice(choices: list[str]) -> None:
    typed = dict(choice.split("=") for choice in choices)
    private = ["trainer.target_epsilon=3", "augmentation.mixup=0", "augmentation.cutmix=0"]  # what it needs, or forbids
    needed = private if typed.get("trainer") == "dp" else []
    experiment = compose([*choices, *needed, "data.path=my/data.yaml"])
    assert type(experiment) is SCHEMAS[typed["task"]]
    assert experiment.model.name == typed["model"]
    assert (experiment.task, experiment.preset, experiment.gpu_tier) == (
        typed["task"], typed["preset"], typed["gpu_tier"],
    )  # fmt: skip
    assert experiment.optimizer.name.lower() == typed["optimizer"].removeprefix("classify_")


def test_every_choice_fits_one_of_the_tasks() -> None:
    tried = {choice for task in SCHEMAS for row in rows(task) for choice in row}
    assert tried == {f"{group}={name}" for group, names in groups().items() for name in names}


def test_every_yaml_opens_with_what_it_is_and_the_command_that_uses_it() -> None:
    paths = sorted(CONF_DIR.rglob("*.yaml"))
    assert len(paths) >= 45
    for path in paths:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
        assert any("-m hsr_train" in line for line in lines), path


@pytest.mark.parametrize(("tier", "values"), MODEL_OF_TIER.items())
def test_tier_named_gives_its_row_of_the_table(tier: str, values: tuple[object, ...]) -> None:
    experiment = compose([f"gpu_tier={tier}"])
    assert tier_values(experiment) == values
    assert experiment.gpu_tier == tier
    assert experiment.origin.tier_batch == values[1]


@pytest.mark.parametrize(
    ("gib", "tier"), [(4, "low"), (5.9, "medium"), (11.8, "medium"), (15, "high"), (23.7, "high"), (40, "workstation")]
)
def test_tier_auto_takes_the_row_of_the_card(monkeypatch: pytest.MonkeyPatch, gib: float, tier: str) -> None:
    use(monkeypatch, gib)
    experiment = compose([])
    assert tier_values(experiment) == MODEL_OF_TIER[tier]
    assert experiment.gpu_tier == tier
    assert decided(experiment)["gpu_tier"] == tier
    assert f"gpu_tier: {tier}" in experiment.origin.config_yaml


def test_tier_auto_follows_the_device_that_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, 24, 8)
    assert compose([]).gpu_tier == "high"
    assert compose(["train.device=cpu"]).gpu_tier == "cpu"
    assert compose(["train.device=1"]).gpu_tier == "medium"
    assert compose(["train={device:cpu}"]).gpu_tier == "cpu"
    assert compose(["train.device=cpu", "gpu_tier=high"]).gpu_tier == "high"


def test_tier_manual_says_what_it_stands_for() -> None:
    reasons = [d.reason for d in compose(["gpu_tier=manual", "train.batch=3"]).origin.decisions]
    assert reasons == ["no detection: model yolov8m, batch 16, imgsz 640, workers 8, cache auto"]


def test_typed_model_wins_and_the_rest_of_the_tier_stays() -> None:
    for choice in ("model=yolo11s", "model.name=yolo11s"):
        assert tier_values(compose(["gpu_tier=workstation", choice])) == ("yolo11s", 64, 800, 8, "auto")


def test_precedence_each_layer_beats_the_one_below(tmp_path: Path) -> None:
    (tmp_path / "preset").mkdir()
    (tmp_path / "preset" / "ours.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: yolo26s\n"
        "train: {imgsz: 416, epochs: 7}\noptimizer: {lr0: 0.005}\naugmentation: {mixup: 0.25}\n"
    )
    base = ["gpu_tier=high", "optimizer=sgd", "augmentation=none"]
    below = compose(base)
    assert (below.train.imgsz, below.optimizer.lr0, below.augmentation.mixup) == (640, 0.01, 0.0)  # over the schema
    preset = compose([*base, "preset=ours"], tmp_path)
    assert (preset.model.name, preset.train.imgsz, preset.optimizer.lr0) == ("yolo26s", 416, 0.005)
    assert (preset.train.batch, preset.optimizer.name, preset.augmentation.mosaic) == (32, "SGD", 0.0)
    assert preset.augmentation.mixup == 0.25
    typed = compose([*base, "preset=ours", "model=yolov8n", "train.imgsz=320", "optimizer.lr0=0.5"], tmp_path)
    assert (typed.model.name, typed.train.imgsz, typed.optimizer.lr0, typed.train.epochs) == ("yolov8n", 320, 0.5, 7)


def test_preset_competition_has_the_values_of_the_morning() -> None:
    e = compose(["gpu_tier=medium"])
    assert (e.preset, e.train.epochs, e.train.patience, e.train.close_mosaic, e.train.amp) == (
        "competition", 50, 10, 10, True,
    )  # fmt: skip
    o = e.optimizer
    assert (o.name, o.lr0, o.lrf, o.momentum, o.weight_decay) == ("AdamW", 0.001, 0.01, 0.937, 0.0005)
    a = e.augmentation
    assert (a.hsv_h, a.hsv_s, a.hsv_v, a.degrees, a.translate, a.scale) == (0.015, 0.7, 0.4, 10.0, 0.1, 0.5)
    assert (a.fliplr, a.mosaic, a.mixup, a.shear, a.copy_paste) == (0.5, 1.0, 0.1, 0.0, 0.0)


@pytest.mark.parametrize(
    ("tier", "model", "imgsz"),
    [("cpu", "yolov8n", 320), ("low", "yolov8n", 480), ("medium", "yolov8s", 480), ("workstation", "yolov8l", 480)],
)
def test_preset_fast_takes_one_size_less_and_at_most_480_px(tier: str, model: str, imgsz: int) -> None:
    e = compose(["preset=fast", f"gpu_tier={tier}"])
    assert (e.model.name, e.train.imgsz, e.train.epochs, e.train.patience) == (model, imgsz, 30, 5)


@pytest.mark.parametrize(("tier", "model"), [("cpu", "yolov8s"), ("high", "yolov8x"), ("workstation", "yolov8x")])
def test_preset_accuracy_takes_one_size_more(tier: str, model: str) -> None:
    e = compose(["preset=accuracy", f"gpu_tier={tier}"])
    assert (e.model.name, e.train.epochs, e.train.patience, e.train.multi_scale, e.train.cos_lr) == (
        model, 100, 25, 0.5, True,
    )  # fmt: skip


def test_adjust_is_recorded_with_its_reason_and_only_where_it_changes_something() -> None:
    high = decided(compose(["preset=fast", "gpu_tier=high"]))
    assert (high["model.name"], high["train.imgsz"]) == ("yolov8m", 480)
    assert not {"model.name", "train.imgsz"} & set(decided(compose(["preset=fast", "gpu_tier=cpu"])))


def test_adjust_gives_way_to_what_was_typed() -> None:
    for model in ("model=yolo11l", "model.name=yolo11l"):
        e = compose(["preset=fast", "gpu_tier=high", model, "train.imgsz=960"])
        assert (e.model.name, e.train.imgsz) == ("yolo11l", 960)
        assert not {"model.name", "train.imgsz"} & set(decided(e))


def test_adjust_can_be_typed() -> None:
    assert compose(["gpu_tier=high", "adjust.model_steps=-2"]).model.name == "yolov8s"
    assert compose(["gpu_tier=high", "+adjust.at_most={train.imgsz:320}"]).train.imgsz == 320


def test_adjust_of_one_composition_leaves_no_trace_in_the_next() -> None:
    compose(["preset=fast", "gpu_tier=high"])
    assert compose(["gpu_tier=high"]).train.imgsz == 640


def test_adjust_chooses_the_group_anew_for_the_record() -> None:
    assert "model: yolov8m\n" in compose(["preset=fast", "gpu_tier=high"]).origin.hydra_yaml


def test_preset_few_shot_and_yolov8n_default() -> None:
    e = compose(["preset=few_shot"])
    assert (e.train.epochs, e.train.freeze, e.augmentation.mosaic, e.augmentation.mixup) == (100, 10, 0.5, 0.3)
    assert (e.optimizer.lr0, e.optimizer.weight_decay) == (0.0005, 0.002)
    e = compose(["preset=yolov8n_default", "gpu_tier=workstation"])
    assert (e.model.name, e.train.epochs, e.train.batch, e.train.imgsz) == ("yolov8n", 100, 16, 640)


def test_preset_high_performance_on_a_gpu_and_with_what_a_large_machine_may_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use(monkeypatch, 4)  # the tier low has 4 workers and no cache
    for typed, workers, cache, multi_scale in (
        ([], 8, "disk", 0.0),
        (["train.workers=12", "train.cache=ram", "train.multi_scale=true"], 12, "ram", 0.5),
    ):
        t = compose(["preset=high_performance", *typed]).train
        assert (t.batch, t.amp, t.cos_lr) == ("auto", True, True)
        assert (t.workers, t.cache, t.multi_scale) == (workers, cache, multi_scale)


def test_preset_demo_is_small_and_from_scratch_on_any_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, 80)
    e = compose(["preset=demo"])
    assert (e.model.name, e.model.weights, e.data.path) == ("yolov8n", "scratch", "demo")
    assert (e.train.epochs, e.train.batch, e.train.nbs, e.train.imgsz, e.optimizer.lr0) == (18, 8, 8, 160, 0.003)


@pytest.mark.parametrize(
    ("choice", "name", "bias_lr"),
    [("adamw", "AdamW", 0.0), ("adam", "Adam", 0.0), ("sgd", "SGD", 0.1), ("musgd", "MuSGD", 0.1)],
)
def test_optimizer_files_fit_their_kind(choice: str, name: str, bias_lr: float) -> None:
    o = compose([f"optimizer={choice}"]).optimizer
    assert (o.name, o.warmup_bias_lr) == (name, bias_lr)


def test_config_dir_adds_presets_models_and_tiers_with_relative_values(tmp_path: Path) -> None:
    for group in ("preset", "model", "gpu_tier"):
        (tmp_path / group).mkdir()
    (tmp_path / "preset" / "team.yaml").write_text(
        "# @package _global_\nadjust: {model_steps: 1, at_most: {train.batch: 10}}\ntrain: {device: cpu}\n"
    )
    (tmp_path / "model" / "tall.yaml").write_text("name: yolov8s-p2\n")
    (tmp_path / "gpu_tier" / "orin.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: yolo26m\ntrain: {batch: 12}\n"
    )
    e = compose(["preset=team", "gpu_tier=orin"], tmp_path)
    assert (e.model.name, e.train.batch, e.preset, e.gpu_tier, e.origin.tier_batch) == (
        "yolo26l", 10, "team", "orin", 12,
    )  # fmt: skip
    assert compose(["preset=team", "model=tall"], tmp_path).model.name == "yolov8s-p2"


def test_config_dir_preset_that_names_a_device_decides_the_tier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, 24)
    (tmp_path / "preset").mkdir()
    (tmp_path / "preset" / "here.yaml").write_text("# @package _global_\ntrain: {device: cpu}\n")
    e = compose(["preset=here"], tmp_path)
    assert (e.gpu_tier, e.model.name, e.train.batch) == ("cpu", "yolov8n", 4)
    assert compose(["preset=here", "train.device=0"], tmp_path).gpu_tier == "high"


def test_config_name_of_a_full_experiment_file(tmp_path: Path) -> None:
    (tmp_path / "morning.yaml").write_text(
        "defaults:\n  - config\n  - override preset: fast\n  - _self_\ntrain: {epochs: 9}\n"
    )
    e = compose(["gpu_tier=high"], tmp_path, "morning")
    assert (e.train.epochs, e.model.name, e.preset) == (9, "yolov8m", "fast")


def test_hardware_is_asked_only_where_the_tier_is_automatic(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise AssertionError("asked")

    monkeypatch.setattr(hardware, "detect", refuse)
    assert compose(["gpu_tier=low"]).train.batch == 8


def test_origin_holds_what_was_typed_and_what_was_composed(tmp_path: Path) -> None:
    e = compose(["train.cache=True", "data.path=my sets/a,b.yaml", "optimizer=sgd"])
    assert e.origin.overrides == ["train.cache=True", "data.path='my sets/a,b.yaml'", "optimizer=sgd"]
    assert e.origin.typed == ["data.path", "optimizer", "train.cache"]
    assert "cache: true" in e.origin.config_yaml
    assert "path: my sets/a,b.yaml" in e.origin.config_yaml
    assert yaml.safe_load(e.origin.hydra_yaml)["hydra"]["runtime"]["choices"]["optimizer"] == "sgd"
    assert yaml.safe_load(e.origin.config_yaml)["optimizer"]["name"] == "SGD"
    assert e.origin.resume_from is None
    assert not list(tmp_path.iterdir())


def test_references_to_the_environment_are_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "team.yaml").write_text("path: ${oc.env:TEAM_DATA}/data.yaml\n")
    monkeypatch.setenv("TEAM_DATA", "/mnt/team")
    assert compose(["data=team"], tmp_path).data.path == "/mnt/team/data.yaml"
    monkeypatch.delenv("TEAM_DATA")
    with pytest.raises(InputError, match="TEAM_DATA"):
        compose(["data=team"], tmp_path)


def test_package_offers_compose_lazily() -> None:
    assert hsr_train.compose is compose
    with pytest.raises(AttributeError, match="nothing"):
        _ = hsr_train.nothing


@pytest.mark.parametrize(
    ("name", "steps", "expected"),
    [
        ("yolov8m", 1, "yolov8l"), ("yolov8x", 1, "yolov8x"), ("yolov8n", -3, "yolov8n"), ("yolo26n", 4, "yolo26x"),
        ("yolov9c", 1, "yolov9e"), ("yolov8s-p2", 1, "yolov8m-p2"), ("unknown", 1, "unknown"),
    ],
)  # fmt: skip
def test_step_moves_within_the_family_and_stops_at_its_ends(name: str, steps: int, expected: str) -> None:
    assert step(name, steps) == expected


def test_architectures_are_those_of_the_installed_ultralytics() -> None:
    import importlib.util

    spec = importlib.util.find_spec("ultralytics")
    assert spec is not None and spec.origin is not None
    models = Path(spec.origin).parent / "cfg" / "models"
    files = {path.stem for path in models.rglob("*.yaml")}
    for name in NAMES:
        # The library strips the size from the name unless a file of that very name exists.
        unsized = re.sub(r"(yolov?\d+)([nslmx])(-p\d)?$", lambda m: m[1] + (m[3] or ""), name)
        assert name in files or unsized in files, name
