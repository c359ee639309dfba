"""Which initializers of a model are factors of which layer: a note in the model's own metadata.

The note is one entry of ``metadata_props`` under the key `KEY`, JSON of this form::

    {"version": 1, "chains": [
        {"site": "conv2", "family": "cp3", "ranks": [64],
         "factors": ["conv2.weight/cp3/0", "conv2.weight/cp3/1", "conv2.weight/cp3/2"],
         "middle": ["conv2.weight/cp3/1"]}]}

`factors` are the weights of the chain that took the place of a node, in the order of the chain;
`middle` are those that are neither first nor last. A chain of several rows, which are summed, has
an entry for each.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import onnx

KEY = "onnxcp.chains"
VERSION = 1


@dataclass(frozen=True)
class Origin:
    """Where some weights of a model come from.

    Attributes
    ----------
    site
        Name of the node that was replaced.
    family, ranks
        By what, and how large.
    factors
        Names of the initializers in the order of the chain.
    middle
        Those between the first and the last.
    """

    site: str
    family: str
    ranks: tuple[int, ...]
    factors: tuple[str, ...]
    middle: tuple[str, ...] = ()


def origins(proto: onnx.ModelProto) -> tuple[Origin, ...]:
    """Return what a model says of the weights that it has.

    A note that cannot be read, such as one of a later version, says nothing.
    """
    return _present(_noted(proto), proto)


def note(
    proto: onnx.ModelProto, added: Sequence[Origin], renamed: Mapping[str, Sequence[str]]
) -> None:
    """Write down where weights come from, beside what is known already; changes the message.

    Parameters
    ----------
    proto
        The model, with the new weights in it.
    added
        What is new. Of a site that is known already, the new one counts.
    renamed
        By names that weights had, the names of those that took their place at some node.
    """
    new = {each.site for each in added}
    known = [_renamed(each, renamed) for each in _noted(proto) if each.site not in new]
    kept = _present([*known, *added], proto)
    for entry in [each for each in proto.metadata_props if each.key == KEY]:
        proto.metadata_props.remove(entry)
    if kept:
        content = {"version": VERSION, "chains": [asdict(each) for each in kept]}
        proto.metadata_props.add(key=KEY, value=json.dumps(content, ensure_ascii=False))


def _noted(proto: onnx.ModelProto) -> list[Origin]:
    text = next((each.value for each in proto.metadata_props if each.key == KEY), "{}")
    try:
        content = json.loads(text)
        if content.get("version") != VERSION:
            return []
        return [_origin(each) for each in content["chains"]]
    except (AttributeError, KeyError, TypeError, ValueError):
        return []


def _origin(entry: Mapping[str, Any]) -> Origin:
    return Origin(
        str(entry["site"]),
        str(entry["family"]),
        tuple(map(int, entry["ranks"])),
        tuple(map(str, entry["factors"])),
        tuple(map(str, entry["middle"])),
    )


def _present(found: Sequence[Origin], proto: onnx.ModelProto) -> tuple[Origin, ...]:
    """Leave out weights that the model does not have, and sites that have none left."""
    names = {tensor.name for tensor in proto.graph.initializer}
    whole = (
        replace(
            each,
            factors=tuple(name for name in each.factors if name in names),
            middle=tuple(name for name in each.middle if name in names),
        )
        for each in found
    )
    return tuple(each for each in whole if each.factors)


def _renamed(origin: Origin, renamed: Mapping[str, Sequence[str]]) -> Origin:
    """Put new names after old ones, which stay where other nodes still read them."""

    def names(old: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(new for name in old for new in (name, *renamed.get(name, ())))

    return replace(origin, factors=names(origin.factors), middle=names(origin.middle))
