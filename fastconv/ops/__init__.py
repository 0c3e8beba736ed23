"""The public operations, a file per family: check, record if a Tensor asks, call the backend."""
