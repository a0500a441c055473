"""What sbatch's answers mean: no room for now, no node at all, or ask again."""

from __future__ import annotations

from pathlib import Path

import pytest

from suite.cluster import sbatch as module
from suite.cluster.profile import Profile
from suite.cluster.runs import create_run
from suite.cluster.sbatch import NoNode, NoRoom, Refused, sbatch
from suite.cluster.slurm import submit
from suite.cluster.waves import make_waves
from suite.store import Store
from tests.cluster.toys import diamond
from tests.faults.commands import Commands


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    made = Commands(tmp_path / "bin", alone=True)
    monkeypatch.setenv("PATH", made.path)
    monkeypatch.setattr(module, "WAITS", ())
    return made


@pytest.mark.parametrize(
    ("says", "means"),
    [
        ("sbatch: error: QOSMaxSubmitJobPerUserLimit", NoRoom),
        ("sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying", NoRoom),
        ("sbatch: error: Batch job submission failed: Resource temporarily unavailable", NoRoom),
        ("sbatch: error: Batch job submission failed: Requested node configuration is not available", NoNode),
        ("sbatch: error: Batch job submission failed: Invalid account or account/partition combination", Refused),
    ],
)
def test_an_answer_is_no_room_no_node_or_a_refusal(commands: Commands, says: str, means: type[Exception]) -> None:
    commands.fault("sbatch", f"echo '{says}' >&2; exit 1")
    with pytest.raises(Refused if means is not NoRoom else NoRoom) as caught:
        sbatch(Path("x"), "x", {"PATH": commands.path})
    assert type(caught.value) is means


def test_nodes_to_avoid_are_used_where_no_other_fits(
    commands: Commands, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two of twenty nodes have the GPU that is asked for, and both have failed once."""
    commands.fault("scontrol", "echo 'MaxArraySize = 1001'; exit")
    commands.fault(
        "sbatch",
        "grep -q '^#SBATCH --exclude=n1,n2' \"${@: -1}\" && "
        "{ echo 'sbatch: error: Requested node configuration is not available' >&2; exit 1; }\n"
        "echo $((100 + n)); exit",
    )
    profile, plan = Profile(cluster="slurm"), diamond()
    run = create_run(Store(tmp_path / "store"), "a", plan.stages, profile)
    waves = make_waves(plan.stages, profile)
    arrays = submit(run, waves, plan.stages, profile, avoid={"": ["n1", "n2"]})
    assert all(a.job for a in arrays) and len(commands.calls("sbatch")) == 2 * len(arrays)
    assert "on n1 n2, too" in capsys.readouterr().out
