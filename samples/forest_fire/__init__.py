"""Forest-fire sample: procedural scenes, the training script and the checkpoint trained on them."""
