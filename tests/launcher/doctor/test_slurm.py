"""Slurm absent, in part, present, and broken in several ways: programs that say what the real ones said."""

import os
import shutil
from pathlib import Path

import pytest

from cluster.lab import Lab
from launcher.doctor import slurm
from launcher.doctor.command import Answer
from launcher.doctor.finding import Asked, Finding

UP = "Slurmctld(primary) at vm is UP"
DOWN = "Slurmctld(primary) at vm is DOWN\n*****************************************"
SITE = "kind: slurm\nresources: {time: '10', partition: %s, account: %s}\n"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Slurm's clients as scripts, alone on PATH with a shell's own."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("bash", "sleep", "cat"):
        (folder / name).symlink_to(shutil.which(name) or name)
    monkeypatch.setenv("PATH", str(folder))

    def write(**scripts: str) -> None:
        for name, script in scripts.items():
            (folder / name).write_text(f"#!{folder}/bash\n{script}\n")
            (folder / name).chmod(0o755)

    write.all = lambda **others: write(  # type: ignore[attr-defined]
        **dict.fromkeys(slurm.CLIENTS, "exit 0")
        | {
            "scontrol": f'[[ $1 == ping ]] && echo "{UP}" || echo slurm 25.11.1',
            "sinfo": 'case "$*" in *down*) ;; *) echo "main*|up|4"; echo "gpu|up|2"; echo "old|down|1";; esac',
            "sacctmgr": "echo physics; echo physics; echo chemistry",
            "sbatch": "echo would start >&2",
        }
        | others
    )
    return write


def look(cluster: str | None = None) -> list[Finding]:
    return list(slurm.check(Asked("runs", cluster=cluster)))


def site(folder: Path, partition: str = "gpu", account: str = "physics") -> str:
    path = folder / "site.yaml"
    path.write_text(SITE % (partition, account))
    return str(path)


def test_absent_is_fine_unless_a_site_was_named(programs) -> None:
    assert [finding.verdict for finding in look()] == ["ok"]
    assert [finding.verdict for finding in look("lab")] == ["problem"]
    assert [finding.found for finding in look("local")] == ["not needed by site local"]


def test_in_part(programs) -> None:
    programs(sbatch="", squeue="")
    (found,) = look()
    assert (found.verdict, found.found) == (
        "problem",
        "only in part on this machine: no srun, scancel, scontrol, sinfo, sacct",
    )


def test_present(programs, tmp_path: Path) -> None:
    programs.all()
    assert [(finding.check, finding.verdict) for finding in look()] == [
        ("Slurm", "ok"), ("Slurm controller", "ok"), ("Slurm partitions", "ok"), ("Slurm account", "ok"),
    ]  # fmt: skip
    found = look(site(tmp_path))
    assert [finding.found for finding in found] == [
        "slurm 25.11.1", UP, "gpu (2 nodes)", "physics", "Slurm would take a job of this site",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("partition", "account", "words"),
    [
        ("nix", "physics", "no nix; there are main (4 nodes), gpu (2 nodes), old (1 nodes)"),
        ("gpu", "biology", "no biology among yours: chemistry, physics"),
    ],
)
def test_a_site_that_names_what_is_not_there(programs, tmp_path: Path, partition, account, words) -> None:
    programs.all()
    problems = [finding for finding in look(site(tmp_path, partition, account)) if finding.verdict == "problem"]
    assert [finding.found for finding in problems] == [words]


def test_a_closed_partition_is_a_warning_and_the_default_one_is_found(programs, tmp_path: Path) -> None:
    programs.all()
    assert look(site(tmp_path, "old"))[2].found == "old is down"
    assert look(site(tmp_path, "null"))[2].found.startswith("main (Slurm's default)")


@pytest.mark.parametrize(
    ("scontrol", "words"),
    [
        ("exit 1", "`scontrol --version`: exit code 1"),
        ("echo 'libslurm.so: cannot open' >&2; exit 127", "`scontrol --version`: libslurm.so: cannot open"),
        ("[[ $1 == ping ]] && sleep 1000; echo slurm 1", "`scontrol ping`: no answer within 1 s"),
        ("sleep 1000", "`scontrol --version`: no answer within 1 s"),
        (f'[[ $1 == ping ]] && {{ echo "{DOWN}"; exit 1; }}; echo slurm 1', "Slurmctld(primary) at vm is DOWN"),
    ],
)
def test_broken(programs, monkeypatch: pytest.MonkeyPatch, scontrol: str, words: str) -> None:
    monkeypatch.setattr(slurm, "SECONDS", 1)
    programs.all(scontrol=scontrol)
    last = look()[-1]
    assert (last.verdict, last.found) == ("problem", words)


def test_a_database_or_a_list_of_partitions_that_fails(programs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "SECONDS", 1)
    programs.all(sacctmgr="sleep 1000")
    assert look()[-1].verdict == "warning"
    programs.all(sacctmgr="echo 'You are not running a supported accounting_storage plugin' >&2; exit 1")
    assert look()[-1].verdict == "ok"
    programs.all(sinfo="echo 'slurm_load_partitions: Zero Bytes were transmitted' >&2; exit 1")
    assert (
        look()[-1].found == "`sinfo --noheader --format=%P|%a|%D`: slurm_load_partitions: Zero Bytes were transmitted"
    )


def test_a_job_that_slurm_refuses_and_one_that_waits_for_nodes() -> None:
    def refused(words: str, *, down: bool) -> str:
        return slurm.test_job(Answer("failed", "", f"allocation failure: {words}\n"), nodes_are_down=down).verdict

    assert refused("Requested node configuration is not available", down=True) == "warning"
    assert refused("Requested node configuration is not available", down=False) == "problem"
    assert refused("Invalid account or account/partition combination", down=True) == "problem"


@pytest.mark.slow
def test_a_real_slurm(slurm: Lab, tmp_path: Path) -> None:
    assert {finding.verdict for finding in look("lab")} == {"ok"}
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("kind: slurm\nresources: {partition: low, nodes: 99}\n")
    assert look(str(wrong))[-1].found.endswith("Requested node configuration is not available")


@pytest.mark.slow
def test_a_real_slurm_without_its_controller(slurm: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    configuration = slurm.slurm_conf.read_text().replace(f"SlurmctldPort={slurm.controller_port}", "SlurmctldPort=9")
    (tmp_path / "slurm.conf").write_text(configuration)
    scontrol = (slurm.root / "bin" / "scontrol").read_text().replace(str(slurm.slurm_conf), f"{tmp_path}/slurm.conf")
    (tmp_path / "scontrol").write_text(scontrol)
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    last = look("lab")[-1]
    assert last.verdict == "problem" and "DOWN" in last.found
