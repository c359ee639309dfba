"""Walks through networks, held against ONNX Runtime's runs of whole networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from onnxcp.calibration.stream import Stop, Stream
from onnxcp.graph.model import Model
from onnxcp.graph.site import find_sites
from onnxcp.graph.splice import replace_kernels
from onnxcp.profiling.machine import Machine
from tests.networks import FLOAT32, difference, feeds_for, run

Feeds = dict[str, Any]
MACHINE = Machine(intra_op_num_threads=1)
SCALE = 1.25  # of kernels; a power of two apart, so that it rounds nothing away


def batches_for(proto: onnx.ModelProto) -> list[Feeds]:
    feeds = feeds_for(proto)
    return [feeds, {name: (value / 2).astype(value.dtype) for name, value in feeds.items()}]


def walk(proto: onnx.ModelProto, batches: Sequence[Feeds] | None = None, **options: Any) -> Stream:
    """Walk through a network and stop at all sites."""
    model = Model(proto)
    given = batches_for(proto) if batches is None else batches
    return Stream(model, find_sites(model)[0], given, MACHINE, **options)


def scaled(stop: Stop) -> Model:
    return replace_kernels(stop.alone, {stop.alone_site: stop.alone_site.kernel() * SCALE})


def with_scaled(model: Model, output: str) -> Model:
    """Scale the kernel of the site with some output in the whole network."""
    (site,) = [site for site in find_sites(model)[0] if site.output == output]
    return replace_kernels(model, {site: site.kernel() * SCALE})


def observed(model: Model, names: Sequence[str], feeds: Feeds) -> dict[str, Any]:
    """Run a network and return any of its tensors, as ONNX Runtime computes them."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    present = {output.name for output in proto.graph.output}
    proto.graph.output.extend(
        helper.make_empty_tensor_value_info(name) for name in dict.fromkeys(names)
        if name not in present
    )  # fmt: skip
    return dict(zip([value.name for value in proto.graph.output], run(proto, feeds), strict=True))


def assert_close(found: Any, expected: Any) -> None:
    if isinstance(expected, list):
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other)
    elif expected is None or expected.dtype.kind != "f" or not expected.any():
        np.testing.assert_array_equal(found, expected)
    else:
        # Two steps of half precision are 1e-3; only their order is chosen by a walk.
        assert difference(found, expected) < (2e-3 if expected.dtype == np.float16 else FLOAT32)


def check(proto: onnx.ModelProto, batches: Sequence[Feeds] | None = None, **options: Any) -> None:
    """Hold a walk against ONNX Runtime's runs of whole networks, with and without replacements."""
    batches = batches_for(proto) if batches is None else batches
    model = rewritten = Model(proto)
    names = [output.name for output in proto.graph.output]
    with walk(proto, batches, **options) as stream:
        for original, other in stream.outputs():
            for name in names:
                np.testing.assert_equal(original[name], other[name])
    with walk(proto, batches, **options) as stream:
        for stop in stream:
            site = stop.site
            wanted = [site.input, site.output, *stop.partners]
            for feeds, (x, target), original in zip(
                batches, stop.pairs(), stop.originals(), strict=True
            ):
                right, now = (observed(each, wanted, feeds) for each in (model, rewritten))
                work = np.float64 if site.dtype == np.float64 else np.float32
                errors = [right[name].astype(work) - now[name] for name in stop.partners]
                assert_close(x, now[site.input].astype(work))
                assert_close(original, right[site.output].astype(work))
                assert_close(target, sum(errors, right[site.output].astype(work)))
            assert stop.diverged == any(
                not np.array_equal(right[name], now[name]) for name in (site.input, *stop.partners)
            )
            stop.settle(scaled(stop))
            rewritten = with_scaled(rewritten, site.output)
        for feeds, (original, other) in zip(batches, stream.outputs(), strict=True):
            expected = dict(zip(names, run(model, feeds), strict=True))
            for name in names:
                assert_close(original[name], expected[name])
            expected = dict(zip(names, run(rewritten, feeds), strict=True))
            for name in names:
                assert_close(other[name], expected[name])
