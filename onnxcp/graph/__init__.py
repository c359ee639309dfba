"""Exact surgery on ONNX graphs: loading, finding sites, putting chains in their place, saving."""
