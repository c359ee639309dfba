"""The rewriting passes that come with onnxcp, one file each, its algebra in its docstring."""
