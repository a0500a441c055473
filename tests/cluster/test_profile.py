"""Site profiles are strict, and say where they are wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from suite.cluster.profile import Profile, find_profile, load_profile, minutes
from suite.errors import UserError
from tests.cluster.toys import ROOT, diamond, prepare, synthesis


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "site.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "line", "field", "hint"),
    [
        ("cluster: slurm\npartitions: gpu\n", 2, "partitions: unknown field", "did you mean 'partition'?"),
        ("cluster: pbs\n", 1, "cluster:", "'local' or 'slurm'"),
        ("gpus: '1'\n", 1, "gpus:", "valid integer"),
        ("gpus: 1\ngpus: 2\n", 2, "gpus", "already"),
        ("time: 12:00:00\n", 1, "", "quote it"),
        ("time: 600\n", 1, "time:", "90m, 4h, 2d"),
        ("time: 4m\n", 1, "time:", "5 minutes"),
        ("mem: 64\n", 1, "mem:", "string"),
        ("mem: lots\n", 1, "mem:", "found 'lots'"),
        ("partition: 'a b; rm -rf /'\n", 1, "partition:", "match pattern"),
        ("stages:\n  teecher: {time: 4h}\n", 1, "stages.teecher", "did you mean 'teacher'?"),
        ("stages:\n  teacher: {tme: 4h}\n", 2, "stages.teacher.tme", "did you mean 'time'?"),
        ("stages:\n  'evaluation:imagenet2k': {time: 4h}\n", 1, "imagenet2k", "did you mean 'imagenet21k'?"),
        ("sources: {cifar1: /data}\n", 1, "sources.cifar1", "did you mean 'cifar10'?"),
        ("cluster: local\nsetup: [module load cuda]\n", 1, "setup:", "before launching"),
        ("store: $SUITE_NO_SUCH_VARIABLE/x\n", 1, "store:", "not set"),
        ("slots: 0\n", 1, "slots:", "greater than or equal to 1"),
        ("- local\n", 1, "", "mapping"),
        ("store: [a\n", 2, "", "not YAML"),
    ],
)
def test_errors_name_file_line_and_field(tmp_path: Path, text: str, line: int, field: str, hint: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        load_profile(path)
    message = caught.value.line()
    assert message.startswith(f"{path}:{line}:")
    assert field in message and hint in message and "\n" not in message


@pytest.mark.parametrize("name", [p.stem for p in (ROOT / "slurm").glob("*.yaml")])
def test_every_profile_of_the_repository_is_valid(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "somebody")
    profile = load_profile(find_profile(name))
    for stage in diamond().stages:
        assert profile.resources(stage).model_dump()


def test_unknown_profile_is_named_with_a_hint() -> None:
    with pytest.raises(UserError, match="did you mean 'local'"):
        find_profile("locl")


def test_stage_and_dataset_override_the_profile(tmp_path: Path) -> None:
    profile = load_profile(
        write(
            tmp_path,
            "cluster: slurm\ngpus: 1\nmem: 10G\ntime: 4h\n"
            "stages: {prepare: {gpus: 0}, 'prepare:cifar10': {time: 1d, mem: 20G}}\n",
        )
    )
    digits, cifar = profile.resources(prepare()), profile.resources(prepare("cifar10-n5"))
    assert (digits.gpus, digits.mem, digits.time) == (0, "10G", 240)
    assert (cifar.gpus, cifar.mem, cifar.time) == (0, "20G", 1440)


def test_a_merge_asks_for_what_its_synthesis_would_without_a_gpu(tmp_path: Path) -> None:
    text = "cluster: slurm\ngpus: 1\ngpu_type: h200\nmem: 10G\nstages: {synthesis: {partition: big, gpus: 4}"
    made = synthesis("sre2l", {}, ())
    merge = replace(made, shards=3)
    shard = merge.parts()[0]
    profile = load_profile(write(tmp_path, text + "}\n"))
    asked = [(r.partition, r.mem, r.gpus, r.gpu_type) for r in map(profile.resources, (made, shard, merge))]
    assert asked == [("big", "10G", 4, "h200")] * 2 + [("big", "10G", 0, None)]
    profile = load_profile(write(tmp_path, text + ", merge: {partition: cpu}, 'merge:digits': {mem: 20G}}\n"))
    found = profile.resources(merge)
    assert (found.partition, found.mem, found.gpus) == ("cpu", "20G", 0)
    assert profile.resources(shard).partition == "big"


def test_command_line_overrides_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "store: one\nslots: 2\n")
    profile = load_profile(path, store="two", slots=3)
    assert (profile.store, profile.slots) == ("two", 3)
    assert load_profile(path, store=None, slots=None).store == "one"
    with pytest.raises(UserError, match="--slots"):
        load_profile(path, slots=0)


def test_paths_expand_home_and_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUITE_TEST_ROOT", "/scratch/me")
    profile = load_profile(write(tmp_path, "store: $SUITE_TEST_ROOT/store\nsources: {cifar10: ~/data}\n"))
    assert profile.store == "/scratch/me/store"
    assert profile.sources["cifar10"] == str(Path.home() / "data")


def test_user_is_known_where_cron_does_not_say_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("USER", raising=False)
    monkeypatch.setenv("LOGNAME", "ada")
    assert load_profile(write(tmp_path, "store: /scratch/$USER/a\n")).store == "/scratch/ada/a"
    assert load_profile(write(tmp_path, "store: /scratch/${USER}s\n")).store == "/scratch/adas"
    with pytest.raises(UserError, match="not set"):
        load_profile(write(tmp_path, "store: /scratch/$USERS\n"))


def test_nights_always_share_prepared_datasets(tmp_path: Path) -> None:
    assert load_profile(write(tmp_path, "nightly: {reuse: [teacher]}\n")).nightly.reuse == ("prepare", "teacher")


@pytest.mark.parametrize(
    ("text", "expected"), [("90m", 90), ("4h", 240), ("2d", 2880), ("12:00:00", 720), ("1-12:00:30", 2161)]
)
def test_time_limits(text: str, expected: int) -> None:
    assert minutes(text) == expected


def test_threads_are_the_same_everywhere_by_default() -> None:
    assert {load_profile(ROOT / "slurm" / f"{n}.yaml").threads for n in ("local", "testcluster")} == {Profile().threads}
