"""Files: weights as safetensors."""
