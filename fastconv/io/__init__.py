"""Files: weights in `fastconv.io.safetensors`, whose names and shapes are PyTorch's, and pictures in `images`.

`safetensors.save_safetensors(model.state_dict(), path)` writes a model's, and
`model.load_state_dict(safetensors.load_safetensors(path))` takes them over, also those of a PyTorch model.
"""
