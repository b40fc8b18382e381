"""Floor 1: files and downloads become uint8 tensors in three splits."""
