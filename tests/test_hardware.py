"""The hardware room against a fake NVML and fake control groups, since the machine that runs the tests has its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pynvml
import pytest

import hsr_train.hardware
from hsr_train.errors import InputError
from hsr_train.hardware import (
    Gpu,
    Machine,
    choose_batch,
    choose_cache,
    choose_tier,
    choose_workers,
    detect,
    device_problems,
    nominal_gb,
    pin_cuda_order,
    read_machine,
    resolve_device,
)
from hsr_train.hardware.limits import read_cores, read_cpu_name, read_memory

GIB = 2**30


@dataclass
class FakeCard:
    """What the fake driver knows of a card or of a MIG slice."""

    name: str = "NVIDIA Test"
    gib: float = 8.0
    free_gib: float | None = None
    bus: int = 1
    uuid: str = "GPU-aaaa1111"
    slices: list[FakeCard | None] | None = None
    ids: tuple[int, int] = (0, 0)
    fails: dict[str, int] = field(default_factory=dict)


class FakeNvml:
    """Stands in for the module `pynvml`.

    It guarantees: the exceptions are pynvml's own; nothing can be asked before `nvmlInit` or after `nvmlShutdown`;
    cards come in the order given, whatever their PCI bus; `slices=None` is a card not in MIG mode, a None among the
    slices an empty place; memory is in bytes; a function named in a card's `fails` raises that NVML error.
    """

    NVMLError = pynvml.NVMLError
    NVMLError_LibraryNotFound = pynvml.NVMLError_LibraryNotFound
    NVMLError_DriverNotLoaded = pynvml.NVMLError_DriverNotLoaded
    NVMLError_LibRmVersionMismatch = pynvml.NVMLError_LibRmVersionMismatch
    NVMLError_NotFound = pynvml.NVMLError_NotFound
    NVMLError_NotSupported = pynvml.NVMLError_NotSupported
    NVML_DEVICE_MIG_ENABLE = pynvml.NVML_DEVICE_MIG_ENABLE

    def __init__(self, *cards: FakeCard, init_error: int | None = None, count_error: int | None = None) -> None:
        self.cards = cards
        self.init_error = init_error
        self.count_error = count_error
        self.open = 0
        self.num_starts = 0

    def _check(self, card: FakeCard | None, function: str) -> None:
        assert self.open == 1, "NVML asked while it was not running"
        if card is not None and function in card.fails:
            raise pynvml.NVMLError(card.fails[function])

    def nvmlInit(self) -> None:  # noqa: N802 - pynvml's names
        self.num_starts += 1
        if self.init_error is not None:
            raise pynvml.NVMLError(self.init_error)
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self._check(None, "")
        self.open -= 1

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "580.95.05"

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        self._check(None, "")
        if self.count_error is not None:
            raise pynvml.NVMLError(self.count_error)
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeCard:  # noqa: N802
        self._check(self.cards[index], "nvmlDeviceGetHandleByIndex")
        return self.cards[index]

    def nvmlDeviceGetPciInfo(self, card: FakeCard) -> SimpleNamespace:  # noqa: N802
        self._check(card, "nvmlDeviceGetPciInfo")
        return SimpleNamespace(domain=0, bus=card.bus, device=0)

    def nvmlDeviceGetUUID(self, card: FakeCard) -> str:  # noqa: N802
        self._check(card, "nvmlDeviceGetUUID")
        return card.uuid

    def nvmlDeviceGetName(self, card: FakeCard) -> str:  # noqa: N802
        self._check(card, "nvmlDeviceGetName")
        return card.name

    def nvmlDeviceGetCudaComputeCapability(self, card: FakeCard) -> tuple[int, int]:  # noqa: N802
        self._check(card, "nvmlDeviceGetCudaComputeCapability")
        return 8, 9

    def nvmlDeviceGetMemoryInfo(self, card: FakeCard) -> SimpleNamespace:  # noqa: N802
        self._check(card, "nvmlDeviceGetMemoryInfo")
        free = card.gib if card.free_gib is None else card.free_gib
        return SimpleNamespace(total=int(card.gib * GIB), free=int(free * GIB))

    def nvmlDeviceGetMigMode(self, card: FakeCard) -> list[int]:  # noqa: N802
        self._check(card, "nvmlDeviceGetMigMode")
        if card.slices is None and "A100" not in card.name:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [int(card.slices is not None)] * 2

    def nvmlDeviceGetMaxMigDeviceCount(self, card: FakeCard) -> int:  # noqa: N802
        return len(card.slices or [])

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card: FakeCard, index: int) -> FakeCard:  # noqa: N802
        part = (card.slices or [])[index]
        if part is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return part

    def nvmlDeviceGetGpuInstanceId(self, part: FakeCard) -> int:  # noqa: N802
        return part.ids[0]

    def nvmlDeviceGetComputeInstanceId(self, part: FakeCard) -> int:  # noqa: N802
        return part.ids[1]


BIG = FakeCard("NVIDIA GeForce RTX 4090", 23.99, 23.5, bus=0x41, uuid="GPU-bbbb2222-0000")
SMALL = FakeCard("NVIDIA GeForce RTX 3070", 8.0, 7.6, bus=0x01, uuid="GPU-aaaa1111-0000")
THIRD = FakeCard("NVIDIA GeForce GTX 1660", 6.0, 6.0, bus=0x81, uuid="GPU-aaaa3333-0000")


def mig_card(bus: int = 0x21) -> FakeCard:
    """Return an A100 in MIG mode with two slices and a gap between them."""
    name = "NVIDIA A100-SXM4-40GB MIG "
    small = FakeCard(name + "1g.5gb", 4.75, uuid="MIG-11110000-aaaa", ids=(9, 0))
    large = FakeCard(name + "3g.20gb", 19.5, uuid="MIG-22220000-bbbb", ids=(2, 0))
    return FakeCard("NVIDIA A100-SXM4-40GB", 40, bus=bus, uuid="GPU-cccc4444-0000", slices=[small, None, large])


def gpus_of(*cards: FakeCard, visible: str | None = None) -> tuple[tuple[Gpu, ...], str]:
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    nvml = FakeNvml(*cards)
    machine = read_machine(nvml, environ=environ)
    assert nvml.open == 0, "NVML was left running"
    return machine.gpus, machine.gpu_note


def gpu(gib: float, index: int = 0, free_gib: float | None = None, name: str = "NVIDIA Test") -> Gpu:
    total = int(gib * GIB)
    free = total if free_gib is None else int(free_gib * GIB)
    return Gpu(index, f"GPU-{index}", name, total, free, nominal_gb(total), (8, 9), "580.95.05")


def machine_with(*gpus: Gpu, **changes: Any) -> Machine:
    machine = Machine(gpus, 32 * GIB, 20 * GIB, 8, "Test CPU", "" if gpus else "no NVIDIA driver found (NVML: x)")
    return replace(machine, **changes)


# GPUs ----------------------------------------------------------------------------------------------------------------


def test_fake_nvml_and_the_room_use_only_names_that_pynvml_has() -> None:
    folder = Path(hsr_train.hardware.__file__).parent
    used = {name for path in folder.glob("*.py") for name in re.findall(r"\bnvml\.(\w+)", path.read_text())}
    assert len(used) >= 15
    assert [name for name in sorted(used) if not hasattr(pynvml, name)] == []
    assert [name for name in sorted(used) if not hasattr(FakeNvml, name)] == []


@pytest.mark.parametrize(
    ("reported_gib", "nominal"),
    [(5.6, 6), (5.9, 6), (6.0, 6), (11.8, 12), (15.0, 16), (23.7, 24), (39.4, 40), (79, 80), (140.4, 141)]
    + [(1.95, 2), (10.75, 11), (192, 192), (192.3, 192), (268.6, 269)],
)
def test_nominal_gb_rounds_up_to_a_size_that_is_sold_and_beyond_192_to_a_whole_number(
    reported_gib: float, nominal: int
) -> None:
    assert nominal_gb(int(reported_gib * GIB)) == nominal


def test_gpus_are_numbered_in_pci_order_whatever_nvml_says_first() -> None:
    gpus, note = gpus_of(BIG, SMALL)
    assert [(g.index, g.uuid, g.nominal_gb) for g in gpus] == [(0, SMALL.uuid, 8), (1, BIG.uuid, 24)]
    assert gpus[1].compute_capability == (8, 9)
    assert gpus[1].driver == "580.95.05"
    assert gpus[1].free_bytes == int(23.5 * GIB)
    assert note == ""


@pytest.mark.parametrize(
    ("visible", "uuids"),
    [
        (None, [SMALL, BIG, THIRD]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("1", [BIG]),
        ("1,0", [BIG, SMALL]),
        (" 2 , 0", [THIRD, SMALL]),
        ("0,7,1", [SMALL]),
        ("0,-1,1", [SMALL]),
        ("7", []),
        ("0,0", []),
        ("1gpu2", [BIG]),
        ("GPU-bbbb", [BIG]),
        ("GPU-bbbb2222-0000,GPU-aaaa1", [BIG, SMALL]),
        ("GPU-aaaa", []),  # two cards begin like this
        ("GPU-bbbb,GPU-ffff,GPU-aaaa1", [BIG]),
        ("GPU-bbbb,GPU-bbbb2222", []),  # the same card twice
        ("GPU-bbbb,0", [BIG]),  # the forms do not mix
        ("0,GPU-bbbb", [SMALL]),
        ("MIG-1111", []),
    ],
)
def test_cuda_visible_devices_selects_and_orders_as_cuda_does(visible: str | None, uuids: list[FakeCard]) -> None:
    gpus, note = gpus_of(BIG, SMALL, THIRD, visible=visible)
    assert [g.uuid for g in gpus] == [card.uuid for card in uuids]
    assert [g.index for g in gpus] == list(range(len(uuids)))
    assert uuids or "CUDA_VISIBLE_DEVICES" in note


@pytest.mark.parametrize(
    ("visible", "says"),
    [
        ("", "CUDA_VISIBLE_DEVICES is empty"),
        ("-1", "CUDA_VISIBLE_DEVICES=-1 hides every GPU"),
        ("0,7", "'7' does not name one GPU here"),
        ("GPU-aaaa", "'GPU-aaaa' does not name one GPU here"),
        ("0,0", "names a GPU twice"),
    ],
)
def test_gpu_note_says_why_cuda_visible_devices_hides_cards(visible: str, says: str) -> None:
    assert says in gpus_of(SMALL, THIRD, visible=visible)[1]


def test_gpu_note_stays_empty_when_cuda_visible_devices_is_ended_on_purpose() -> None:
    assert gpus_of(SMALL, THIRD, visible="0,-1")[1] == ""


@pytest.mark.parametrize(
    ("visible", "uuid", "nominal"),
    [
        (None, "MIG-11110000-aaaa", 5),
        ("0", "MIG-11110000-aaaa", 5),
        ("GPU-cccc", "MIG-11110000-aaaa", 5),
        ("MIG-2222", "MIG-22220000-bbbb", 20),
        ("MIG-22220000-bbbb", "MIG-22220000-bbbb", 20),
        ("MIG-GPU-cccc4444-0000/2/0", "MIG-22220000-bbbb", 20),
        ("MIG-2222,MIG-1111", "MIG-22220000-bbbb", 20),
    ],
)
def test_of_mig_slices_a_process_sees_one_with_the_memory_of_its_profile(
    visible: str | None, uuid: str, nominal: int
) -> None:
    gpus, _ = gpus_of(mig_card(), visible=visible)
    assert [(g.index, g.uuid, g.nominal_gb) for g in gpus] == [(0, uuid, nominal)]
    assert gpus[0].total_bytes < 20 * GIB


@pytest.mark.parametrize(("profile", "gib", "nominal"), [("1g.18gb", 16.0, 18), ("1c.2g.35gb+me", 32.5, 35)])
def test_a_mig_slices_nominal_memory_is_its_profiles_even_if_no_card_is_sold_so(
    profile: str, gib: float, nominal: int
) -> None:
    part = FakeCard(f"NVIDIA H200 MIG {profile}", gib, uuid="MIG-1")
    assert gpus_of(FakeCard("NVIDIA H200", 140.4, slices=[part]))[0][0].nominal_gb == nominal


def test_a_mig_slice_hides_the_whole_cards_beside_it_and_the_note_says_so() -> None:
    gpus, note = gpus_of(SMALL, mig_card())
    assert [g.uuid for g in gpus] == ["MIG-11110000-aaaa"]
    assert "one MIG slice only" in note
    assert gpus_of(SMALL, mig_card(), visible="0")[0][0].uuid == SMALL.uuid


def test_a_card_in_mig_mode_without_slices_is_left_out_with_a_note() -> None:
    gpus, note = gpus_of(replace(mig_card(), slices=[None]))
    assert gpus == ()
    assert "in MIG mode and has no slice" in note


def test_a_card_that_can_do_mig_but_does_not_is_one_gpu() -> None:
    gpus, note = gpus_of(FakeCard("NVIDIA A100-SXM4-40GB", 40, slices=None))
    assert [g.nominal_gb for g in gpus] == [40]
    assert note == ""


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "no NVIDIA driver found (NVML:"),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "installed but not loaded"),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "restart the machine"),
        (pynvml.NVML_ERROR_UNKNOWN, "does not answer"),
    ],
)
def test_without_a_working_driver_there_are_no_gpus_and_the_note_says_why(error: int, says: str) -> None:
    machine = read_machine(FakeNvml(SMALL, init_error=error), environ={})
    assert machine.gpus == ()
    assert says in machine.gpu_note
    assert choose_tier(machine, "auto").reason == machine.gpu_note


def test_why_there_is_no_gpu_is_said_once() -> None:
    machine = machine_with()
    tier = choose_tier(machine, "auto")
    device = resolve_device(machine, "auto", [tier])[1]
    assert (tier.reason, device.reason) == (machine.gpu_note, "no GPU, see gpu_tier")
    assert resolve_device(machine, "auto")[1].reason == machine.gpu_note  # nobody has said it
    lines = [*machine.describe(), *(machine.without_note(str(decision)) for decision in (tier, device))]
    assert "\n".join(lines).count(machine.gpu_note) == 1


def test_a_driver_that_fails_after_its_start_leaves_no_gpus_and_is_shut_down() -> None:
    nvml = FakeNvml(SMALL, count_error=pynvml.NVML_ERROR_UNKNOWN)
    machine = read_machine(nvml, environ={})
    assert (machine.gpus, nvml.open) == ((), 0)
    assert "does not answer" in machine.gpu_note


def test_a_driver_without_cards_says_so() -> None:
    assert gpus_of() == ((), "the NVIDIA driver runs but shows no GPU")


def test_a_card_that_fell_off_the_bus_is_left_out_with_a_note() -> None:
    lost = replace(SMALL, fails={"nvmlDeviceGetHandleByIndex": pynvml.NVML_ERROR_GPU_IS_LOST})
    gpus, note = gpus_of(lost, BIG)
    assert [g.uuid for g in gpus] == [BIG.uuid]
    assert "GPU 0 cannot be read (NVML: GPU is lost)" in note


def test_a_gpu_without_memory_of_its_own_has_the_machines_ram() -> None:
    spark = FakeCard("NVIDIA GB10", fails={"nvmlDeviceGetMemoryInfo": pynvml.NVML_ERROR_NOT_SUPPORTED})
    machine = read_machine(FakeNvml(spark), environ={})
    (found,) = machine.gpus
    assert found.shares_ram
    assert (found.total_bytes, found.free_bytes) == (machine.ram_total_bytes, machine.ram_available_bytes)
    assert "shared with the CPU" in found.describe()


def test_pin_cuda_order_sets_pci_order_and_is_silent_where_nothing_was_asked(caplog: pytest.LogCaptureFixture) -> None:
    environ: dict[str, str] = {}
    pin_cuda_order(environ)
    pin_cuda_order(environ)
    assert environ == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert caplog.text == ""


def test_pin_cuda_order_replaces_another_order_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    environ = {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}
    pin_cuda_order(environ)
    assert environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert "FASTEST_FIRST is replaced" in caplog.text


@pytest.mark.parametrize(("started", "num_gpus", "warns"), [(True, 2, True), (True, 1, False), (False, 2, False)])
def test_pin_cuda_order_warns_where_cuda_numbered_several_cards_already(
    started: bool, num_gpus: int, warns: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    torch = ModuleType("torch")
    torch.cuda = SimpleNamespace(is_initialized=lambda: started, device_count=lambda: num_gpus)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", torch)
    pin_cuda_order({})
    assert ("numbers may differ" in caplog.text) == warns


# Machine -------------------------------------------------------------------------------------------------------------


def test_detect_asks_once_and_again_on_refresh(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml(SMALL)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pynvml", nvml)
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        first = detect(refresh=True)
        assert detect() is first
        assert nvml.num_starts == 1
        nvml.cards = (BIG,)
        assert detect().gpus[0].uuid == SMALL.uuid
        assert detect(refresh=True).gpus[0].uuid == BIG.uuid
    detect(refresh=True)  # leave the real machine behind


def test_detect_on_this_machine_is_consistent_and_imports_neither_torch_nor_ultralytics() -> None:
    code = (
        "import sys; from hsr_train.hardware import detect; m = detect();"
        "assert 0 < m.ram_available_bytes <= m.ram_total_bytes, m; assert m.cores >= 1 and m.cpu_name, m;"
        "assert m.gpus or m.gpu_note, m; print(*sorted({'torch', 'ultralytics'} & set(sys.modules)), len(m.describe()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 3


def test_record_is_json_and_names_card_driver_and_capability() -> None:
    machine = read_machine(FakeNvml(BIG), environ={})
    record = json.loads(json.dumps(machine.record()))
    card = record["gpus"][0]
    assert (card["uuid"], card["compute_capability"], card["driver"]) == (BIG.uuid, "8.9", "580.95.05")
    assert record["ram_total_bytes"] == machine.ram_total_bytes
    assert {"cores", "cpu_name", "gpu_note", "ram_available_bytes"} <= record.keys()


def test_describe_tells_what_each_card_has_free_and_what_limits_memory() -> None:
    text = "\n".join(machine_with(gpu(24, free_gib=11.9), ram_note="limited by the control group /x").describe())
    assert "GPU 0: NVIDIA Test, 24 GB nominal, 11.9 of 24.0 GiB free, compute capability 8.9, driver 580.95.05" in text
    assert "Test CPU, 8 cores usable" in text
    assert "RAM: 20.0 of 32.0 GiB available (limited by the control group /x)" in text


def test_describe_gives_the_reason_where_there_is_no_gpu() -> None:
    assert "GPU: none (no NVIDIA driver found (NVML: x))" in machine_with().describe()


@pytest.mark.gpu
def test_detected_gpus_are_those_that_torch_numbers() -> None:
    code = (
        "from hsr_train.hardware import detect, pin_cuda_order; m = detect(); pin_cuda_order(); import torch;"
        "seen = [str(torch.cuda.get_device_properties(i).uuid) for i in range(torch.cuda.device_count())];"
        "assert [g.uuid.split('-', 1)[1] for g in m.gpus] == seen, (m.gpus, m.gpu_note, seen)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr


# Container limits ----------------------------------------------------------------------------------------------------

HOST = (64 * GIB, 60 * GIB)


@dataclass
class FakeKernel:
    """A proc file system and control groups under one folder; mount points are real folders there."""

    root: Path

    @property
    def proc(self) -> Path:
        return self.root / "proc"

    def process(self, cgroup: str, *mounts: tuple[str, str, str, str]) -> None:
        """Write /proc/self: the cgroup file, and mounts as (root, mount point below self.root, type, options)."""
        lines = ["1 0 8:1 / / rw - ext4 /dev/sda1 rw"]
        for number, (root, point, kind, options) in enumerate(mounts, start=30):
            shown = str(self.root / point).replace(" ", "\\040")
            lines.append(f"{number} 1 0:{number} {root} {shown} rw,nosuid shared:{number} - {kind} {kind} {options}")
        self.write("proc/self/cgroup", cgroup)
        self.write("proc/self/mountinfo", "\n".join(lines) + "\n")

    def write(self, path: str, text: str | int) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(f"{text}\n" if isinstance(text, int) else text)


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    return FakeKernel(tmp_path)


V2 = ("/", "cg", "cgroup2", "rw,nsdelegate")


def test_read_memory_v2_takes_the_limit_and_subtracts_what_is_used_but_not_reclaimable_cache(
    kernel: FakeKernel,
) -> None:
    kernel.process("0::/box\n", V2)
    kernel.write("cg/box/memory.max", 8 * GIB)
    kernel.write("cg/box/memory.high", "max\n")
    kernel.write("cg/box/memory.current", 5 * GIB)
    kernel.write("cg/box/memory.stat", f"anon 7\ninactive_file {2 * GIB}\nactive_file 9\n")
    memory = read_memory(kernel.proc, HOST)
    assert (memory.total_bytes, memory.available_bytes) == (8 * GIB, 5 * GIB)
    assert str(kernel.root / "cg/box") in memory.note


def test_read_memory_v2_heeds_the_high_mark_and_every_ancestor(kernel: FakeKernel) -> None:
    kernel.process("0::/team/user/box\n", V2)
    kernel.write("cg/team/user/box/memory.max", "max\n")
    kernel.write("cg/team/user/memory.max", 30 * GIB)
    kernel.write("cg/team/user/memory.high", 20 * GIB)
    kernel.write("cg/team/user/memory.current", 1 * GIB)
    kernel.write("cg/team/memory.max", 24 * GIB)
    kernel.write("cg/team/memory.current", 22 * GIB)  # neighbours hold most of it
    memory = read_memory(kernel.proc, HOST)
    assert (memory.total_bytes, memory.available_bytes) == (20 * GIB, 2 * GIB)


def test_read_memory_v2_sees_the_limit_from_inside_a_container_namespace(kernel: FakeKernel) -> None:
    kernel.process("0::/\n", V2)
    kernel.write("cg/memory.max", 4 * GIB)
    kernel.write("cg/memory.current", 1 * GIB)
    assert read_memory(kernel.proc, HOST).available_bytes == 3 * GIB


def test_read_memory_v1_finds_the_group_below_the_mounts_root(kernel: FakeKernel) -> None:
    mount = ("/docker/abc", "cg one/memory", "cgroup", "rw,memory")
    kernel.process("5:memory:/docker/abc/inner\n3:cpu,cpuacct:/docker/abc\n", mount)
    kernel.write("cg one/memory/memory.limit_in_bytes", 16 * GIB)
    kernel.write("cg one/memory/memory.usage_in_bytes", 4 * GIB)
    kernel.write("cg one/memory/memory.stat", f"inactive_file 5\ntotal_inactive_file {GIB}\n")
    kernel.write("cg one/memory/inner/memory.limit_in_bytes", 9223372036854771712)
    kernel.write("cg one/memory/inner/memory.usage_in_bytes", 2 * GIB)
    memory = read_memory(kernel.proc, HOST)
    assert (memory.total_bytes, memory.available_bytes) == (16 * GIB, 13 * GIB)


def test_read_memory_uses_the_mount_itself_where_the_hosts_path_is_not_shown(kernel: FakeKernel) -> None:
    kernel.process("5:memory:/kubepods/pod1\n", ("/", "cg/memory", "cgroup", "rw,memory"))
    kernel.write("cg/memory/memory.limit_in_bytes", 2 * GIB)
    assert read_memory(kernel.proc, HOST).total_bytes == 2 * GIB


def test_read_memory_in_a_mixed_hierarchy_reads_the_version_that_has_the_controller(kernel: FakeKernel) -> None:
    kernel.process("4:memory:/box\n0::/\n", V2, ("/", "memory", "cgroup", "rw,memory"))
    (kernel.root / "cg").mkdir()
    kernel.write("memory/box/memory.limit_in_bytes", 3 * GIB)
    assert read_memory(kernel.proc, HOST).total_bytes == 3 * GIB


def test_read_memory_is_the_hosts_where_nothing_limits_it(kernel: FakeKernel) -> None:
    kernel.process("0::/box\n", V2)
    kernel.write("cg/box/memory.max", "max\n")
    for proc in (kernel.proc, kernel.root / "no such proc"):
        memory = read_memory(proc, HOST)
        assert (memory.total_bytes, memory.available_bytes, memory.note) == (*HOST, "")


def test_read_memory_is_never_negative_in_a_full_container(kernel: FakeKernel) -> None:
    kernel.process("0::/\n", V2)
    kernel.write("cg/memory.max", GIB)
    kernel.write("cg/memory.current", GIB + 4096)
    assert read_memory(kernel.proc, HOST).available_bytes == 0


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000\n", 16), ("200000 100000\n", 2), ("150000 100000\n", 2), ("10000 100000\n", 1)]
)
def test_read_cores_v2_bounds_affinity_by_the_quota_of_an_ancestor(kernel: FakeKernel, quota: str, cores: int) -> None:
    kernel.process("0::/team/box\n", V2)
    kernel.write("cg/team/box/cpu.max", "max 100000\n")
    kernel.write("cg/team/cpu.max", quota)
    assert read_cores(kernel.proc, usable=16) == cores


@pytest.mark.parametrize(("quota", "cores"), [(-1, 16), (400000, 4), (3200000, 16)])
def test_read_cores_v1_bounds_affinity_by_the_quota(kernel: FakeKernel, quota: int, cores: int) -> None:
    kernel.process("3:cpu,cpuacct:/box\n", ("/", "cpu", "cgroup", "rw,cpu,cpuacct"))
    kernel.write("cpu/box/cpu.cfs_quota_us", quota)
    kernel.write("cpu/box/cpu.cfs_period_us", 100000)
    assert read_cores(kernel.proc, usable=16) == cores


def test_read_cpu_name_takes_the_model_or_the_architecture(kernel: FakeKernel) -> None:
    assert read_cpu_name(kernel.proc)
    kernel.write("proc/cpuinfo", "processor\t: 0\nmodel\t\t: 1\nmodel name\t: AMD Test 9\nflags\t: a\n")
    assert read_cpu_name(kernel.proc) == "AMD Test 9"


# Choices -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reported_gib", "tier", "nominal"),
    [
        (4, "low", 4),
        (4.8, "low", 5),
        (5.6, "medium", 6),
        (5.9, "medium", 6),
        (11.8, "medium", 12),
        (12, "medium", 12),
        (15.0, "high", 16),
        (23.7, "high", 24),
        (31.4, "workstation", 32),
        (39.4, "workstation", 40),
        (79, "workstation", 80),
    ],
)
def test_choose_tier_goes_by_nominal_memory(reported_gib: float, tier: str, nominal: int) -> None:
    decision = choose_tier(machine_with(gpu(reported_gib)), "auto")
    assert (decision.key, decision.value) == ("gpu_tier", tier)
    assert decision.reason == f"NVIDIA Test, {nominal} GB nominal"


@pytest.mark.parametrize(
    ("device", "tier"),
    [("auto", "high"), (0, "medium"), (1, "high"), ("cuda:1", "high"), ([0, 1], "medium"), ([1], "high")]
    + [("cpu", "cpu"), ("1", "high"), ("0,1", "medium")],
)
def test_choose_tier_takes_the_largest_card_or_the_smallest_of_those_named(device: Any, tier: str) -> None:
    assert choose_tier(machine_with(gpu(8, 0), gpu(24, 1)), device).value == tier


@pytest.mark.parametrize(
    ("profile", "gib", "tier"),
    [("1g.5gb", 4.75, "low"), ("1g.10gb", 9.5, "medium"), ("3g.20gb", 19.5, "high"), ("3g.40gb", 39.25, "workstation")],
)
def test_choose_tier_of_a_mig_slice_is_its_profiles_not_the_cards(profile: str, gib: float, tier: str) -> None:
    part = FakeCard(f"NVIDIA A100-SXM4-80GB MIG {profile}", gib, uuid="MIG-1")
    gpus, _ = gpus_of(FakeCard("NVIDIA A100-SXM4-80GB", 79, slices=[part]))
    assert choose_tier(machine_with(*gpus), "auto").value == tier


def test_choose_tier_and_batch_of_a_card_of_which_another_process_holds_half_are_those_of_its_size() -> None:
    machine = machine_with(gpu(11.8, free_gib=5.9))
    assert choose_tier(machine, "auto").value == "medium"
    assert choose_batch("auto", machine=machine, device="cuda:0", imgsz=640, tier_batch=4).value == 24


def test_choose_tier_is_cpu_with_the_reason() -> None:
    assert "NVIDIA driver" in choose_tier(machine_with(), "auto").reason
    assert choose_tier(machine_with(gpu(24)), "cpu").reason == "train.device=cpu"


def test_choose_tier_refuses_a_gpu_that_is_not_there() -> None:
    with pytest.raises(InputError, match="GPU 7 is not there"):
        choose_tier(machine_with(gpu(24)), "cuda:7")


@pytest.mark.parametrize(
    ("device", "torch_device"),
    [("auto", "cuda:1"), ("cpu", "cpu"), (0, "cuda:0"), ("cuda:2", "cuda:2"), ([2], "cuda:2")],
)
def test_resolve_device_gives_torchs_name(device: Any, torch_device: str) -> None:
    machine = machine_with(gpu(8, 0), gpu(24, 1), gpu(12, 2))
    name, decision = resolve_device(machine, device)
    assert name == decision.value == torch_device
    assert decision.key == "train.device"


def test_resolve_device_takes_the_most_free_of_equal_cards_and_says_so() -> None:
    machine = machine_with(gpu(23.6, 0, free_gib=11.5), gpu(23.7, 1, free_gib=11.4), gpu(23.5, 2, free_gib=20))
    name, decision = resolve_device(machine, "auto")
    assert name == "cuda:2"
    assert "most free" in decision.reason


def test_resolve_device_says_when_another_process_holds_half_the_card() -> None:
    gpus, _ = gpus_of(replace(BIG, free_gib=12.0))
    assert "only 12.0 of 24.0 GiB are free" in resolve_device(machine_with(*gpus), "auto")[1].reason
    assert choose_tier(machine_with(*gpus), "auto").value == "high"


def test_resolve_device_without_a_gpu_is_the_cpu_with_the_reason() -> None:
    name, decision = resolve_device(machine_with(), "auto")
    assert name == "cpu"
    assert "no NVIDIA driver found" in decision.reason


def test_device_that_is_not_there_is_refused_with_what_there_is() -> None:
    with pytest.raises(InputError) as refused:
        resolve_device(machine_with(gpu(8, 0, name="RTX 3070"), gpu(24, 1, name="RTX 4090")), "cuda:7")
    (problem,) = refused.value.problems
    assert (problem.key, problem.value) == ("train.device", "cuda:7")
    assert "GPU 0 (RTX 3070, 8 GB nominal); GPU 1 (RTX 4090, 24 GB nominal)" in problem.allowed
    assert problem.remedy == "train.device=1, or train.device=auto"


def test_device_that_is_not_there_for_want_of_a_driver_is_refused_with_the_reason() -> None:
    (problem,) = device_problems(machine_with(), 0)
    assert "this machine has no GPU (no NVIDIA driver found" in problem.allowed
    assert problem.remedy == "train.device=cpu"


def test_several_gpus_in_one_process_are_refused_with_the_best_of_them() -> None:
    (problem,) = device_problems(machine_with(gpu(8, 0), gpu(12, 1), gpu(24, 2)), [0, 1])
    assert "one process uses one GPU" in problem.allowed
    assert problem.remedy.startswith("train.device=1 ")


@pytest.mark.parametrize("device", ["gpu", "cuda:", "mps", -1, True, None, [], [0, 0], [0, "cpu"], 1.5, "0,"])
def test_malformed_device_is_refused_with_the_forms(device: Any) -> None:
    (problem,) = device_problems(machine_with(gpu(24)), device)
    assert "auto, cpu, a GPU number" in problem.allowed
    assert problem.remedy


@pytest.mark.parametrize(
    ("requested", "cores", "workers"), [(8, 16, 8), (8, 8, 8), (8, 2, 2), (2, 2, 2), (1, 1, 1), (0, 2, 0)]
)
def test_choose_workers_is_bounded_by_the_cores(requested: int, cores: int, workers: int) -> None:
    decision = choose_workers(requested, machine_with(cores=cores))
    assert (decision.key, decision.value) == ("train.workers", workers)
    assert ("8 asked for, 2 cores usable" in decision.reason) == (workers < requested)


def test_temporary_folder_too_long_for_sockets_means_no_loader_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would lose their first batch, and the run would wait for it for ever."""
    monkeypatch.setattr(tempfile, "tempdir", "/tmp/" + "x" * 80)
    decision = choose_workers(8, machine_with(cores=16))
    assert decision.value == 0
    assert "too long for the sockets of loader processes; set TMPDIR=/tmp" in decision.reason
    monkeypatch.setattr(tempfile, "tempdir", "/tmp/" + "x" * 70)
    assert choose_workers(8, machine_with(cores=16)).value == 8


@pytest.mark.parametrize(("shm_mib", "workers"), [(64, 1), (20, 0), (8192, 8), (None, 8)])
def test_choose_workers_is_bounded_by_shared_memory_where_the_batch_is_known(shm_mib: int | None, workers: int) -> None:
    machine = machine_with(shm_free_bytes=None if shm_mib is None else shm_mib * 2**20)
    decision = choose_workers(8, machine, batch_bytes=16 * 3 * 640 * 640)
    assert decision.value == workers
    assert ("--shm-size" in decision.reason) == (workers < 8)
    assert choose_workers(8, machine).value == 8


def cache(requested: str, ram_gib: float, disk_gib: float, tmp_path: Path, machine: Machine | None = None) -> Any:
    return choose_cache(
        requested,
        ram_bytes=int(ram_gib * GIB),
        disk_bytes=int(disk_gib * GIB),
        machine=machine or machine_with(),
        cache_dir=tmp_path / "not" / "yet",
    )


@pytest.fixture
def disk_of_10_gib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def usage(path: Path) -> SimpleNamespace:
        assert path == tmp_path, "the nearest folder that exists"
        return SimpleNamespace(free=10 * GIB)

    monkeypatch.setattr("hsr_train.hardware.choices.shutil.disk_usage", usage)


@pytest.mark.usefixtures("disk_of_10_gib")
@pytest.mark.parametrize(
    ("ram_gib", "disk_gib", "choice"),
    [(10, 99, "ram"), (10.1, 8, "disk"), (10.1, 8.3, "none"), (99, 0, "disk"), (0.1, 0.1, "ram")],
)
def test_choose_cache_auto_is_ram_then_disk_then_none(
    ram_gib: float, disk_gib: float, choice: str, tmp_path: Path
) -> None:
    decision = cache("auto", ram_gib, disk_gib, tmp_path)
    assert (decision.key, decision.value) == ("train.cache", choice)
    assert "of memory available" in decision.reason


@pytest.mark.usefixtures("disk_of_10_gib")
def test_choose_cache_takes_what_was_typed_where_it_fits(tmp_path: Path) -> None:
    assert cache("ram", 16, 99, tmp_path).value == "ram"  # of 20 GiB available
    assert cache("disk", 1, 8, tmp_path).value == "disk"
    assert cache("none", 0.1, 0.1, tmp_path).value == "none"


@pytest.mark.usefixtures("disk_of_10_gib")
@pytest.mark.parametrize(
    ("requested", "ram_gib", "disk_gib", "figures", "remedy"),
    [
        ("ram", 16.1, 8, "16.1 GiB needed, 20.0 GiB of memory available", "train.cache=disk"),
        ("ram", 16.1, 9, "16.1 GiB needed, 20.0 GiB of memory available", "train.cache=none"),
        ("disk", 1, 9, "9.0 GiB to write, 10.0 GiB free", "train.cache=none, or data.cache_dir=FOLDER"),
        ("tape", 1, 1, "must be one of auto, ram, disk, none", "train.cache=auto"),
    ],
)
def test_choose_cache_refuses_what_does_not_fit_with_figures(
    requested: str, ram_gib: float, disk_gib: float, figures: str, remedy: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as refused:
        cache(requested, ram_gib, disk_gib, tmp_path)
    (problem,) = refused.value.problems
    assert problem.key == "train.cache"
    assert figures in problem.allowed
    assert problem.remedy.startswith(remedy)


def test_choose_cache_asks_the_real_disk_of_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    decision = cache("disk", 1, 0, tmp_path)
    assert str(tmp_path / "not" / "yet") in decision.reason


@pytest.mark.parametrize(
    ("gib", "imgsz", "batch"),
    [
        (23.7, 320, 64),
        (20, 416, 64),
        (20, 417, 32),
        (23.7, 640, 32),
        (23.7, 641, 16),
        (23.7, 1024, 16),
        (16, 416, 48),
        (9.6, 640, 24),  # sold as 10 GB
        (8.1, 640, 24),  # above 8 GB, so sold as 10 GB
        (19.5, 640, 32),  # sold as 20 GB
        (15.9, 640, 24),
        (11.8, 640, 24),
        (79, 640, 32),
        (5.6, 640, 16),
        (16, 1024, 12),
        (8, 416, 32),
        (8, 640, 16),
        (8, 1024, 8),
        (23.7, 1280, 10),
        (23.7, 2048, 4),
        (8, 8192, 1),
    ],
)
def test_choose_batch_auto_follows_the_table_by_nominal_memory_and_image_side(
    gib: float, imgsz: int, batch: int
) -> None:
    machine = machine_with(gpu(40, 0), gpu(gib, 1))
    decision = choose_batch("auto", machine=machine, device="cuda:1", imgsz=imgsz, tier_batch=7)
    assert (decision.key, decision.value) == ("train.batch", batch)
    assert f"{imgsz} px" in decision.reason


def test_choose_batch_auto_on_the_cpu_is_the_tiers_with_the_reason() -> None:
    decision = choose_batch(-1, machine=machine_with(), device="cpu", imgsz=320, tier_batch=4)
    assert decision.value == 4
    assert "tier" in decision.reason


def test_choose_batch_keeps_a_number_and_refuses_anything_else() -> None:
    machine = machine_with(gpu(24))
    assert choose_batch(5, machine=machine, device="cuda:0", imgsz=640, tier_batch=4).value == 5
    for wrong in (0, -2, True, "probe", "big"):
        with pytest.raises(InputError, match=r"train\.batch=auto"):
            choose_batch(wrong, machine=machine, device="cuda:0", imgsz=640, tier_batch=4)
