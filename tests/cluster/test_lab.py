"""The cluster behaves as a Slurm of several machines does, and leaves nothing behind."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from cluster.lab import Lab, attach, start
from cluster.machine import IGNORED_BY_PYTHON
from cluster.processes import started
from configs.errors import ConfigError, LaunchError
from tests.slurm import start_or_skip, until

ROOT = Path(__file__).parents[2]


def shell(command: str) -> str:
    """Output of a command in the test's environment."""
    return subprocess.run(["bash", "-ec", command], capture_output=True, text=True, check=True, timeout=60).stdout


def submit(script: str, *options: str) -> str:
    """Queue a batch job; its id."""
    command = ["sbatch", "--parsable", "--output=/dev/null", *options]
    done = subprocess.run(command, input=f"#!/bin/bash\n{script}\n", capture_output=True, text=True, check=True)
    return done.stdout.strip()


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def has_lines(file: Path, count: int) -> Callable[[], bool]:
    return lambda: len(lines(file)) >= count


def belonging_to(lab: Lab) -> list[psutil.Process]:
    """Living processes of a cluster: its daemons, and everything that descends from them."""
    found: set[psutil.Process] = set()
    for daemon in lab.daemons.values():
        process = psutil.Process(daemon.pid)
        found |= {process, *process.children(recursive=True)}
    return alive(list(found))


def runs(lab: Lab, *words: str) -> bool:
    """Whether some process of the cluster has exactly these words at the end of its command line."""
    for process in belonging_to(lab):
        with suppress(psutil.Error):
            if tuple(process.cmdline()[-len(words) :]) == words:
                return True
    return False


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if process.is_running() and started(process.pid)]


def test_a_step_runs_on_several_nodes_in_the_callers_environment(slurm: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/mine")
    out = shell("""srun -N2 --ntasks-per-node=2 bash -c 'echo $SLURMD_NODENAME $SLURM_PROCID $LD_LIBRARY_PATH'""")
    node1, node2 = slurm.nodes[:2]
    expected = [f"{node1} 0", f"{node1} 1", f"{node2} 2", f"{node2} 3"]
    assert sorted(out.splitlines()) == [f"{rank} /opt/mine" for rank in expected]


def test_the_callers_libraries_are_not_replaced_in_a_batch_job(slurm: Lab, tmp_path: Path) -> None:
    file = tmp_path / "libraries"
    submit(
        f"echo batch ${{LD_LIBRARY_PATH-unset}} > {file}; srun sh -c 'echo step ${{LD_LIBRARY_PATH-unset}}' >> {file}"
    )
    until(has_lines(file, 2), 15, "the job has run")
    assert lines(file) == ["batch unset", "step unset"]


def test_a_step_ends_with_processes_that_have_left_it(slurm: Lab, tmp_path: Path) -> None:
    log = tmp_path / "log"
    shell(
        f"srun bash -c 'setsid --fork bash -c \"echo \\$\\$ >> {log}; exec sleep 600\"; until [ -s {log} ]; do :; done'"
    )
    until(
        lambda: not alive([psutil.Process(int(pid)) for pid in lines(log) if psutil.pid_exists(int(pid))]), 5, "it died"
    )
    until(lambda: slurm.run("squeue", "-h") == "", 10, "the job is over")


def test_tasks_ignore_no_signals_that_python_does(slurm: Lab) -> None:
    ignored = int(shell("srun grep SigIgn /proc/self/status").split()[1], 16)
    assert not [number for number in IGNORED_BY_PYTHON if ignored & 1 << number - 1]


def test_fake_gpus_are_scheduled_and_visible(slurm: Lab) -> None:
    show = "echo $CUDA_VISIBLE_DEVICES"
    assert shell(f"srun -N2 --ntasks-per-node=1 --gpus-per-node=3 bash -c '{show}'").split() == ["0,1,2"] * 2
    assert sorted(shell(f"srun -n2 --gpus-per-task=1 -N1 bash -c '{show}'").split()) in (["0", "1"], ["0", "0"])
    with pytest.raises(LaunchError, match="not available"):
        slurm.run("srun", "--gpus-per-node=5", "true")


def test_preemption_signals_the_job_and_it_runs_again(slurm: Lab, tmp_path: Path) -> None:
    log = tmp_path / "log"
    low = submit(
        f"trap 'echo signal >> {log}; scontrol requeue $SLURM_JOB_ID' USR2\n"
        f"echo start ${{SLURM_RESTART_COUNT-0}} >> {log}\n"
        "while true; do sleep 0.1; done",
        "--nodes=4", "--exclusive", "--requeue", "--signal=B:USR2@60", "--open-mode=append",
    )  # fmt: skip
    until(has_lines(log, 1), 15, "the low job has started")
    shell("srun --partition=high --nodes=4 true")
    assert lines(log)[:2] == ["start 0", "signal"]
    until(has_lines(log, 3), 20, "the low job has started again")
    assert lines(log)[2] == "start 1"
    assert "Restarts=1" in slurm.run("scontrol", "show", "job", low)


def test_a_requeued_job_starts_again_within_15_s(slurm: Lab, tmp_path: Path) -> None:
    log = tmp_path / "log"
    job = submit(f"echo ${{SLURM_RESTART_COUNT-0}} >> {log}; sleep 600", "--requeue")
    until(has_lines(log, 1), 15, "the job has started")
    slurm.run("scontrol", "requeue", job)
    until(has_lines(log, 2), 15, "the job has started again")
    assert lines(log) == ["0", "1"]


def test_a_node_set_down_loses_its_job_to_another_node_until_it_is_resumed(slurm: Lab, tmp_path: Path) -> None:
    log = tmp_path / "log"
    submit(f"echo $SLURMD_NODENAME >> {log}; sleep 600", "--requeue")
    until(has_lines(log, 1), 15, "the job has started")
    first = lines(log)[0]
    slurm.fail_node(first)
    until(has_lines(log, 2), 20, "the job has started again")
    assert lines(log)[1] != first
    assert slurm.state(first).startswith("down")
    slurm.start_node(first)
    assert shell(f"srun --nodelist={first} bash -c 'echo $SLURMD_NODENAME'").strip() == first


@pytest.mark.slow
def test_a_killed_node_takes_everything_with_it_and_is_noticed(slurm: Lab, tmp_path: Path) -> None:
    log = tmp_path / "log"
    submit(
        f"srun --ntasks-per-node=1 bash -c 'echo $SLURMD_NODENAME $$ >> {log}; sleep 600; :'",
        "--nodes=2", "--requeue",
    )  # fmt: skip
    until(has_lines(log, 2), 15, "both tasks run")
    node, pid = sorted(lines(log))[1].split()
    machine = psutil.Process(slurm.daemons[node].pid)
    below = machine.children(recursive=True)
    assert int(pid) in [process.pid for process in below]
    slurm.kill_node(node)
    assert not alive([machine, *below])
    assert until(lambda: slurm.state(node).startswith("down"), 40, "Slurm has noticed") > 1
    until(has_lines(log, 4), 30, "the job runs on other nodes")
    assert node not in {line.split()[0] for line in lines(log)[2:]}
    slurm.start_node(node)
    assert shell(f"srun --nodelist={node} echo back").strip() == "back"


def test_a_killed_slurmd_alone_is_started_again_and_its_job_goes_on(slurm: Lab, tmp_path: Path) -> None:
    log = tmp_path / "log"
    job = submit(f"echo $SLURMD_NODENAME >> {log}; sleep 600")
    until(has_lines(log, 1), 15, "the job has started")
    node = lines(log)[0]
    machine = psutil.Process(slurm.daemons[node].pid)
    (slurmd,) = [process for process in machine.children() if process.name() == "slurmd"]
    slurmd.kill()
    until(lambda: not slurmd.is_running(), 5, "slurmd is gone and reaped")
    slurm.start_node(node)
    assert machine.is_running()
    assert "JobState=RUNNING" in slurm.run("scontrol", "show", "job", job)


def test_two_clusters_side_by_side_one_in_a_long_folder_with_spaces(slurm: Lab, tmp_path: Path) -> None:
    folder = tmp_path / ("a folder, long [and odd] " + "x" * 60)
    other = start_or_skip(folder, nodes=1)
    processes = belonging_to(other)
    try:
        assert not set(other.ports.values()) & set(slurm.ports.values())
        assert other.run("srun", "bash", "-c", "echo $SLURM_CONF").strip() == str(other.slurm_conf)
        assert shell("srun bash -c 'echo $SLURM_CONF'").strip() == str(slurm.slurm_conf)
        assert other.run("sinfo", "-h", "-p", "low", "-o", "%D").strip() == "1"
        assert attach(folder) == other
        short = other.root.parent
        assert short.stat().st_mode & 0o777 == 0o700
    finally:
        other.stop(wipe=True)
    assert not alive(processes)
    assert not folder.exists()
    assert not short.exists()
    assert shell("srun echo untouched").strip() == "untouched"


def test_programs_of_a_cluster_mean_it_whatever_the_environment_says(
    slurm: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm/slurm.conf")
    assert shell("sinfo -h -p low -o %D").strip() == "4"
    monkeypatch.delenv("SLURM_CONF")
    assert shell("srun bash -c 'echo $SLURM_CONF'").strip() == str(slurm.slurm_conf)


def test_stop_ends_jobs_that_will_not_and_job_ids_go_on(tmp_path: Path) -> None:
    stubborn = "trap '' TERM INT HUP USR2\nsetsid --fork sleep 612\nsrun bash -c \"trap '' TERM; sleep 613; sleep 614\""
    lab = start_or_skip(tmp_path / "lab", nodes=2)
    try:
        job = lab.run("sbatch", "--parsable", "--output=/dev/null", "--nodes=2", f"--wrap={stubborn}").strip()
        until(lambda: runs(lab, "sleep", "612") and runs(lab, "sleep", "613"), 15, "the job runs")
        processes = belonging_to(lab)
    finally:
        lab.stop()
    assert not alive(processes)
    again = start(tmp_path / "lab", nodes=2)
    try:
        assert int(again.run("sbatch", "--parsable", "--output=/dev/null", "--wrap=true")) > int(job)
    finally:
        again.stop(wipe=True)
    assert not (tmp_path / "lab").exists()


def test_stop_finds_what_a_killed_machine_has_left(tmp_path: Path) -> None:
    lab = start_or_skip(tmp_path / "lab", nodes=1)
    processes = belonging_to(lab)
    try:
        lab.run("sbatch", "--parsable", "--output=/dev/null", "--wrap=sleep 615")
        machine = psutil.Process(lab.daemons[lab.nodes[0]].pid)
        until(lambda: runs(lab, "sleep", "615"), 15, "the job runs")
        processes = belonging_to(lab)
        machine.kill()
    finally:
        lab.stop()
    assert not alive(processes)


def test_mistakes_are_one_line(slurm: Lab, tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"a cluster runs here already; `python -m cluster stop` ends it$"):
        start(slurm.folder)
    with pytest.raises(ConfigError, match=r"127\.0\.1\.9: no node of this cluster; its nodes are 127\.0\.1\.1, "):
        slurm.kill_node("127.0.1.9")
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match=r"must be empty or of a stopped cluster$"):
        start(tmp_path)
    with pytest.raises(ConfigError, match=r"^nodes = 0: must be from 1 to 64$"):
        start(tmp_path / "lab", nodes=0)
    with pytest.raises(ConfigError, match=r"no cluster was started here; `python -m cluster start` does$"):
        attach(tmp_path)


def test_a_daemon_that_does_not_start_is_told_and_the_others_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_or_skip(tmp_path / "probe", nodes=1).stop(wipe=True)
    from cluster import files

    write = files.write

    def write_damaged(root: Path, *arguments: object, **options: object) -> None:
        write(root, *arguments, **options)  # type: ignore[arg-type]
        with (root / "etc" / "slurm.conf").open("a") as file:
            file.write("Nonsense=1\n")

    monkeypatch.setattr(files, "write", write_damaged)
    with pytest.raises(
        LaunchError, match=r"^slurmctld has not come up: .*unrecognized key: Nonsense.*\.err\)$"
    ) as failure:
        start(tmp_path / "lab", nodes=2)
    assert "\n" not in str(failure.value)
    assert not attach(tmp_path / "lab").running
    assert not [
        p for p in psutil.process_iter(["cmdline"]) if str(tmp_path / "lab") in " ".join(p.info["cmdline"] or [])
    ]


def test_the_command_line(slurm: Lab) -> None:
    def cluster(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cluster", *arguments, "--folder", str(slurm.folder)]
        environment = {**os.environ, "SLURM_JOB_ID": "7", "SLURM_CONF": "/elsewhere"}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    shown = cluster("status").stdout
    assert shown.count(" up\n") == 6 and shown.count("127.0.1.4") == 3 and "JOBID" in shown
    settings = cluster("env").stdout
    assert "unset SLURM_CONF SLURM_JOB_ID\n" in settings
    node_name = shell(f"PATH=/usr/bin:/bin; {settings}\nsrun bash -c 'echo $SLURMD_NODENAME $SLURM_CONF'").split()
    assert node_name == ["127.0.1.1", str(slurm.slurm_conf)]
    assert cluster("node", "127.0.1.3", "fail").stdout == "127.0.1.3: down\n"
    assert cluster("node", "127.0.1.3", "resume").stdout == "127.0.1.3: idle\n"
    unknown = cluster("node", "nobody", "kill")
    assert unknown.returncode == 2 and unknown.stderr.count("\n") == 1 and unknown.stdout == ""
    assert set(json.loads((slurm.folder / "lab.json").read_text())["daemons"]) == set(slurm.daemons)
