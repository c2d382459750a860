"""Checkpoint folders: whatever happens to them or to the process, a damaged one is never taken for a good one."""

import errno
import hashlib
import json
import math
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from pydantic import ValidationError
from safetensors.numpy import load_file, save_file

from configs.errors import CheckpointError
from training.checkpoint.manifest import write_manifest
from training.checkpoint.store import (
    FileRecord,
    Manifest,
    begin,
    commit,
    describe,
    newest_good,
    prune,
    read_manifest,
    rollback,
    steps,
    verify,
)
from training.checkpoint.writer import ShardWriter

SHARDS = ["shard-00001-model-00001-of-00001.safetensors", "shard-00002-model-00001-of-00001.safetensors"]
FILES = [*SHARDS, "manifest.json"]


def fill(scratch: Path, step: int) -> dict[str, FileRecord]:
    for rank, name in enumerate(SHARDS):
        tensors: dict[str, np.ndarray] = {
            "model/a": np.arange(12, dtype=np.float32) + step,
            "model/b": np.full((3, 2), rank, np.int64),
        }
        save_file(tensors, scratch / name)
    return {name: describe(scratch / name) for name in SHARDS}


def manifest_of(step: int, files: dict[str, FileRecord], **fields: object) -> Manifest:
    given = {
        "step": step,
        "created": 1_700_000_000.25 + step,
        "layout": {"tp": 2, "pp": 1, "dp": 1, "schedule": "1f1b", "zero_stage": 1, "precision": "bf16"},
        "config": {"model": {"layers": 2}},
        "data_fingerprint": "abc",
        "val_loss": None,
        "journal": {"samples": step * 8},
        "files": files,
    }
    return Manifest.model_validate(given | fields)


def save(checkpoints: Path, step: int, **fields: object) -> Path:
    scratch = begin(checkpoints, step)
    return commit(scratch, manifest_of(step, fill(scratch, step), **fields))


def seal(folder: Path, content: dict[str, object]) -> None:
    """Write `content` as a manifest whose checksum matches: what a forger or a later version could write."""
    body = json.dumps(content)[1:].encode()
    line = b'{"sha256": "%s",\n' % hashlib.sha256(body).hexdigest().encode()
    (folder / "manifest.json").write_bytes(line + body)


def names(checkpoints: Path) -> list[str]:
    return [folder.name for folder in steps(checkpoints)]


def flip(path: Path, offset: int, mask: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= mask
    path.write_bytes(content)


def refusal(folder: Path, *, read_bytes: bool = True) -> str:
    with pytest.raises(CheckpointError) as caught:
        verify(folder, read_bytes=read_bytes)
    message = str(caught.value)
    assert "\n" not in message and folder.name in message
    return message


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    return tmp_path / "run" / "checkpoints"


# A good checkpoint


def test_what_was_committed_comes_back(checkpoints: Path) -> None:
    scratch = begin(checkpoints, 20)
    assert scratch == checkpoints / ".step-00000020.partial" and steps(checkpoints) == []
    journal = {"loss": [1.5, math.inf], "schritt": "ü", "none": None, "big": 2**70, "float": 0.1 + 0.2}
    manifest = manifest_of(20, fill(scratch, 20), val_loss=2.125, journal=journal)
    folder = commit(scratch, manifest)

    assert folder == checkpoints / "step-00000020" and not scratch.exists()
    assert sorted(os.listdir(folder)) == sorted(FILES)
    assert read_manifest(folder) == verify(folder, read_bytes=False) == verify(folder, read_bytes=True) == manifest
    assert newest_good(checkpoints) == (folder, manifest, [])
    np.testing.assert_array_equal(load_file(folder / SHARDS[0])["model/a"], np.arange(12, dtype=np.float32) + 20)


def test_nan_in_the_journal_survives(checkpoints: Path) -> None:
    journal = read_manifest(save(checkpoints, 1, journal={"loss": math.nan})).journal
    assert math.isnan(journal["loss"])


def test_the_manifest_is_json_and_its_records_are_those_of_the_files(checkpoints: Path) -> None:
    folder = save(checkpoints, 3)
    content = json.loads((folder / "manifest.json").read_text())
    for name in SHARDS:
        data = (folder / name).read_bytes()
        assert content["files"][name] == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_latest_follows(checkpoints: Path) -> None:
    for step in (1, 2):
        folder = save(checkpoints, step)
        assert os.readlink(checkpoints / "latest") == folder.name
        assert verify(checkpoints / "latest", read_bytes=True).step == step


def test_steps_are_sorted_by_number_and_ignore_everything_else(checkpoints: Path) -> None:
    assert steps(checkpoints) == [] and newest_good(checkpoints) is None
    for step in (99_999_999, 5, 100_000_000):
        save(checkpoints, step)
    begin(checkpoints, 7)
    for stray in ("step-5", "step-000000005", ".step-00000009.deleted", "notes"):
        (checkpoints / stray).mkdir()
    assert names(checkpoints) == ["step-100000000", "step-99999999", "step-00000005"]


def test_begin_empties_what_an_earlier_attempt_left(checkpoints: Path) -> None:
    (begin(checkpoints, 4) / "leftover.safetensors").write_bytes(b"x")
    assert os.listdir(begin(checkpoints, 4)) == []


def test_importing_the_store_does_not_import_torch() -> None:
    probe = "import sys, training.checkpoint.store; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0


# Damage


@pytest.mark.parametrize("name", FILES)
def test_every_truncation_is_found(checkpoints: Path, name: str) -> None:
    path = save(checkpoints, 20) / name
    whole = path.read_bytes()
    for length in {0, 1, 7, 8, 9, 40, 79, 80, 81, len(whole) // 2, len(whole) - 2, len(whole) - 1}:
        path.write_bytes(whole[:length])
        assert name in refusal(path.parent)
        assert name in refusal(path.parent, read_bytes=False)
    path.write_bytes(whole + b"\0")
    assert name in refusal(path.parent)


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_byte_is_found(checkpoints: Path, name: str) -> None:
    path = save(checkpoints, 20) / name
    whole = path.read_bytes()
    for offset in range(len(whole)):
        for mask in (0x01, 0x20, 0x80):  # 0x20 turns the case of letters
            flip(path, offset, mask)
            assert name in refusal(path.parent), f"byte {offset}"
            path.write_bytes(whole)
    verify(path.parent, read_bytes=True)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_found(checkpoints: Path, name: str) -> None:
    folder = save(checkpoints, 20)
    (folder / name).unlink()
    assert refusal(folder, read_bytes=False) == f"{folder / name}: is missing"


class Planted:
    """Unpickling it creates the file `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("forged", [False, True], ids=["plain", "manifest forged to match"])
@pytest.mark.parametrize("name", FILES)
def test_a_planted_pickle_runs_nothing_and_is_refused(
    checkpoints: Path, tmp_path: Path, name: str, forged: bool
) -> None:
    folder, marker = save(checkpoints, 20), tmp_path / "marker"
    content = json.loads((folder / "manifest.json").read_text())
    (folder / name).write_bytes(pickle.dumps(Planted(marker)))
    if forged and name != "manifest.json":
        content["files"][name] = describe(folder / name).model_dump()
        content.pop("sha256")
        seal(folder, content)
        assert "is no safetensors file and is not loaded" in refusal(folder, read_bytes=False)
    assert name in refusal(folder)
    with pytest.raises(CheckpointError, match="no good checkpoint is left"):
        newest_good(checkpoints)
    prune(checkpoints, keep=1, keep_every=0)
    assert not marker.exists()
    pickle.loads((folder / name).read_bytes())  # noqa: S301 - the bait works
    assert marker.exists()


@pytest.mark.parametrize("name", ["extra.safetensors", ".metadata", "evil\nname.pt"])
def test_a_file_the_manifest_does_not_name_is_refused(checkpoints: Path, name: str) -> None:
    folder = save(checkpoints, 20)
    (folder / name).write_bytes(b"")
    assert repr(name) in refusal(folder)


@pytest.mark.parametrize("name", FILES)
def test_links_and_folders_in_place_of_files_are_refused(checkpoints: Path, tmp_path: Path, name: str) -> None:
    folder = save(checkpoints, 20)
    moved = shutil.move(folder / name, tmp_path / name)
    (folder / name).symlink_to(moved)
    assert f"{name}: is no regular file" in refusal(folder)
    (folder / name).unlink()
    (folder / name).mkdir()
    assert f"{name}: is no regular file" in refusal(folder)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"format": 2, "new": 1}, "format 2 is not known"),
        ({"surprise": 1}, "'surprise': Extra inputs"),
        ({"step": "20"}, "'step': Input should be a valid integer"),
        ({"step": 21}, "is of step 21, not of this folder's"),
        ({"files": {}}, "'files'"),
        ({"files": {"../../secret.safetensors": {"size": 1, "sha256": "0" * 64}}}, "String should match pattern"),
        ({"files": {"tensors.pt": {"size": 1, "sha256": "0" * 64}}}, "String should match pattern"),
    ],
    ids=str,
)
def test_a_well_sealed_manifest_must_still_make_sense(
    checkpoints: Path, change: dict[str, object], complaint: str
) -> None:
    folder = save(checkpoints, 20)
    content = json.loads((folder / "manifest.json").read_text())
    content.pop("sha256")
    seal(folder, content)
    verify(folder, read_bytes=True)
    seal(folder, content | change)
    assert complaint in refusal(folder)


def test_a_checkpoint_that_is_no_folder_is_refused(checkpoints: Path) -> None:
    save(checkpoints, 1)
    (checkpoints / "step-00000002").write_text("a file")
    assert "cannot be read as a checkpoint folder" in refusal(checkpoints / "step-00000002")
    found = newest_good(checkpoints)
    assert found is not None and found[1].step == 1
    assert save(checkpoints, 2).is_dir()


@pytest.mark.parametrize("fields", [{"val_loss": math.nan}, {"step": -1}, {"layout": {"tp": 1.5}}, {"files": {}}])
def test_a_manifest_that_could_not_be_read_back_cannot_be_made(fields: dict[str, object]) -> None:
    good = manifest_of(1, {SHARDS[0]: FileRecord(size=1, sha256="0" * 64)})
    with pytest.raises(ValidationError):
        Manifest.model_validate(good.model_dump() | fields)


# Falling back


def test_the_newest_good_one_is_found_and_the_others_explained(checkpoints: Path) -> None:
    folders = [save(checkpoints, step) for step in (10, 20, 30, 40)]
    flip(folders[2] / SHARDS[1], -1)
    (folders[3] / "manifest.json").unlink()
    found = newest_good(checkpoints)
    assert found is not None
    assert found[0] == folders[1] and found[1].step == 20
    assert found[2] == [refusal(folders[3]), refusal(folders[2])]
    assert "is missing" in found[2][0] and "checksum" in found[2][1]


def test_with_no_good_one_left_there_is_one_line(checkpoints: Path) -> None:
    for step in (10, 20):
        flip(save(checkpoints, step) / SHARDS[0], -1)
    with pytest.raises(CheckpointError) as caught:
        newest_good(checkpoints)
    assert str(caught.value) == (
        f"{checkpoints}: no good checkpoint is left: {refusal(checkpoints / 'step-00000020')} (and 1 older)"
    )


# Committing


def test_a_good_checkpoint_of_the_same_step_stays(checkpoints: Path) -> None:
    first = save(checkpoints, 20, journal={"attempt": 1})
    assert save(checkpoints, 20, journal={"attempt": 2}) == first
    assert verify(first, read_bytes=True).journal == {"attempt": 1}
    assert sorted(os.listdir(checkpoints)) == ["latest", "step-00000020"]


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(checkpoints: Path) -> None:
    flip(save(checkpoints, 20, journal={"attempt": 1}) / SHARDS[0], -1)
    folder = save(checkpoints, 20, journal={"attempt": 2})
    assert verify(folder, read_bytes=True).journal == {"attempt": 2}
    assert sorted(os.listdir(checkpoints)) == ["latest", "step-00000020"]


def test_files_that_never_arrived_are_not_committed(checkpoints: Path) -> None:
    old, scratch = save(checkpoints, 10), begin(checkpoints, 20)
    manifest = manifest_of(20, fill(scratch, 20))
    (scratch / SHARDS[1]).unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        commit(scratch, manifest)
    assert steps(checkpoints) == [old]


def test_everything_is_on_the_disk_before_the_rename_and_the_rename_before_latest(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace: list[str] = []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def traced_fsync(descriptor: int) -> None:
        fsync(descriptor)
        trace.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")

    def traced_rename(source: Path, target: Path) -> None:
        rename(source, target)
        trace.append(f"rename {target.name}")

    def traced_replace(source: Path, target: Path) -> None:
        replace(source, target)
        trace.append(f"replace {target.name}")

    for name, traced in [("fsync", traced_fsync), ("rename", traced_rename), ("replace", traced_replace)]:
        monkeypatch.setattr(os, name, traced)
    scratch = begin(checkpoints, 20)
    writer = ShardWriter(scratch)
    dcp.save({"w": torch.zeros(3)}, storage_writer=writer, no_dist=True)
    commit(scratch, manifest_of(20, writer.files))
    assert trace == [
        "fsync run",
        f"fsync {SHARDS[0]}",
        "fsync manifest.json",
        "fsync .step-00000020.partial",
        "rename step-00000020",
        "fsync checkpoints",
        "replace latest",
        "fsync checkpoints",
    ]


# Kills


class Killed(BaseException):
    """Stands for kill -9: nothing in the store catches it, so the folder stays as it was at that call."""


CALLS = ["open", "fsync", "mkdir", "rename", "replace", "symlink", "unlink", "rmdir"]


def kill_at(count: int, patch: pytest.MonkeyPatch) -> None:
    """Die in place of the `count`-th system call that changes, opens or syncs anything."""
    left = count

    def dying(call: Callable[..., object]) -> Callable[..., object]:
        def replacement(*args: object, **kwargs: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return call(*args, **kwargs)

        return replacement

    for name in CALLS:
        patch.setattr(os, name, dying(getattr(os, name)))


def every_kill(action: Callable[[], object], prepare: Callable[[], None]) -> Iterator[int]:
    """Prepare, run `action` and kill it at its first, second, ... call; yields after each kill, until it survives."""
    for count in range(200):
        prepare()
        with pytest.MonkeyPatch.context() as patch:
            kill_at(count, patch)
            try:
                action()
            except Killed:
                pass
            else:
                assert count > 5, "the calls were not seen"
                return
        yield count
    raise AssertionError("the action never ends")


def assert_nothing_half(checkpoints: Path) -> None:
    for folder in steps(checkpoints):
        verify(folder, read_bytes=True)


def test_a_kill_anywhere_in_a_save_leaves_the_older_ones_and_no_half_one(checkpoints: Path) -> None:
    def prepare() -> None:
        shutil.rmtree(checkpoints, ignore_errors=True)
        save(checkpoints, 10)
        (begin(checkpoints, 20) / "leftover.safetensors").write_bytes(b"from an earlier kill")

    seen = set()
    for _ in every_kill(lambda: save(checkpoints, 20), prepare):
        assert_nothing_half(checkpoints)
        seen.add(tuple(names(checkpoints)))
        assert verify(checkpoints / "latest", read_bytes=True).step in (10, 20)
        assert names(checkpoints)[-1] == "step-00000010"
        # The next life of the run goes on as if nothing had been.
        save(checkpoints, 20)
        prune(checkpoints, keep=1, keep_every=0)
        assert sorted(os.listdir(checkpoints)) == ["latest", "step-00000020"]
        assert_nothing_half(checkpoints)
    assert seen == {("step-00000010",), ("step-00000020", "step-00000010")}


def test_a_manifest_torn_by_a_kill_is_never_committed(checkpoints: Path) -> None:
    save(checkpoints, 10)
    scratch = begin(checkpoints, 20)
    write_manifest(scratch, manifest_of(20, fill(scratch, 20)))
    for length in (0, 50, 100, 400):
        os.truncate(scratch / "manifest.json", length)
        found = newest_good(checkpoints)
        assert found is not None and found[1].step == 10 and found[2] == []


def test_a_kill_while_a_damaged_one_is_replaced_keeps_the_older_ones(checkpoints: Path) -> None:
    def prepare() -> None:
        shutil.rmtree(checkpoints, ignore_errors=True)
        save(checkpoints, 10)
        flip(save(checkpoints, 20) / SHARDS[0], -1)

    for _ in every_kill(lambda: save(checkpoints, 20), prepare):
        found = newest_good(checkpoints)
        assert found is not None and found[1].step in (10, 20)
        verify(checkpoints / "step-00000010", read_bytes=True)
        assert save(checkpoints, 20) == checkpoints / "step-00000020"
        assert_nothing_half(checkpoints)


def test_a_kill_anywhere_in_prune_leaves_whole_checkpoints_only(checkpoints: Path) -> None:
    def prepare() -> None:
        shutil.rmtree(checkpoints, ignore_errors=True)
        for step in (10, 20, 30):
            save(checkpoints, step)
        begin(checkpoints, 40)

    for _ in every_kill(lambda: prune(checkpoints, keep=1, keep_every=0), prepare):
        assert_nothing_half(checkpoints)
        assert names(checkpoints)[0] == "step-00000030"
        prune(checkpoints, keep=1, keep_every=0)
        assert sorted(os.listdir(checkpoints)) == ["latest", "step-00000030"]


def test_a_kill_anywhere_in_a_rollback_leaves_whole_checkpoints_only_and_it_can_be_done_again(
    checkpoints: Path,
) -> None:
    def prepare() -> None:
        shutil.rmtree(checkpoints, ignore_errors=True)
        for step in (10, 20, 30, 40):
            save(checkpoints, step)

    for _ in every_kill(lambda: rollback(checkpoints, 20), prepare):
        assert_nothing_half(checkpoints)
        verify(checkpoints / "latest", read_bytes=True)
        assert names(checkpoints)[-2:] == ["step-00000020", "step-00000010"]
        rollback(checkpoints, 20)
        prune(checkpoints, keep=9, keep_every=0)
        assert sorted(os.listdir(checkpoints)) == ["latest", "step-00000010", "step-00000020"]
        assert os.readlink(checkpoints / "latest") == "step-00000020"


# Rolling back


def test_rollback_deletes_what_is_above_and_latest_follows(checkpoints: Path) -> None:
    for step in (10, 20, 30, 40):
        save(checkpoints, step)
    flip(checkpoints / "step-00000030" / SHARDS[0], -1)
    assert [folder.name for folder in rollback(checkpoints, 25)] == ["step-00000040", "step-00000030"]
    assert names(checkpoints) == ["step-00000020", "step-00000010"]
    assert os.readlink(checkpoints / "latest") == "step-00000020"
    assert rollback(checkpoints, 20) == []
    save(checkpoints, 30)
    found = newest_good(checkpoints)
    assert found is not None and found[1].step == 30


def test_latest_is_never_a_damaged_one_after_a_rollback(checkpoints: Path) -> None:
    for step in (10, 20, 30):
        save(checkpoints, step)
    flip(checkpoints / "step-00000020" / SHARDS[0], -1)
    rollback(checkpoints, 20)
    assert names(checkpoints) == ["step-00000020", "step-00000010"]
    assert os.readlink(checkpoints / "latest") == "step-00000010"


def test_a_rollback_to_nothing_good_deletes_nothing(checkpoints: Path) -> None:
    for step in (20, 30):
        save(checkpoints, step)
    flip(checkpoints / "step-00000020" / SHARDS[1], -1)
    for step in (10, 20):
        with pytest.raises(CheckpointError, match=f"no good checkpoint of step {step} or before"):
            rollback(checkpoints, step)
    assert names(checkpoints) == ["step-00000030", "step-00000020"]


# A full disk


@pytest.mark.parametrize("call", ["fsync", "rename", "replace", "symlink"])
def test_an_error_of_the_disk_is_passed_on_and_the_older_ones_stay(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    old, scratch = save(checkpoints, 10), begin(checkpoints, 20)
    manifest = manifest_of(20, fill(scratch, 20))

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(OSError, match="No space left"):
            commit(scratch, manifest)
    verify(old, read_bytes=True)
    assert_nothing_half(checkpoints)
    assert verify(save(checkpoints, 20), read_bytes=True) and os.readlink(checkpoints / "latest") == "step-00000020"


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_really_full_keeps_the_older_ones(tiny_disk: Path) -> None:
    checkpoints = tiny_disk / "checkpoints"
    old = save(checkpoints, 10)
    scratch = begin(checkpoints, 20)
    manifest = manifest_of(20, fill(scratch, 20), journal={"long": "x" * 20_000})
    with pytest.raises(OSError, match="No space left"):
        (scratch / "half.safetensors").write_bytes(bytes(1 << 20))
    with pytest.raises(OSError, match="No space left"):
        commit(scratch, manifest)
    assert steps(checkpoints) == [old]
    verify(old, read_bytes=True)
    prune(checkpoints, keep=1, keep_every=0)
    assert verify(save(checkpoints, 20), read_bytes=True).step == 20


# Retention


@pytest.mark.parametrize(
    ("losses", "keep", "keep_every", "kept"),
    [
        ({1: None, 2: None, 3: None, 4: None}, 2, 0, [4, 3]),
        ({1: None, 2: None}, 5, 0, [2, 1]),
        ({10: None, 15: None, 20: None, 25: None, 30: None, 35: None}, 1, 10, [35, 30, 20, 10]),
        ({1: 3.0, 2: 1.0, 3: 2.0, 4: 2.5}, 1, 0, [4, 2]),
        ({1: 1.0, 2: 1.0, 3: 2.0, 4: None}, 1, 0, [4, 2]),
        ({1: 3.0, 2: 2.0, 3: 1.0}, 1, 0, [3]),
        ({1: 0.5, 4: None, 6: 1.0, 7: None, 8: None, 9: None}, 2, 4, [9, 8, 4, 1]),
        ({}, 1, 0, []),
    ],
)
def test_retention(
    checkpoints: Path, losses: dict[int, float | None], keep: int, keep_every: int, kept: list[int]
) -> None:
    for step, loss in losses.items():
        save(checkpoints, step, val_loss=loss)
    deleted = prune(checkpoints, keep=keep, keep_every=keep_every)
    assert [read_manifest(folder).step for folder in steps(checkpoints)] == kept
    assert [folder.name for folder in deleted] == [f"step-{step:08d}" for step in losses if step not in kept]
    assert not any(folder.exists() for folder in deleted)


def test_damaged_ones_do_not_count_and_the_only_good_one_stays(checkpoints: Path) -> None:
    folders = {step: save(checkpoints, step, val_loss=float(step)) for step in (5, 10, 20, 30)}
    os.truncate(folders[5] / SHARDS[0], 10)
    for step in (20, 30):
        (folders[step] / SHARDS[0]).unlink()
    assert prune(checkpoints, keep=1, keep_every=10) == [folders[5]]
    assert steps(checkpoints) == [folders[30], folders[20], folders[10]]
    assert os.readlink(checkpoints / "latest") == "step-00000010"
    # Once a newer good one is there, the damaged ones go.
    save(checkpoints, 40, val_loss=1.0)
    assert prune(checkpoints, keep=1, keep_every=0) == [folders[10], folders[20], folders[30]]


def test_with_all_damaged_nothing_is_deleted(checkpoints: Path) -> None:
    for step in (1, 2, 3):
        os.truncate(save(checkpoints, step) / SHARDS[0], 10)
    assert prune(checkpoints, keep=1, keep_every=0) == [] and len(steps(checkpoints)) == 3


@pytest.mark.parametrize("clock", [1.0, -1.0])
def test_after_a_fallback_the_one_just_written_outlives_a_newer_one_with_a_flipped_byte(
    checkpoints: Path, clock: float
) -> None:
    """Whatever the clock of the node that wrote it."""
    save(checkpoints, 20, created=11.0)
    flip(save(checkpoints, 30, created=12.0) / SHARDS[0], -1)  # sizes and header are right
    fresh = save(checkpoints, 25, created=12.0 + clock)
    prune(checkpoints, keep=1, keep_every=0)
    found = newest_good(checkpoints)
    assert found is not None and found[0] == fresh
    assert os.readlink(checkpoints / "latest") == fresh.name


def test_a_save_begins_without_what_kills_left_behind(checkpoints: Path) -> None:
    """It may be what fills the disk, and `prune` comes only after a save that found room."""
    save(checkpoints, 10)
    (begin(checkpoints, 20) / SHARDS[0]).write_bytes(b"half")
    (checkpoints / ".step-00000005.deleted").mkdir()
    begin(checkpoints, 30)
    assert sorted(os.listdir(checkpoints)) == [".step-00000030.partial", "latest", "step-00000010"]


def test_prune_clears_what_kills_left_behind(checkpoints: Path) -> None:
    save(checkpoints, 10)
    (begin(checkpoints, 20) / SHARDS[0]).write_bytes(b"half")
    (checkpoints / ".step-00000005.deleted").mkdir()
    (checkpoints / "notes.txt").write_text("the user's")
    assert prune(checkpoints, keep=1, keep_every=0) == []
    assert sorted(os.listdir(checkpoints)) == ["latest", "notes.txt", "step-00000010"]
