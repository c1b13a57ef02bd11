"""What runs a network once it is compiled: ONNX Runtime, OpenVINO, TensorRT, CUDA graphs.

Nothing here knows what a network computes: only its inputs (`spec`), its ONNX file (`onnx`), and where compiled files
are kept (`cache`). A runner takes the inputs as torch tensors, and gives the one output as another.
"""
