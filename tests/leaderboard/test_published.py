"""Papers' numbers beside rows of protocol `paper`."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from suite.errors import DataError
from suite.leaderboard.formats import to_csv, to_markdown
from suite.leaderboard.published import Published
from suite.leaderboard.rows import collect
from suite.leaderboard.tables import Table, leaderboards
from suite.methods import discover
from suite.store import Record
from tests.leaderboard.factory import record, stages

REPOSITORY = Path(__file__).resolve().parents[2] / "results" / "published.csv"
HEADER = (
    "method,dataset,resolution,ipc,teacher,student,label_mode,metric,value,std,unit,"
    "source_title,source_where,confidence"
)


def published(tmp_path: Path, *lines: str) -> Published:
    path = tmp_path / "published.csv"
    path.write_text("\n".join([HEADER, *lines]) + "\n")
    return Published(path)


def accuracy(papers: Published, *records: Record) -> Table:
    return leaderboards(collect(records), papers)[0]


def test_a_row_stands_beside_the_number_of_its_paper(tmp_path: Path) -> None:
    papers = published(
        tmp_path, "RDED,imagenet1k,224,10,ResNet18,ResNet18,soft-fkd,top1,42.0,0.1,%,RDED paper,Table 1,read"
    )
    table = accuracy(papers, record("rded", accuracy=40.5), record("rded", seed=1, accuracy=41.0))
    assert "| 42.00 | -1.25 | no |" in to_markdown(table, collect([]), "x")
    line = next(csv.DictReader(io.StringIO(to_csv(table))))
    assert (line["published_low"], line["difference"], line["agrees"]) == ("42", "-1.25", "no")


@pytest.mark.parametrize(
    ("accuracy_", "difference", "agrees"), [(41.2, -0.8, "yes"), (43.0, 0.0, "yes"), (45.2, 1.2, "no")]
)
def test_papers_that_disagree_make_a_range(tmp_path: Path, accuracy_: float, difference: float, agrees: str) -> None:
    line = "RDED,imagenet1k,224,10,{},ResNet18,soft-fkd,top1,{},,%,a paper,Table,read"
    papers = published(tmp_path, line.format("ResNet18", 42.0), line.format("unspecified", 44.0))
    row = accuracy(papers, record("rded", accuracy=accuracy_)).rows[0]
    assert row["published"] == (42.0, 44.0)
    assert row["difference"] == pytest.approx(difference) and row["agrees"] == agrees


@pytest.mark.parametrize("title", ["RDED paper", "RDED: On the Diversity and Realism"])
def test_the_own_paper_goes_before_what_others_measured(tmp_path: Path, title: str) -> None:
    line = "RDED,imagenet1k,224,10,ResNet18,ResNet18,soft-fkd,top1,{},,%,{},Table,read"
    papers = published(tmp_path, line.format(42.0, title), line.format(30.0, "another paper"))
    assert accuracy(papers, record("rded")).rows[0]["published"] == (42.0, 42.0)


@pytest.mark.parametrize(
    "line",
    [
        "RDED,imagenet1k,224,10,ResNet18,ResNet18,soft-static,top1,42,,%,t,w,read",
        "SRe2L,imagenet1k,224,10,ResNet18,ResNet18,soft-fkd,top1,42,,%,t,w,read",
        "RDED,cifar10,32,10,ResNet18,ResNet18,soft-fkd,top1,42,,%,t,w,read",
        "RDED,imagenet1k,64,10,ResNet18,ResNet18,soft-fkd,top1,42,,%,t,w,read",
        "RDED,imagenet1k,224,50,ResNet18,ResNet18,soft-fkd,top1,42,,%,t,w,read",
        "RDED,imagenet1k,224,10,ResNet50,ResNet18,soft-fkd,top1,42,,%,t,w,read",
        "RDED,imagenet1k,224,10,ResNet18,ResNet50,soft-fkd,top1,42,,%,t,w,read",
        "RDED,imagenet1k,224,10,ResNet18,ResNet18,hard,top1,42,,%,t,w,read",
        "RDED,imagenet1k,224,10,ResNet18,ResNet18,soft-fkd,storage,42,,GB,t,w,read",
        "RDED,imagenet1k,224,10,ResNet18,ResNet18,soft-fkd,top1,42,,%,t,w,recalled",
    ],
)
def test_other_cells_other_labels_and_recalled_numbers_are_not_compared_with(tmp_path: Path, line: str) -> None:
    table = accuracy(published(tmp_path, line), record("rded"))
    assert "published" not in {c.name for c in table.columns}


@pytest.mark.parametrize(
    ("cell", "row"),
    [
        (("sre2lpp", "cifar10", "resnet18_cifar", "stored"), "SRe2L++,cifar10,32,10,ResNet18,ResNet18,soft-fkd"),
        (("kcenter", "cifar10", "convnet3_in", "hard"), "K-Center,cifar10,32,10,-,ConvNet3,hard"),
        (("herding", "tinyimagenet", "convnet4", "hard"), "Herding,tinyimagenet,64,10,ConvNet,ConvNet,hard"),
        (("lpld", "imagenet1k", "resnet18", "stored"), "LPLD,imagenet1k,224,10,ResNet18,ResNet18,soft-fkd pruned 40x"),
        (
            ("label_worth", "cifar100", "convnet3", "vector"),
            "Random,cifar100,32,10,ConvNet,ConvNet,soft-static (no CutMix)",
        ),
    ],
)
def test_names_of_papers_and_of_the_suite_are_the_same_methods_and_networks(
    tmp_path: Path, cell: tuple[str, str, str, str], row: str
) -> None:
    papers = published(tmp_path, f"{row},top1,42,,%,a paper,Table,read")
    method, data, network, labels = cell
    line = {"protocol": "paper", "n": 1, "ipc": 10, "dataset": data, "teacher": network, "labels": labels}
    assert papers.beside({**line, "student": network, "method": method}) is not None
    for other in ("sre2l", "random"):
        assert papers.beside({**line, "student": network, "method": other}) is None
    for wrong in {"hard", "vector", "stored"} - {labels}:
        assert papers.beside({**line, "student": network, "method": method, "labels": wrong}) is None


def test_other_protocols_are_not_compared_with_papers(tmp_path: Path) -> None:
    papers = published(tmp_path, "RDED,imagenet1k,224,10,ResNet18,ResNet18,soft-fkd,top1,42,,%,t,w,read")
    rows = {r["protocol"]: r for r in accuracy(papers, record("rded"), record("rded", protocol="matched")).rows}
    assert rows["paper"]["published"] == (42.0, 42.0) and rows["matched"]["published"] is None


@pytest.mark.parametrize("line", ["RDED,imagenet1k", "RDED,imagenet1k,224,x,a,b,soft,top1,42,,%,t,w,read"])
def test_a_broken_table_is_refused_with_its_line(tmp_path: Path, line: str) -> None:
    with pytest.raises(DataError, match=r"published\.csv:2: "):
        published(tmp_path, line)


def test_the_table_of_the_repository_knows_the_methods_of_the_suite() -> None:
    papers = Published(REPOSITORY)
    found = {}
    for method in discover():
        for ipc in (10, 50):
            line = {**stages(method, ipc)[1].to_json()["spec"], "labels": "stored", "n": 1}
            found[method, ipc] = papers.beside(line)
    assert found["rded", 10] is not None and found["sre2l", 50] is not None
    e2d = found["e2d", 10]
    assert e2d is not None and e2d.low <= 49.9 <= e2d.high
    assert found["random_soft", 10] is None
