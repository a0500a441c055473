"""Papers' numbers beside rows of protocol `paper`."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from suite.errors import DataError
from suite.leaderboard.boards import leaderboards
from suite.leaderboard.formats import to_csv, to_markdown
from suite.leaderboard.published import Published
from suite.leaderboard.rows import collect
from suite.leaderboard.tables import Table
from suite.methods import discover
from suite.store import Record
from tests.leaderboard.factory import record, stages

REPOSITORY = Path(__file__).resolve().parents[2] / "results" / "published.csv"
HEADER = (
    "method,dataset,resolution,ipc,teacher,student,label_mode,metric,value,std,unit,"
    "source_title,source_where,confidence,primary,mark"
)


def published(tmp_path: Path, *lines: str) -> Published:
    path = tmp_path / "published.csv"
    full = [f"{line}{',' * (HEADER.count(',') - line.count(','))}" for line in lines]
    path.write_text("\n".join([HEADER, *full]) + "\n")
    return Published(path)


def accuracy(papers: Published, *records: Record) -> Table:
    return leaderboards(collect(records), papers)[0]


def test_a_row_stands_beside_the_number_of_its_paper(tmp_path: Path) -> None:
    papers = published(
        tmp_path, "RDED,imagenet1k,224,10,ResNet18,ResNet18,soft-fkd,top1,42.0,0.1,%,RDED paper,Table 1,read"
    )
    table = accuracy(papers, record("rded", accuracy=40.5), record("rded", seed=1, accuracy=41.0))
    assert "| 42.00 | -1.25 | below |" in to_markdown(table, collect([]), "x")
    line = next(csv.DictReader(io.StringIO(to_csv(table))))
    assert (line["published_low"], line["difference"], line["verdict"]) == ("42", "-1.25", "below")


@pytest.mark.parametrize(
    ("accuracy_", "difference", "verdict"),
    [(41.2, -0.8, "reproduced"), (43.0, 0.0, "reproduced"), (45.2, 1.2, "above")],
)
def test_papers_that_disagree_make_a_range(tmp_path: Path, accuracy_: float, difference: float, verdict: str) -> None:
    line = "RDED,imagenet1k,224,10,{},ResNet18,soft-fkd,top1,{},,%,a paper,Table,read"
    papers = published(tmp_path, line.format("ResNet18", 42.0), line.format("unspecified", 44.0))
    row = accuracy(papers, record("rded", accuracy=accuracy_)).rows[0]
    assert row["published"] == (42.0, 44.0)
    assert row["difference"] == pytest.approx(difference) and row["verdict"] == verdict


def test_the_primary_source_goes_before_what_others_give(tmp_path: Path) -> None:
    line = "RDED,imagenet1k,224,10,ResNet18,ResNet18,soft-fkd,top1,{},,%,{},Table,read,{},"
    papers = published(tmp_path, line.format(42.0, "its paper", "yes"), line.format(30.0, "another paper", ""))
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
    line = {
        "protocol": "paper", "ipc": 10, "dataset": data, "teacher": network, "student": network, "labels": labels,
        "label_prune": 0.975 if method == "lpld" else 0.0, "overridden": False,
    }  # fmt: skip
    assert papers.comparable({**line, "method": method})
    for other in ("sre2l", "random"):
        assert not papers.comparable({**line, "method": other})
    for wrong in {"hard", "vector", "stored"} - {labels}:
        assert not papers.comparable({**line, "method": method, "labels": wrong})
    if labels == "stored":
        assert not papers.comparable({**line, "method": method, "label_prune": 0.9}), "ten times is not forty"


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
            line = {
                **stages(method, ipc)[1].to_json()["spec"],
                "labels": "stored",
                "label_prune": 0,
                "overridden": False,
            }
            found[method, ipc] = [x.value for x in papers.comparable(line)]
    assert 42.0 in found["rded", 10] and 46.8 in found["sre2l", 50]
    assert found["e2d", 10] == [49.9]
    assert found["random_soft", 10] == []


def test_the_convnet_of_width_128_is_the_convnet(tmp_path: Path) -> None:
    papers = published(tmp_path, "DM,cifar10,32,10,ConvNetW128,ConvNetW128,hard,top1,48.9,,%,t,w,read")
    line = {"method": "dm", "dataset": "cifar10", "ipc": 10, "teacher": "convnet3", "student": "convnet3",
            "protocol": "paper", "labels": "hard", "label_prune": 0, "overridden": False}  # fmt: skip
    assert papers.comparable(line)
    assert not papers.comparable({**line, "student": "convnet3_w32"}), "another width"


def test_a_cell_whose_settings_a_grid_changed_compares_with_nothing(tmp_path: Path) -> None:
    papers = published(tmp_path, "RDED,imagenet1k,224,10,ResNet18,ResNet18,soft-fkd,top1,42,,%,t,w,read")
    rows = collect([record("rded", accuracy=12.0)])
    rows.frame["overridden"] = rows.frame["overridden"].fillna(True)
    (row,) = leaderboards(rows, papers)[0].rows
    assert row["published"] == (42.0, 42.0) and row["difference"] is None
    assert row["verdict"] == "not comparable (settings are not the paper's)"
