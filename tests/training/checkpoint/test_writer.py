"""Files of a save: torch's reader and safetensors read them, they are described as they are, and failures are told."""

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from parallel.optimizers.adam import MOMENTS
from tests.distributed import spawn
from tests.layouts import VOCAB, config
from training.checkpoint import tensor_file
from training.checkpoint.manifest import FileRecord
from training.checkpoint.state import TrainingState
from training.checkpoint.tensor_file import BLOCK, write_file
from training.checkpoint.writer import ShardWriter

NAME = "shard-00001-model-00001-of-00001.safetensors"
DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip


def tensors() -> dict[str, Tensor]:
    """Every dtype, and every kind of layout in memory."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(0, 100, (6, 10), generator=generator)
    whole = {f"dtype/{dtype}": numbers.to(dtype) for dtype in DTYPES}
    return whole | {
        "no dimension": torch.tensor(3.25),
        "empty": torch.empty(0, 3, dtype=torch.bfloat16),
        "transposed": numbers.float().T,
        "every other": numbers.to(torch.bfloat16)[::2, 1::3],
        "part of a larger one": numbers[2:4],
        "one odd byte": torch.tensor([7], dtype=torch.uint8),
        'a "größe" \\ quoted': torch.ones(2),
    }


def save(folder: Path, state: dict[str, Tensor]) -> dict[str, FileRecord]:
    folder.mkdir(exist_ok=True)
    writer = ShardWriter(folder)
    dcp.save(dict(state), storage_writer=writer, no_dist=True)
    return writer.files


def test_safetensors_reads_every_kind_of_tensor(tmp_path: Path) -> None:
    state = tensors()
    assert list(save(tmp_path, state)) == [NAME]
    read = load_file(tmp_path / NAME)
    assert read.keys() == state.keys()
    for name, tensor in state.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor), name


def test_torchs_reader_loads_it_and_torchs_writer_says_the_same(tmp_path: Path) -> None:
    state = tensors()
    save(tmp_path / "ours", state)
    dcp.save(
        {name: tensor.contiguous() for name, tensor in state.items()},
        storage_writer=HuggingFaceStorageWriter(str(tmp_path / "torchs"), save_distributed=True),
        no_dist=True,
    )
    target = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    dcp.load(target, storage_reader=HuggingFaceStorageReader(str(tmp_path / "ours")), no_dist=True)
    for name, tensor in state.items():
        assert torch.equal(target[name], tensor), name
    assert [path.name for path in (tmp_path / "torchs").iterdir()] == [NAME]
    with safe_open(tmp_path / "ours" / NAME, "pt") as ours, safe_open(tmp_path / "torchs" / NAME, "pt") as torchs:
        mine, theirs = ours.metadata(), torchs.metadata()
        assert set(ours.keys()) == set(torchs.keys())
    assert json.loads(mine.pop("DCP_SHARDING_INFO")) == json.loads(theirs.pop("DCP_SHARDING_INFO"))
    assert mine == theirs


def test_every_tensor_begins_at_a_multiple_of_its_items_size(tmp_path: Path) -> None:
    save(tmp_path, tensors())
    content = (tmp_path / NAME).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert length % 8 == 0
    for name, tensor in tensors().items():
        assert header[name]["data_offsets"][0] % tensor.itemsize == 0, name


def test_equal_states_give_equal_bytes_in_any_order(tmp_path: Path) -> None:
    state = tensors()
    one = save(tmp_path / "one", state)
    two = save(tmp_path / "two", dict(reversed([(name, tensor.clone()) for name, tensor in state.items()])))
    assert one == two
    assert (tmp_path / "one" / NAME).read_bytes() == (tmp_path / "two" / NAME).read_bytes()


@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
def test_the_record_is_of_the_file_whatever_its_size(tmp_path: Path, size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    large = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator)
    (record,) = save(tmp_path, {"large": large, "small": torch.arange(5)}).values()
    content = (tmp_path / NAME).read_bytes()
    assert record == FileRecord(size=len(content), sha256=hashlib.sha256(content).hexdigest())
    assert torch.equal(load_file(tmp_path / NAME)["large"], large)


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(0, 200), max_size=12), block=st.sampled_from([64, 128, 4096]))
def test_blocks_join_to_the_bytes_of_all_tensors(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], block: int
) -> None:
    parts = [torch.randint(0, 256, (size,), dtype=torch.uint8) for size in sizes]
    path = tmp_path_factory.mktemp("file") / "f"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_file, "BLOCK", block)
        record = write_file(path, b"header", parts)
    expected = b"header" + b"".join(bytes(part.tolist()) for part in parts)
    assert path.read_bytes() == expected
    assert record == FileRecord(size=len(expected), sha256=hashlib.sha256(expected).hexdigest())


def test_without_sync_file_range_the_file_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_it = save(tmp_path / "with", tensors())
    monkeypatch.setattr(tensor_file, "_sync_file_range", lambda: None)
    assert save(tmp_path / "without", tensors()) == with_it


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("precious")
    with pytest.raises(dcp.api.CheckpointException, match="FileExistsError"):
        save(tmp_path, tensors())
    assert (tmp_path / NAME).read_text() == "precious"


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    """`/dev/full` fails every write as a full disk does."""
    (tmp_path / NAME).symlink_to("/dev/full")
    with pytest.MonkeyPatch.context() as patch:
        original = Path.open
        patch.setattr(Path, "open", lambda path, mode="r", **options: original(path, mode.replace("x", "w"), **options))
        with pytest.raises(dcp.api.CheckpointException) as caught:
            save(tmp_path, {"w": torch.zeros(3 * BLOCK)})
    ((cause, _),) = caught.value.failures.values()
    assert isinstance(cause, OSError) and cause.errno == errno.ENOSPC


@pytest.mark.parametrize(("total", "fits"), [(1 << 30, False), (0, True)])
def test_a_disk_without_room_is_not_filled(tmp_path: Path, total: int, fits: bool) -> None:
    """Training writes its own records there. A file system that tells nothing (all zeros) is tried."""
    free = shutil.disk_usage(tmp_path)._replace(total=total, free=0)
    with mock.patch.object(shutil, "disk_usage", return_value=free):
        if fits:
            save(tmp_path, tensors())
        else:
            with pytest.raises(dcp.api.CheckpointException, match="to write, 0 free"):
                save(tmp_path, tensors())
    assert (tmp_path / NAME).exists() == fits


def test_an_fsync_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(dcp.api.CheckpointException, match="Input/output error"):
        save(tmp_path, tensors())


def sharded(folder: Path) -> None:
    """Rows over two ranks, columns over two ranks (gaps in memory), and one that both hold."""
    mesh = init_device_mesh("cpu", (2,))
    whole = torch.arange(48.0).reshape(8, 6)
    state = {
        "rows": distribute_tensor(whole, mesh, [Shard(0)]),
        "columns": DTensor.from_local(whole.chunk(2, dim=1)[dist.get_rank()], mesh, [Shard(1)]),
        "same": distribute_tensor(whole.to(torch.bfloat16), mesh, [Replicate()]),
    }
    writer = ShardWriter(folder)
    dcp.save(state, storage_writer=writer)
    for path in folder.iterdir() if dist.get_rank() == 0 else ():
        content = path.read_bytes()
        assert writer.files[path.name] == FileRecord(size=len(content), sha256=hashlib.sha256(content).hexdigest())
    loaded = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    dcp.load(loaded, storage_reader=HuggingFaceStorageReader(str(folder)))
    for name, tensor in state.items():
        assert torch.equal(loaded[name].full_tensor(), tensor.full_tensor()), name


def test_shards_of_two_ranks_are_parts_of_whole_tensors(tmp_path: Path) -> None:
    spawn(2, sharded, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [NAME, NAME.replace("00001", "00002", 1)]
    whole = {"rows": torch.zeros(8, 6), "columns": torch.zeros(8, 6), "same": torch.zeros(8, 6, dtype=torch.bfloat16)}
    dcp.load(whole, storage_reader=HuggingFaceStorageReader(str(tmp_path)), no_dist=True)
    for name, tensor in whole.items():
        assert torch.equal(tensor, torch.arange(48.0).reshape(8, 6).to(tensor.dtype)), name
    copies = [path.name for path in tmp_path.iterdir() if "same" in load_file(path)]
    assert len(copies) == 1, "what two ranks hold is written once"


def one_rank_fails(folder: Path, failing_rank: int) -> list[int]:
    if dist.get_rank() == failing_rank:
        (folder / f"shard-{failing_rank + 1:05d}-model-00001-of-00001.safetensors").mkdir()
    mesh = init_device_mesh("cpu", (2,))
    state = {"rows": distribute_tensor(torch.ones(4, 4), mesh, [Shard(0)])}
    with pytest.raises(dcp.api.CheckpointException) as caught:
        dcp.save(state, storage_writer=ShardWriter(folder))
    return list(caught.value.failures)


@pytest.mark.parametrize("failing_rank", [0, 1])
def test_a_rank_that_cannot_write_fails_the_save_on_all(tmp_path: Path, failing_rank: int) -> None:
    assert spawn(2, one_rank_fails, tmp_path, failing_rank) == [[failing_rank]] * 2


def copies_and_originals(world_size: int, parallel: dict[str, int]) -> None:
    """`to_save`, `copy_to_save` and the engine's own getter tell the same; only copies stay as they were."""
    from parallel import topology as topologies
    from training.build import build_trainer

    cfg = config(world_size, model={"reparam": {"kind": "sigma"}}, parallel=parallel)
    topology = topologies.start(cfg.parallel, "cpu")
    trainer = build_trainer(cfg, topology, VOCAB)
    for parameter in trainer.parameters():
        moments = {key: torch.rand_like(parameter) for key in MOMENTS}
        for moment in moments.values():
            dist.broadcast(moment, dist.get_global_rank(topology.dp_group, 0), group=topology.dp_group)
        trainer.engine.load(parameter, moments)
    state = TrainingState(trainer, topology)
    copies = {name: local(tensor) for name, tensor in state.copy_to_save().items()}
    before = {name: tensor.clone() for name, tensor in copies.items()}
    live = {name: local(tensor) for name, tensor in state.to_save().items()}
    assert copies.keys() == live.keys() and any(name.startswith("exp_avg_sq/") for name in live)
    for name, tensor in live.items():
        assert torch.equal(copies[name], tensor), name
    gathered = {name: trainer.engine.moments(parameter) for name, parameter in trainer.named_parameters()}
    for name, tensor in live.items():
        kind, _, rest = name.partition("/")
        if kind in MOMENTS and rest in gathered:
            assert torch.equal(gathered[rest][kind], tensor), name
    for parameter in trainer.parameters():
        parameter.detach().add_(1.0)
        trainer.engine.load(parameter, {key: torch.full_like(parameter, 2.0) for key in MOMENTS})
    for name, tensor in copies.items():
        assert torch.equal(tensor, before[name]), name
    again = state.copy_to_save()
    for name, tensor in again.items():
        assert local(tensor).data_ptr() == copies[name].data_ptr(), f"{name}: memory of the copy is used again"
    changed = [name for name, tensor in again.items() if not torch.equal(local(tensor), before[name])]
    assert all(name in changed for name in again if name.startswith(("model/", "exp_avg")))


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@pytest.mark.parametrize(("world_size", "parallel"), [(1, {}), (2, {"tp": 2}), (2, {})], ids=["one", "tp2", "dp2"])
def test_copies_stay_and_originals_are_trainings_own(world_size: int, parallel: dict[str, int]) -> None:
    spawn(world_size, copies_and_originals, world_size, parallel)
