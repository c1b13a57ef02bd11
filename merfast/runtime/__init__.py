"""Compiled encoders (ONNX Runtime, TensorRT, CUDA graphs) will live here; this version runs them in torch."""
