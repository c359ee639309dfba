"""One site as a model of its own, to time it and its chains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from onnxcp.graph.model import Model
from onnxcp.graph.site import Site, find_sites, native

INPUT = "x"
OUTPUT = "y"


def isolate(model: Model, site: Site, input_shape: Sequence[int]) -> tuple[Model, Site]:
    """Return a model of one site's node, and that site found again in it.

    Weights and bias are random: time does not depend on them as long as they are ordinary numbers.

    Parameters
    ----------
    model
        The model in which the site was found; its opset and IR version are kept.
    site
        The site.
    input_shape
        Shape of the tensor that it reads, batch included.
    """
    rng = np.random.default_rng(0)
    kind = onnx.helper.np_dtype_to_tensor_dtype(site.dtype)

    def constant(name: str, shape: Sequence[int]) -> onnx.TensorProto:
        values = rng.standard_normal(shape, dtype=np.float32).astype(site.dtype)
        return onnx.numpy_helper.from_array(values, name)

    weight = native(site, np.broadcast_to(np.float32(0), site.kernel_shape)).shape
    initializers = [constant("w", weight)]
    inputs = ["w", INPUT] if site.weight_on_left else [INPUT, "w"]
    if site.bias is not None:
        initializers.append(constant("b", (site.outputs,)))
        inputs.append("b")
    node = onnx.NodeProto()
    node.CopyFrom(model.proto.graph.node[site.index])
    del node.input[:], node.output[:]
    node.name = "site"
    node.input.extend(inputs)
    node.output.append(OUTPUT)

    x = onnx.helper.make_tensor_value_info(INPUT, kind, list(input_shape))
    y = onnx.helper.make_tensor_value_info(OUTPUT, kind, None)
    proto = onnx.ModelProto()
    # From IR version 4 on, an initializer that is no input is a constant to the optimiser.
    proto.ir_version = max(model.proto.ir_version, 4)
    proto.opset_import.extend(model.proto.opset_import)
    proto.graph.CopyFrom(onnx.helper.make_graph([node], "alone", [x], [y], initializers))
    alone = Model(proto)
    (found,), _ = find_sites(alone)
    return alone, found
