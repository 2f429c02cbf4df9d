"""Networks by name, their parts, and where their weights come from."""

from __future__ import annotations

import copy
import hashlib
import http.server
import pickle
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hsr_train.config.schema.classify import ClassifyModelConfig
from hsr_train.decisions import Decisions
from hsr_train.engines.classification import published, weights
from hsr_train.engines.classification.models import (
    build,
    check_imgsz,
    check_name,
    freeze,
    head_of,
    mismatch,
    outline,
    parts_of,
    preprocessing,
    torchvision_names,
)
from hsr_train.errors import InputError

SMALL = (
    "resnet18",
    "mobilenet_v2",
    "efficientnet_b0",
    "convnext_tiny",
    "squeezenet1_1",
    "timm/test_resnet",
    "timm/test_vit",
)
SMALLEST = (
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3"),
    *("maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18"),
    *("resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11", "vgg11_bn"),
    *("vit_b_16", "wide_resnet50_2"),
)
FILE = Path(__file__).parents[2] / "shared" / "data" / "weights" / "mobilenet_v2_features_torchvision.pt"


@pytest.fixture(autouse=True)
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's downloads of this test alone, and a Hugging Face cache that nobody has filled."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def resolve(spec: str, name: str = "squeezenet1_1", demo: bool = False, **more: Any) -> weights.Start:
    config = ClassifyModelConfig(name=name, weights=spec, **more)
    return weights.resolve(config, is_demo=demo, decisions=Decisions())


def refusal(spec: str | Path, name: str = "squeezenet1_1", **more: Any) -> str:
    with pytest.raises(InputError) as caught:
        resolve(str(spec), name, **more)
    (problem,) = caught.value.problems
    assert problem.key == "model.weights" and problem.remedy
    return f"{problem.allowed} -> {problem.remedy}"


def same(one: nn.Module, state: dict[str, torch.Tensor], *but: str) -> bool:
    return all(torch.equal(v, state[k]) for k, v in one.state_dict().items() if not k.startswith(but or ("-",)))


# ---- networks


def test_name_that_exists_is_no_problem() -> None:
    assert [check_name(name) for name in ("resnet18", "timm/resnet18", "timm/resnet18.a1_in1k")] == [None] * 3


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (
            "resnet81",
            "none of the \\d+ classifiers of torchvision\n    -> did you mean resnet18\\? type model.name=resnet18",
        ),
        ("ResNet50", "type model.name=resnet50"),
        ("timm/resnet26dd", "models of timm\n    -> did you mean .*type model.name=timm/resnet26d"),
        ("resnt18", "did you mean resnet18"),
        ("timm/vit_tinny_patch16_224", "did you mean timm/vit_tiny_patch16_224"),
        ("vit_tinny_patch16_224", "did you mean timm/vit_tiny_patch16_224"),
        ("resnet26d", "but one of timm\n    -> type model.name=timm/resnet26d"),
        ("timm/resnet18.mine", "a1_in1k.*-> type model.name=timm/resnet18"),
        ("fcn_resnet50", "none of the \\d+ classifiers"),
        ("zzz", "-> such as model.name=resnet18"),
    ],
)
def test_name_that_does_not_exist_gets_the_nearest(typed: str, said: str) -> None:
    problem = check_name(typed)
    assert problem is not None and problem.key == "model.name"
    assert re.search(said, str(problem), re.S)
    with pytest.raises(InputError):
        build(typed, 2)


def test_list_of_smallest_members_has_every_family() -> None:
    families = {"".join(c for c in name.partition("_")[0] if not c.isdigit()) for name in torchvision_names()}
    assert families <= {"".join(c for c in name.partition("_")[0] if not c.isdigit()) for name in SMALLEST} | {
        "resnext"
    }


@pytest.mark.parametrize("name", [*SMALLEST, "timm/test_resnet", "timm/test_vit", "timm/test_efficientnet"])
def test_network_gives_one_score_per_class_and_names_its_head(name: str) -> None:
    network = outline(name, 7).train()
    side = 160 if name.startswith("timm/") else 224
    scores = network(torch.empty(2, 3, side, side, device="meta"))
    assert isinstance(scores, torch.Tensor), "auxiliary outputs are off"
    assert scores.shape == (2, 7)
    dotted, head = head_of(network)
    assert network.get_submodule(dotted) is head
    assert 7 in next(head.parameters()).shape
    assert len(parts_of(network)) >= 5


@pytest.mark.slow
@pytest.mark.parametrize("name", torchvision_names())
def test_every_network_of_torchvision_gives_one_score_per_class(name: str) -> None:
    network = outline(name, 3).eval()
    side = next(s for s in (224, 299) if check_imgsz(name, s) is None)
    assert network(torch.empty(2, 3, side, side, device="meta")).shape == (2, 3)


@pytest.mark.parametrize("name", SMALL)
def test_network_with_values_computes(name: str) -> None:
    side = 160 if name.startswith("timm/") else 64
    scores = build(name, 3).eval()(torch.rand(2, 3, side, side))
    assert scores.shape == (2, 3) and torch.isfinite(scores).all()


def test_outline_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    outline("resnet18", 2), outline("regnet_y_400mf", 2)
    assert torch.equal(before, torch.get_rng_state())


def test_image_size_that_a_network_cannot_take_is_a_problem_with_its_own_size() -> None:
    problem = check_imgsz("vit_b_16", 160)
    assert problem is not None
    assert (problem.key, problem.value, problem.remedy) == ("train.imgsz", "160", "type train.imgsz=224")
    assert check_imgsz("resnet18", 160) is None
    assert "299" in str(check_imgsz("inception_v3", 32))


def test_preprocessing_is_that_of_the_pretrained_weights() -> None:
    assert preprocessing("resnet18") == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert preprocessing("googlenet") == ((0.5,) * 3, (0.5,) * 3)
    assert preprocessing("timm/vit_tiny_patch16_224") == ((0.5,) * 3, (0.5,) * 3)
    assert preprocessing("timm/resnet18")[0] == (0.485, 0.456, 0.406)


def test_mismatch_is_said_in_the_words_of_the_guide() -> None:
    assert "Model output size (2) doesn't match dataset classes (3)" in str(mismatch(2, 3))
    assert "model.num_classes=3" in mismatch(2, 3).remedy
    assert mismatch(2, 3, "best.pt").key == "model.weights"


# ---- freezing


def frozen(network: nn.Module) -> set[str]:
    return {name for name, p in network.named_parameters() if not p.requires_grad}


def test_freezing_the_first_children_freezes_their_weights_and_statistics_only() -> None:
    network = build("resnet18", 2)
    assert freeze(network, 5) == ["conv1", "bn1", "relu", "maxpool", "layer1"]
    assert {name.partition(".")[0] for name in frozen(network)} == {"conv1", "bn1", "layer1"}
    images = torch.rand(4, 3, 32, 32)
    before = {k: v.clone() for k, v in network.state_dict().items() if "running" in k}
    network.train()
    network(images)
    moved = {k.partition(".")[0] for k, v in network.state_dict().items() if "running" in k and (v != before[k]).any()}
    assert moved == {"layer2", "layer3", "layer4"}
    assert network.layer4.training and not network.bn1.training


def test_copy_of_a_frozen_network_stays_frozen_by_itself() -> None:
    network = build("resnet18", 2)
    freeze(network, 2)
    copied = copy.deepcopy(network).train()
    assert not copied.bn1.training
    network.bn1.running_mean += 1
    assert (copied.bn1.running_mean == 0).all()


@pytest.mark.parametrize("name", SMALL)
def test_freezing_the_backbone_leaves_the_head(name: str) -> None:
    network = build(name, 2)
    assert freeze(network, "backbone") == ["backbone"]
    head = head_of(network)[0]
    assert {n for n, p in network.named_parameters() if p.requires_grad} == {f"{head}.weight", f"{head}.bias"}


def test_freezing_nothing_changes_nothing_and_embeddings_go_with_the_first_part() -> None:
    network = build("timm/test_vit", 2)
    assert freeze(network, 0) == [] and not frozen(network)
    freeze(network, 1)
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight"} <= frozen(network)
    assert not any(name.startswith("blocks") for name in frozen(network))


@pytest.mark.parametrize("how", [10, -1, "head", True])
def test_freezing_too_much_or_by_another_word_is_refused(how: Any) -> None:
    with pytest.raises(InputError) as caught:
        freeze(build("resnet18", 2), how)
    (problem,) = caught.value.problems
    assert (problem.key, problem.value) == ("train.freeze", str(how))
    assert "a number from 0 to 9" in problem.allowed and "fc" in problem.allowed
    assert "train.freeze=9" in problem.remedy


def test_freezing_as_much_as_is_allowed_leaves_the_head() -> None:
    network = build("resnet18", 2)
    freeze(network, 9)
    assert {n for n, p in network.named_parameters() if p.requires_grad} == {"fc.weight", "fc.bias"}


# ---- weights: files


def test_scratch_needs_no_file() -> None:
    start = resolve("scratch")
    assert (start.source, start.file, start.sha256) == ("scratch", None, None)
    assert weights.load_into(build("squeezenet1_1", 2), start, "squeezenet1_1") == [
        "squeezenet1_1 starts from random weights"
    ]


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "module", "compiled", "safetensors"])
def test_weights_come_back_from_every_kind_of_file(tmp_path: Path, wrap: str) -> None:
    trained = build("squeezenet1_1", 3)
    state = trained.state_dict()
    file = tmp_path / "w.pt"
    match wrap:
        case "plain":
            torch.save(state, file)
        case "state_dict":
            torch.save({"epoch": 3, "state_dict": state, "optimizer": {"state": {}}}, file)
        case "module":
            torch.save({"model": {f"module.{k}": v for k, v in state.items()}}, file)
        case "compiled":
            torch.save({f"module._orig_mod.{k}": v for k, v in state.items()}, file)
        case "safetensors":
            from safetensors.torch import save_file

            file = tmp_path / "w.safetensors"
            save_file(state, file)
    start = resolve(str(file))
    assert (start.source, start.file) == ("file", file)
    assert start.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    network = build("squeezenet1_1", 3)
    lines = weights.load_into(network, start, "squeezenet1_1")
    assert lines == [f"{len(state)} of {len(state)} tensors of squeezenet1_1 loaded from {file}"]
    assert same(network, state)


def ours(file: Path, network: nn.Module, name: str, classes: list[str]) -> Path:
    content = {"format": weights.FORMAT, "model_name": name, "classes": classes, "state_dict": network.state_dict()}
    torch.save({**content, "epoch": 4}, file)
    return file


def test_checkpoint_of_ours_says_its_network_and_classes(tmp_path: Path) -> None:
    file = ours(tmp_path / "best.pt", build("squeezenet1_1", 2), "squeezenet1_1", ["cat", "dog"])
    checkpoint = weights.read(file)
    assert (checkpoint.model_name, checkpoint.classes) == ("squeezenet1_1", ["cat", "dog"])
    assert checkpoint.more["epoch"] == 4
    assert "2 classes" in resolve(str(file)).note
    assert "holds squeezenet1_1, but model.name=resnet18" in refusal(file, "resnet18")


def test_head_for_another_number_of_classes_stays_new_and_is_named(tmp_path: Path) -> None:
    trained = build("squeezenet1_1", 5)
    file = ours(tmp_path / "best.pt", trained, "squeezenet1_1", list("abcde"))
    network = build("squeezenet1_1", 3)
    untouched = {k: v.clone() for k, v in head_of(network)[1].state_dict().items()}
    lines = weights.load_into(network, resolve(str(file)), "squeezenet1_1")
    assert lines[1:] == ["New: classifier.1, which gives the classes (that of the file has 5 outputs)"]
    assert same(network, trained.state_dict(), "classifier.1")
    assert all(torch.equal(v, untouched[k]) for k, v in head_of(network)[1].state_dict().items())


def test_head_is_loaded_whole_or_not_at_all(tmp_path: Path) -> None:
    state = build("squeezenet1_1", 3).state_dict()
    state["classifier.1.weight"] = state["classifier.1.weight"][:2]
    torch.save(state, tmp_path / "odd.pt")
    network = build("squeezenet1_1", 3)
    bias = network.classifier[1].bias.detach().clone()
    weights.load_into(network, resolve(str(tmp_path / "odd.pt")), "squeezenet1_1")
    assert torch.equal(network.classifier[1].bias, bias)


@pytest.mark.skipif(not FILE.is_file(), reason="the shared weights are not here")
def test_file_of_a_backbone_alone_leaves_the_head_new() -> None:
    network = build("mobilenet_v2", 43)
    lines = weights.load_into(network, resolve(str(FILE), "mobilenet_v2"), "mobilenet_v2")
    assert lines[0].startswith("312 of 314 tensors of mobilenet_v2 loaded from")
    assert lines[1:] == ["New: classifier.1, which gives the classes (the file has none)"]
    assert same(network, weights.read(FILE).state, "classifier.1")


def test_missing_and_spare_tensors_are_said(tmp_path: Path) -> None:
    state = build("squeezenet1_1", 2).state_dict()
    del state["features.0.weight"]
    torch.save({**state, "projector.weight": torch.zeros(2)}, tmp_path / "w.pt")
    lines = weights.load_into(build("squeezenet1_1", 2), resolve(str(tmp_path / "w.pt")), "squeezenet1_1")
    assert "1 tensors that the file lacks, such as features.0.weight" in lines[1]
    assert "no place for, such as projector.weight" in lines[2]


def test_densenet_as_published_with_the_names_of_old_loads_whole(tmp_path: Path) -> None:
    network = build("densenet121", 2)
    old = {}
    for key, value in network.state_dict().items():
        for layer in ("norm", "conv"):
            key = key.replace(f".{layer}1.", f".{layer}.1.").replace(f".{layer}2.", f".{layer}.2.")
        old[key] = value
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "d.pth")
    lines = weights.load_into(build("densenet121", 2), resolve(str(tmp_path / "d.pth"), "densenet121"), "densenet121")
    assert len(lines) == 1


def test_auxiliary_heads_of_a_published_file_are_passed_over(tmp_path: Path) -> None:
    import torchvision

    file = tmp_path / "g.pth"
    with_aux = torchvision.models.googlenet(num_classes=10, aux_logits=True, init_weights=False)
    torch.save(with_aux.state_dict(), file)
    lines = weights.load_into(outline("googlenet", 10).to_empty(device="cpu"), resolve(str(file), "googlenet"), "g")
    assert len(lines) == 1


def test_file_of_another_network_is_refused(tmp_path: Path) -> None:
    torch.save(build("resnet18", 2).state_dict(), tmp_path / "r18.pt")
    assert "no tensor of the file" in refusal(tmp_path / "r18.pt")
    torch.save(outline("resnet50", 2).to_empty(device="cpu").state_dict(), tmp_path / "r50.pt")
    assert "layer1.0.conv1.weight has the shape (64, 64, 1, 1) in the file" in refusal(tmp_path / "r50.pt", "resnet18")


class Surprise:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("code from a weights file was run",)


def test_file_with_code_is_refused_by_name_and_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"state_dict": Surprise()}))
    torch.save({"model": Surprise()}, tmp_path / "zip.pt")
    assert "names print, which is code" in refusal(tmp_path / "zip.pt")
    assert "is not a readable checkpoint" in refusal(tmp_path / "evil.pt")
    assert "was run" not in capsys.readouterr().out


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none.pt")
    assert "is a folder" in refusal(tmp_path)
    (tmp_path / "text.pt").write_text("not weights at all")
    assert "is not a readable checkpoint" in refusal(tmp_path / "text.pt")
    (tmp_path / "text.safetensors").write_text("not weights at all")
    assert "is not a readable checkpoint" in refusal(tmp_path / "text.safetensors")
    torch.save([1, 2], tmp_path / "list.pt")
    assert "holds list" in refusal(tmp_path / "list.pt")
    torch.save({"epoch": 3}, tmp_path / "nothing.pt")
    assert "holds no weights" in refusal(tmp_path / "nothing.pt")


# ---- weights: pretrained


class Server:
    """Offers files at this machine's own address."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        offers: dict[str, bytes] = {}

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = offers.get(self.path.strip("/"))
                self.send_response(404 if body is None else 200)
                self.send_header("Content-Length", str(len(body or b"") + (100 if "cut" in self.path else 0)))
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, *_: Any) -> None:
                pass

        self._offers, self._monkeypatch = offers, monkeypatch
        self.service = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.service.serve_forever)
        self.thread.start()

    def publish(self, name: str, body: bytes | None, sha256_begins: str = "") -> None:
        """Make a file the pretrained weights of every network; without a body the server does not have it."""
        if body is not None:
            self._offers[name] = body
        one = published.Published(name, f"http://127.0.0.1:{self.service.server_port}/{name}", sha256_begins)
        self._monkeypatch.setattr(weights, "published", lambda _: [one])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    made = Server(monkeypatch)
    yield made
    made.service.shutdown()
    made.thread.join()
    made.service.server_close()


def saved(network: nn.Module, file: Path) -> bytes:
    torch.save(network.state_dict(), file)
    return file.read_bytes()


def test_published_files_carry_the_name_and_hash_of_torchs_convention() -> None:
    best, older = published.published("resnet50")
    assert (best.file_name, best.sha256_begins) == ("resnet50-11ad3fa6.pth", "11ad3fa6")
    assert older.file_name == "resnet50-0676ba61.pth"
    assert [one.file_name for one in published.published("vit_b_16")] == ["vit_b_16-c867db91.pth"]
    timm = published.published("timm/resnet18")
    assert timm[0].file_name == "resnet18.a1_in1k.safetensors"
    assert timm[0].url.endswith("/timm/resnet18.a1_in1k/resolve/main/model.safetensors")
    assert published.published("timm/efficientnet_b8.untrained") == []


@pytest.mark.parametrize("place", ["dir", "cwd", "torch"])
@pytest.mark.parametrize("name", ["squeezenet1_1-b8a52dc0.pth", "squeezenet1_1.pt"])
def test_pretrained_weights_are_found_on_this_machine(tmp_path: Path, place: str, name: str) -> None:
    folders = {"dir": tmp_path / "dir", "cwd": Path.cwd(), "torch": tmp_path / "torch" / "hub" / "checkpoints"}
    folders[place].mkdir(parents=True, exist_ok=True)
    saved(build("squeezenet1_1", 2), folders[place] / name)
    decisions = Decisions()
    config = ClassifyModelConfig(name="squeezenet1_1", weights_dirs=[str(folders["dir"])])
    start = weights.resolve(config, is_demo=False, decisions=decisions)
    assert (start.source, start.file) == ("pretrained", (folders[place] / name).resolve())
    assert [(d.key, d.value) for d in decisions] == [("model.weights", str(start.file))]


def test_weights_that_timm_has_stored_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    file = tmp_path / "model.pt"
    saved(build("timm/test_resnet", 2), file)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, name: str(file))
    assert resolve("pretrained", "timm/test_resnet").file == file


@pytest.mark.parametrize(("name", "head"), [("convnext_tiny", "classifier.2"), ("vit_b_16", "heads.head")])
def test_published_head_of_a_large_network_is_replaced(name: str, head: str, tmp_path: Path) -> None:
    """The file repeats one number instead of holding 86 million: its shapes are those of the published one."""
    state = {key: torch.full((), 0.5).expand(value.shape) for key, value in outline(name, 1000).state_dict().items()}
    torch.save(state, tmp_path / "published.pth")
    start = resolve(str(tmp_path / "published.pth"), name)
    assert start.outputs == 1000
    model = build(name, 3)
    notes = weights.load_into(model, start, name)
    assert any(f"New: {head}, which gives the classes (that of the file has 1000 outputs)" in note for note in notes)
    assert head_of(model)[0] == head and model.get_submodule(head).weight.shape[0] == 3
    loaded = {key for key, value in model.state_dict().items() if (value == 0.5).all()}
    assert loaded == {key for key in state if not key.startswith(f"{head}.")}


def test_weights_are_downloaded_once_and_checked(tmp_path: Path, server: Server) -> None:
    body = saved(build("squeezenet1_1", 2), tmp_path / "there.pt")
    server.publish("w.pth", body, hashlib.sha256(body).hexdigest()[:8])
    start = resolve("auto")
    assert start.file == tmp_path / "torch" / "hub" / "checkpoints" / "w.pth"
    assert start.file.read_bytes() == body
    server.publish("w.pth", b"changed since")
    assert resolve("pretrained") == start


@pytest.mark.parametrize(("name", "digits"), [("w.pth", "00000000"), ("cut.pth", "")])
def test_download_that_is_damaged_or_cut_off_leaves_no_file(
    tmp_path: Path, server: Server, name: str, digits: str
) -> None:
    server.publish(name, b"x" * 1000, digits)
    assert "nor could it be downloaded" in refusal("auto")
    assert list((tmp_path / "torch" / "hub" / "checkpoints").iterdir()) == []


@pytest.mark.parametrize("spec", ["auto", "pretrained"])
def test_weights_that_cannot_be_had_are_refused_with_what_to_type(server: Server, spec: str) -> None:
    server.publish("w.pth", None)
    said = refusal(spec, weights_dirs=["/my/weights"])
    assert said.startswith("w.pth is neither in /my/weights, ")
    assert "model.weights=scratch" in said and "model.weights=FILE" in said


def test_weights_that_nobody_published_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "published", lambda _: [])
    assert "nobody has published" in refusal("auto")


def test_demo_set_without_weights_trains_from_scratch_and_says_so(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.publish("w.pth", None)
    decisions = Decisions()
    config = ClassifyModelConfig(name="squeezenet1_1")
    assert weights.resolve(config, is_demo=True, decisions=decisions).source == "scratch"
    assert [(d.key, d.value) for d in decisions] == [("model.weights", "scratch")]
    assert [r.message for r in caplog.records if r.levelname == "WARNING"] == [
        "Pretrained weights of squeezenet1_1 can't be had: the demo set trains from scratch."
    ]
    config.weights = "pretrained"
    with pytest.raises(InputError):
        weights.resolve(config, is_demo=True, decisions=decisions)


def test_network_that_swallows_everything_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A firewall that drops packets: the connection is made by the system, and nobody ever answers."""
    monkeypatch.setattr(published, "ANSWER_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/w.pth"
        monkeypatch.setattr(weights, "published", lambda _: [published.Published("w.pth", url)])
        assert "nor could it be downloaded" in refusal("auto")
