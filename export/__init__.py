"""The export side: from a checkpoint to a verified bundle. Needs torch and onnx, which no device does."""

if __name__ == "export":
    raise ImportError("`export` is `edgevtx.export`: import it under that name, or its classes exist twice")
