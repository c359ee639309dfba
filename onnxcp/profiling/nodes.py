"""Per-node times from ONNX Runtime's own profile, and whose node of the model each one is.

A profile names the nodes of the *optimised* graph. What ONNX Runtime 1.31 makes of names:

* an untouched node keeps its name; without one it is `<type>_<position>`, such as `Conv_2`;
* in the blocked layout (NCHWc) a node is `<tensor>_nchwc`, after the last tensor of what had been
  fused into it by then: Conv c1 → Relu r1 is `r1_nchwc`, Conv → BatchNormalization → Relu is named
  after the Relu's output, but Conv c2 → Add → Relu is `c2_nchwc`, since the Add is fused later;
* the changes of layout are all called `ReorderInput` or `ReorderOutput`, and belong to no node;
* outside that layout Conv → Relu is a FusedConv with the name of the Conv, Gemm → Relu is
  `fused <gemm>`, and other fusions append to a name: `<matmul>/MatMulAddFusion`;
* a node of a model-local function is `_inlfunc_<function>_<node>`.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxcp.profiling.session import Feeds, Runner, open_session

_SUFFIX = "_kernel_time"

# What the blocked layout has kernels for; anything fused into one of these comes after it.
_BLOCKED = frozenset(
    {"Conv", "MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool", "Upsample", "Resize"}
)


@dataclass(frozen=True)
class NodeTime:
    """What one node of the optimised graph takes.

    Attributes
    ----------
    name
        The node as ONNX Runtime calls it; not unique.
    op_type
        The operator it runs, `FusedConv` or `ReorderInput` perhaps.
    provider
        The execution provider it runs on, by its full name.
    seconds_per_run
        Median over runs. Of a node with a body (If, Loop, Scan) without the nodes of the body. The
        profile counts whole microseconds, and taking it costs a few per node, so that the sum is
        above the latency of a network of many small nodes.
    """

    name: str
    op_type: str
    provider: str
    seconds_per_run: float


def profile_nodes(
    model: str | Path | bytes,
    feeds: Feeds,
    *,
    providers: Sequence[str] = ("cpu",),
    intra_op_num_threads: int = 0,
    warmup: int = 3,
    iterations: int = 20,
    label: str = "",
) -> tuple[NodeTime, ...]:
    """Time every node of a model with the profiler of ONNX Runtime.

    Parameters
    ----------
    model, providers, intra_op_num_threads, label
        As for `open_session`.
    feeds
        Values of the inputs.
    warmup
        Runs before the first that counts.
    iterations
        Runs that count.

    Returns
    -------
    tuple of NodeTime
        In the order of execution. On CUDA they are the times of the kernels where the build of
        ONNX Runtime records these (CUPTI), and else those of launching them.

    Raises
    ------
    ModelError, ProviderError
        As `open_session`.
    """
    with tempfile.TemporaryDirectory(prefix="onnxcp-", ignore_cleanup_errors=True) as folder:
        session = open_session(
            model,
            providers=providers,
            intra_op_num_threads=intra_op_num_threads,
            label=label,
            profile_prefix=Path(folder) / "profile",
        )
        runner = Runner(session, feeds, label=label or "the model")
        for _ in range(warmup + iterations):
            runner.run()
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return node_times(events, skip=warmup)


def node_times(events: Iterable[dict[str, Any]], *, skip: int = 0) -> tuple[NodeTime, ...]:
    """Read the events of a profile.

    Parameters
    ----------
    events
        The list in the JSON file that ONNX Runtime writes.
    skip
        How many runs to leave out at the beginning.
    """
    runs = [Counter(dict(_run_times(run))) for run in list(_runs(events))[skip:]]
    order = dict.fromkeys(key for run in runs for key in run)
    return tuple(
        NodeTime(name, op_type, provider, float(np.median([run[key] for run in runs])) * 1e-6)
        for key in order
        for name, op_type, provider, _ in [key]
    )


def sum_by(times: Iterable[NodeTime], owner: Callable[[str], str | None]) -> dict[str, float]:
    """Sum seconds per run over the nodes of each owner.

    Parameters
    ----------
    times
        What `profile_nodes` returned.
    owner
        Maps a node's name to its owner; `node_origins` makes such a function. Nodes whose owner is
        None are summed under `""`.
    """
    sums: dict[str, float] = defaultdict(float)
    for time in times:
        sums[owner(time.name) or ""] += time.seconds_per_run
    return dict(sums)


def node_origins(graph: onnx.GraphProto) -> Callable[[str], str | None]:
    """Return a function from a name in a profile to the node of `graph` that it stands for.

    For a fusion that is the node with the weights: the Conv of Conv → BatchNormalization → Relu.
    The function returns None for layout changes, nodes without a name, and nodes that ONNX Runtime
    renamed in a way not listed at the top of this module.
    """
    names = {node.name for node in graph.node if node.name}
    producers = {output: node for node in graph.node for output in node.output if output}

    def origin(reported: str) -> str | None:
        if reported in names:
            return reported
        if reported.endswith("_nchwc"):
            node = producers.get(reported.removesuffix("_nchwc"))
            return None if node is None else _blocked_ancestor(node, producers).name or None
        name = reported.removeprefix("fused ")
        while name not in names and "/" in name:
            name = name.rpartition("/")[0]
        return name if name in names else None

    return origin


def _blocked_ancestor(node: onnx.NodeProto, producers: dict[str, onnx.NodeProto]) -> onnx.NodeProto:
    """Walk up from the end of a fusion to the node it began with."""
    start = node
    while node.op_type not in _BLOCKED:
        above = [producers[name] for name in node.input if name in producers]
        above = [parent for parent in above if parent.op_type not in ("Constant", "Identity")]
        if len(above) != 1:
            return start
        node = above[0]
    return node


_Key = tuple[str, str, str, int]


def _runs(events: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Split events, which are in the order in which they ended, at the ends of runs."""
    run: list[dict[str, Any]] = []
    for event in events:
        if event.get("cat") == "Session" and event.get("name") == "model_run":
            yield run
            run = []
        else:
            run.append(event)


def _run_times(events: list[dict[str, Any]]) -> dict[_Key, int]:
    """Return the microseconds of every node in one run."""
    nodes: list[dict[str, Any]] = []
    kernels: dict[int, int] = defaultdict(int)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX):
            nodes.append(event)
        elif event.get("cat") == "Kernel" and nodes and _parent(event) == nodes[-1]["name"]:
            # The kernels that a node launched come right after it, and name it.
            kernels[len(nodes) - 1] += event["dur"]
    times: dict[_Key, int] = defaultdict(int)
    own = _own_microseconds(nodes)
    for position in sorted(range(len(nodes)), key=lambda position: nodes[position]["ts"]):
        arguments = nodes[position]["args"]
        key = (
            re.sub(f"{_SUFFIX}$", "", nodes[position]["name"]),
            arguments["op_name"],
            arguments.get("provider", ""),
            int(arguments.get("node_index", 0)),
        )
        times[key] += kernels.get(position, own[position])
    return times


def _parent(kernel: dict[str, Any]) -> str | None:
    parent: str | None = kernel.get("args", {}).get("parent_name")
    return parent


def _own_microseconds(nodes: list[dict[str, Any]]) -> list[int]:
    """Subtract from every node the nodes that ran within it: those of its body."""
    own = [node["dur"] for node in nodes]
    around: list[int] = []
    order = sorted(range(len(nodes)), key=lambda i: (nodes[i]["ts"], -nodes[i]["dur"]))
    for i in order:
        while around and nodes[i]["ts"] >= nodes[around[-1]]["ts"] + nodes[around[-1]]["dur"]:
            around.pop()
        if around:
            own[around[-1]] -= nodes[i]["dur"]
        around.append(i)
    return own
