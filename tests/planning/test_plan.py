"""Layouts, times and the command line of a plan."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from launcher.cli import app
from model.flops import training_flops
from monitoring.devices import DEVICES
from planning.communication import Machine, data_axis
from planning.fake import fake_ranks
from planning.layouts import Planner, reasons
from planning.profile import Profiler
from planning.work import CountWork, Work
from tests.layouts import VOCAB, config

MACHINE = Machine(DEVICES["h100"], 1, 4)
SMALL = ("model.layers=4", "model.hidden_size=64", "training.global_batch_size=16", "training.sequence_length=64")


def test_counted_flops_are_those_of_the_model():
    cfg = config(1, model={"positions": "rope", "vocab_multiple": 1})
    with fake_ranks(1):
        run = Profiler(cfg, VOCAB).profile(1, False, "none").run(4, 3, first=True, last=True)
    counted = run.forward.matrix_flops + run.backward.matrix_flops
    assert counted == 3 * 16 * training_flops(cfg.model, VOCAB, 16).matrices


def test_work_adds_up_and_scales():
    work = Work(matrix_flops=2.0, traffic=3.0)
    assert work + work == work * 2 == work * 3 - work


def test_collectives_and_traffic_are_counted_views_are_not():
    import torch
    import torch.distributed as dist
    from torch._subclasses.fake_tensor import FakeTensorMode

    with fake_ranks(2), FakeTensorMode():
        x = torch.zeros(4, 8)
        with CountWork([x]) as count:
            dist.all_reduce(x)
            (x.view(8, 4).t() + 1).mm(x.t())
        work = count.take()
    assert (work.reduced, work.collectives, work.traffic) == (128, 1, 256)
    assert work.matrix_flops == 2 * 4 * 8 * 4
    assert count.peak == 128 + 64


def test_a_sum_that_is_only_started_is_counted():
    """What overlaps with the weight gradient goes by other operations."""
    import torch
    import torch.distributed as dist
    from torch._subclasses.fake_tensor import FakeTensorMode

    from parallel.regions import start_sum
    from parallel.topology import TensorParallel

    with fake_ranks(2), FakeTensorMode():
        x_BTD = torch.zeros(1, 4, 8)
        for sequence_parallel, told in ((False, (128, 0)), (True, (0, 128))):
            with CountWork([x_BTD]) as count:
                start_sum(x_BTD, TensorParallel(dist.group.WORLD, 0, 2, sequence_parallel))()
            work = count.take()
            assert (work.reduced, work.gathered, work.collectives) == (*told, 1)


def test_one_chunk_of_the_loss_counts_for_all(monkeypatch):
    monkeypatch.setattr("parallel.loss.CHUNK_ON_DEVICE", 3 * 64)  # rows of three tokens; 10 tokens make four chunks
    cfg = config(1, model={"vocab_multiple": 64}, training={"sequence_length": 10})
    with fake_ranks(1):
        counted = Profiler(cfg, 64).profile(1, False, "none").run(1, 1, first=True, last=True)
        monkeypatch.setattr(CountWork, "once", lambda _, pieces: iter(pieces))
        whole = Profiler(cfg, 64).profile(1, False, "none").run(1, 1, first=True, last=True)
    assert counted == whole


def test_a_step_is_no_faster_than_its_parts_and_mfu_below_the_efficiency():
    with fake_ranks(4):
        plan = Planner(cfg := config(4, parallel={"tp": 2}), VOCAB, MACHINE).plan(cfg)
    speed = plan.speed
    assert speed.step == pytest.approx(speed.compute + speed.data.seconds + speed.boundary)
    assert 0 < speed.mfu < MACHINE.efficiency


def test_data_parallel_ranks_of_one_node_share_its_network():
    cfg = config(16, parallel={"tp": 2})
    within, across = (data_axis(1e9, cfg, replace(MACHINE, nodes=n, gpus_per_node=16 // n)) for n in (1, 4))
    assert within.sent == across.sent == 12e9 * 7 / 8
    assert (within.where, across.where) == ("node", "network")
    ratio = DEVICES["h100"].link / (2 * DEVICES["h100"].network)
    assert across.seconds / within.seconds == pytest.approx(ratio, rel=0.02)  # each call costs the same besides


def test_groups_that_do_not_divide_a_node_cross_its_border():
    three = replace(MACHINE, gpus_per_node=3)
    assert [replace(three, nodes=2).holds(span) for span in (1, 2, 3, 4)] == [True, False, True, False]
    assert three.holds(2)  # one node has no border


def test_sam_passes_twice_and_keeps_the_weights():
    plain = config(2, parallel={"tp": 2})
    with fake_ranks(2):
        plans = [
            Planner(cfg, VOCAB, MACHINE).plan(cfg)
            for cfg in (plain, plain.model_copy(update={"optimizer": plain.optimizer.model_copy(update=SAM)}))
        ]
    once, twice = plans
    assert twice.speed.compute == pytest.approx(2 * once.speed.compute)
    assert twice.speed.tensor.sent == pytest.approx(2 * once.speed.tensor.sent)
    assert twice.speed.boundary > once.speed.boundary
    assert (once.first.kept, twice.first.kept) == (0.0, once.first.weights)


SAM = {"sam_rho": 0.05}


def search(memory_gib):
    machine = replace(MACHINE, gpus_per_node=2, device=replace(DEVICES["h100"], memory_gib=memory_gib), headroom=0.0)
    with fake_ranks(2):
        return Planner(config(2), VOCAB, machine).search(), machine


def test_what_does_not_fit_is_said_and_the_rest_is_ranked():
    everything, _ = search(80)
    peaks = sorted(plan.worst.peak for plan in everything.plans)
    assert not everything.too_large
    found, machine = search(peaks[len(peaks) // 2] / 2**30)
    speeds = [plan.speed.tokens_per_s for plan in found.plans]
    assert speeds == sorted(speeds, reverse=True)
    assert found.too_large
    assert len(found.plans) + len(found.too_large) == len(peaks)
    assert all(plan.worst.peak <= machine.usable for plan in found.plans)
    nothing, machine = [], replace(machine, device=replace(machine.device, memory_gib=0.01))
    lines = reasons(found.too_large, nothing, machine)
    assert any(line.startswith("tp 1, pp 1: at least 0 of 0 GiB on the only stage, in reduction") for line in lines)


def plan(tmp_path, *arguments, data=True):
    path = tmp_path / "run.yaml"
    path.write_text("data: {sources: [{path: nowhere}]}\n" if data else "model: {heads: 4}\n")
    return CliRunner().invoke(app, ["plan", str(path), *SMALL, *arguments])


def test_the_command_plans_without_data_and_prints_json(tmp_path):
    done = plan(tmp_path, "--gpus-per-node", "2", "--vocab-size", "256", "--json", "--top", "2", data=False)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["configured"]["layout"]["dp"] == 2
    assert len(found["layouts"]) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "h1000", "--vocab-size", "9"], "--device = h1000: must be one of"),
        ([], "--vocab-size: must be set where the data are not"),
        (["parallel.tp=3", "--vocab-size", "9"], "parallel.tp = 3: must divide"),
        (["--vocab-size", "9", "--dry-run-rank", "8"], "--dry-run-rank = 8: must be a rank from 0 to 7"),
    ],
)
def test_mistakes_are_one_line(tmp_path, arguments, words):
    done = plan(tmp_path, *arguments)
    assert done.exit_code == 2
    assert words in done.output
    assert done.output.strip().count("\n") == 0
