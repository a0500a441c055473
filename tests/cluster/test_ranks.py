"""Several tasks a job: what a profile may say, and what Slurm is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from suite.cluster.arrays import make_drafts
from suite.cluster.profile import Profile, load_profile
from suite.cluster.sbatch import write_script
from suite.cluster.task import PACKS, write_packs
from suite.cluster.waves import make_waves
from suite.errors import UserError
from suite.store.files import read_json
from tests.cluster.test_waves import many

SITE = """\
cluster: slurm
partition: p
gpus: 1
gpu_type: h200
cpus_per_task: 4
mem: 24G
stages:
  "evaluation:digits": {tasks: 3}
"""


def profile(folder: Path, text: str = SITE) -> Profile:
    path = folder / "site.yaml"
    path.write_text(text)
    return load_profile(path)


def test_stages_of_several_tasks_share_no_job_and_keep_their_number_of_arrays(tmp_path: Path) -> None:
    stages = many(12, ("digits", "digits-c5", "cifar10"))
    waves = make_waves(stages, profile(tmp_path), [1.0] * len(stages))
    several = [w for w in waves if w.resources.tasks]
    assert [sorted(len(p) for p in w.packs) for w in several] == [[1] * 8]
    assert [len(w.packs) for w in waves if not w.resources.tasks] == [1]
    assert len(make_drafts(waves, stages, 1000, 100)) == 2
    cut = make_drafts(waves, stages, 2, 1)
    assert all(len(p) == 1 for d in cut if d.wave.resources.tasks for p in d.packs.values()), "not for any budget"


def test_slurm_is_asked_for_tasks_on_one_node_with_resources_of_each(tmp_path: Path) -> None:
    site = profile(tmp_path)
    wanted = site.resources(many(1)[0])
    lines = write_script(tmp_path, "name", [0], wanted, site).read_text().splitlines()
    for line in ("nodes=1", "ntasks-per-node=3", "cpus-per-task=4", "mem=72G", "gres=gpu:h200:3"):
        assert f"#SBATCH --{line}" in lines
    (started,) = [line for line in lines if line.startswith("srun")]
    assert "--kill-on-bad-exit=0 --wait=0" in started and "--cpus-per-task=4" in started
    write_packs(tmp_path, tmp_path, [[0]], 60, 20, 3)
    assert read_json(tmp_path / PACKS)["tasks"] == 3


@pytest.mark.parametrize(("gpus", "asked"), [("gpus: 1", "gpu:h200:1,lscratch:100"), ("gpus: 0", "lscratch:100")])
def test_a_sites_own_gres_stands_beside_the_gpus(tmp_path: Path, gpus: str, asked: str) -> None:
    text = SITE.replace("tasks: 3", 'sbatch: {gres: "lscratch:100"}').replace("gpus: 1", gpus)
    site = profile(tmp_path, text)
    script = write_script(tmp_path, "name", [0], site.resources(many(1)[0]), site).read_text()
    assert [line for line in script.splitlines() if "--gres" in line] == [f"#SBATCH --gres={asked}"]


def test_an_option_without_value_is_written_as_such(tmp_path: Path) -> None:
    site = profile(tmp_path, SITE.replace("tasks: 3", "sbatch: {exclusive: true}"))
    script = write_script(tmp_path, "name", [0], site.resources(many(1)[0]), site).read_text()
    assert "#SBATCH --exclusive\n" in script
    with pytest.raises(UserError, match=r"stages.evaluation:digits.sbatch.gres: this option has a value"):
        profile(tmp_path, SITE.replace("tasks: 3", "sbatch: {gres: true}"))


def test_one_task_is_asked_for_as_ever(tmp_path: Path) -> None:
    site = profile(tmp_path, SITE.replace("tasks: 3", "mem: 2G"))
    text = write_script(tmp_path, "name", [0], site.resources(many(1)[0]), site).read_text()
    assert "ntasks" not in text and "kill-on-bad-exit" not in text and "mem=2G" in text and "gres=gpu:h200:1" in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("gpus: 1", "tasks: 2"), "tasks: say it for stages that train"),
        (('"evaluation:digits"', "synthesis"), "stages.synthesis.tasks: one task a synthesis"),
        (("gpus: 1", "gpus: 2"), "stages.evaluation:digits.gpus: each task computes on one GPU"),
        (("cluster: slurm", "cluster: local"), "several tasks of a job need Slurm"),
        (("tasks: 3", "tasks: 0"), "greater than or equal to 1"),
    ],
)
def test_what_several_tasks_cannot_do_is_refused(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        profile(tmp_path, SITE.replace(*change))
