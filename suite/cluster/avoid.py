"""Which nodes a launch stays away from: those where its stages failed, as long as enough others are left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from suite.cluster.query import partition_nodes
from suite.cluster.reconcile import Todo


def nodes_to_avoid(todo: Sequence[Todo], partitions: Collection[str]) -> dict[str, list[str]]:
    """Nodes where stages that run again have failed, by the partition that a task asks for ("" for the default one).

    They are at most half of its nodes, those with most failures first: on the others, tasks go on.
    """
    blamed = Counter(node for t in todo for node in t.exclude_nodes)
    known = partition_nodes() if blamed else {}
    found = {}
    for asked in partitions if known else ():
        nodes = {node for name in asked.split(",") for node in known.get(name, ())}
        found[asked] = sorted([node for node, _ in blamed.most_common() if node in nodes][: len(nodes) // 2])
    return found
