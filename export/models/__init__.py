"""Torch modules that no library ships, each written from the paper named in its file.

Their checkpoints are a folder of `config.json` (its fields are the file's `Settings`) and `model.safetensors` with the
module's own tensor names; see `Checkpoint.load_module`.
"""
