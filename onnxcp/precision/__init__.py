"""Networks in the number format that they are deployed in: float16, or int8 with ONNX Runtime."""
