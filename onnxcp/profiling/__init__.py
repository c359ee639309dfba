"""ONNX Runtime and time: sessions, their inputs, latencies, per-node times, differences."""
