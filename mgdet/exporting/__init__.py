"""Trained detectors as files that run without mgdet: ONNX, TorchScript, torch.export, and weights as safetensors.

`runtime` uses such a file with NumPy, Pillow and onnxruntime alone: it imports neither torch nor anything of mgdet.
"""
