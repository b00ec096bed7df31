"""What compilers are known to get wrong: patterns of a graph, for versions of a target, each with its public thread.

Export consults the table when it makes a target's graphs, compiling when it chooses among them. `pattern` names what
`edgevtx.export.rewrite.patterns` finds in a graph; a bundle's manifest says which patterns each of its graphs has, and
which rows it avoids, so that a device needs no ONNX to know.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgevtx.versions import in_range

REFUSE = "refuse"
WARN = "warn"

EVERY = ("fp32", "fp16", "bf16", "int8")  # what an int8 graph does not quantise is in half precision


@dataclass(frozen=True)
class KnownBad:
    """A combination that gives wrong answers, or no engine.

    `versions` is a PEP 440 range of the target; `gpus` are architectures ("sm120"), none for all. `issue` is the
    public thread, OWNER/REPOSITORY#NUMBER. `remedy` is the name of a rewrite of `edgevtx.export.rewrite.remedies`,
    `REFUSE` (no graph with the pattern is made or compiled), or `WARN` where the thread speaks of other networks, and
    the golden sample on the device decides; `advice` says what the user can do for these two.
    """

    id: str
    target: str
    versions: str
    pattern: str
    issue: str
    what: str
    remedy: str
    precisions: tuple[str, ...] = EVERY
    gpus: tuple[str, ...] = ()
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.what} ({self.issue})"


TABLE = (
    # onnx-tensorrt knew "bilinear" alone, and took every other word for "nearest": seen with 10.13, 11.1 and RTX 1.5;
    # RTX 1.7.1 builds a linear layer of it
    KnownBad(
        id="grid-sample-linear",
        target="tensorrt",
        versions=">=10.3",
        pattern="grid-sample-linear",
        issue="NVIDIA/TensorRT#4646",
        what="GridSample of opset 20 samples the nearest pixel where linear interpolation was asked",
        remedy="gather-grid-sample",
    ),
    KnownBad(
        id="grid-sample-linear-rtx",
        target="tensorrt-rtx",
        versions=">=1.0,<1.7",
        pattern="grid-sample-linear",
        issue="onnx/onnx-tensorrt#1060",
        what="GridSample of opset 20 samples the nearest pixel where linear interpolation was asked",
        remedy="gather-grid-sample",
    ),
    # 10.13 is right, 10.14.1 and 11.1 are wrong; gathers in its place were measured by lightly-ai/lightly-train#917
    KnownBad(
        id="grid-sample-deformable",
        target="tensorrt",
        versions=">=10.14",
        pattern="grid-sample",
        issue="NVIDIA/TensorRT#4813",
        what="GridSample in deformable attention gives boxes that are off by hundreds of pixels, in float32 too",
        remedy="gather-grid-sample",
    ),
    # of TensorRT-RTX nobody has said so; but it is the same vendor's compiler, and nobody has said that it is right
    KnownBad(
        id="grid-sample-deformable-rtx",
        target="tensorrt-rtx",
        versions=">=1.7",
        pattern="grid-sample",
        issue="NVIDIA/TensorRT#4813",
        what="GridSample in deformable attention is wrong in TensorRT of the same age",
        remedy=WARN,
        advice="export with this edgevtx, which samples by gathers where it interpolates between pixels",
    ),
    KnownBad(
        id="parallel-products-thor",
        target="tensorrt",
        versions="==10.13.*",
        pattern="parallel-products",
        issue="ultralytics/ultralytics#22873",
        what="several products of one tensor, such as query, key and value, come out wrong on Jetson Thor",
        remedy=WARN,
        gpus=("sm110",),
        advice="update TensorRT to 10.15 if the golden sample fails",
    ),
    KnownBad(
        id="attention-operator",
        target="tensorrt",
        versions=">=10.14",
        pattern="attention",
        issue="NVIDIA/TensorRT#4705",
        what="Attention as one operator finds no kernel on some GPUs, and the build fails",
        remedy="spell-out-attention",
    ),
    KnownBad(
        id="attention-operator-rtx",
        target="tensorrt-rtx",
        versions="<1.3",
        pattern="attention",
        issue="NVIDIA/TensorRT-RTX#26",
        what="Attention as one operator is refused",
        remedy="spell-out-attention",
    ),
    KnownBad(
        id="attention-fp32-rtx",
        target="tensorrt-rtx",
        versions=">=1.3",
        pattern="attention",
        issue="NVIDIA/TensorRT-RTX#26",
        what="Attention as one operator has kernels in half precision alone; in float32 it is refused",
        remedy="spell-out-attention",
        precisions=("fp32",),
    ),
    KnownBad(
        id="attention-fused-sm120",
        target="tensorrt",
        versions=">=10.3",
        pattern="softmax-low",
        issue="NVIDIA/TensorRT#4837",
        what="attention fused around a softmax in half precision is wrong on consumer Blackwell GPUs",
        remedy="softmax-in-fp32",
        precisions=("fp16", "bf16", "int8"),
        gpus=("sm120",),
    ),
    KnownBad(
        id="cumsum-axes",
        target="tensorrt",
        versions=">=10.8",
        pattern="cumsum",
        issue="NVIDIA/TensorRT#4551",
        what="CumSum along one axis runs along another axis where the graph has both",
        remedy="spell-out-cumsum",
    ),
    KnownBad(
        id="cumsum-rtx",
        target="tensorrt-rtx",
        versions="==1.6.*",
        pattern="cumsum",
        issue="pytorch/TensorRT#4575",
        what="CumSum along an axis of fixed size is broken",
        remedy="spell-out-cumsum",
    ),
    KnownBad(
        id="layer-norm-decomposed",
        target="tensorrt",
        versions=">=10.3",
        pattern="layer-norm-decomposed",
        issue="NVIDIA/TensorRT#3657",
        what="a layer norm in single operators, as opsets below 17 have it, overflows in half precision",
        remedy="fuse-layer-norm",
        precisions=("fp16", "int8"),
    ),
    KnownBad(
        id="layer-norm-decomposed-rtx",
        target="tensorrt-rtx",
        versions=">=1.0",
        pattern="layer-norm-decomposed",
        issue="NVIDIA/TensorRT#3657",
        what="a layer norm in single operators, as opsets below 17 have it, overflows in half precision",
        remedy="fuse-layer-norm",
        precisions=("fp16", "int8"),
    ),
    KnownBad(
        id="conv-transpose-bf16",
        target="tensorrt",
        versions=">=10.8",
        pattern="conv-transpose-low",
        issue="NVIDIA/TensorRT#4829",
        what="ConvTranspose in bfloat16 finds no kernel, and the build fails",
        remedy="conv-transpose-in-fp32",
        precisions=("bf16",),
    ),
    KnownBad(
        id="conv-transpose-bf16-rtx",
        target="tensorrt-rtx",
        versions=">=1.0",
        pattern="conv-transpose-low",
        issue="NVIDIA/TensorRT-Incubator#565",
        what="ConvTranspose in bfloat16 finds no kernel, and the build fails",
        remedy="conv-transpose-in-fp32",
        precisions=("bf16",),
    ),
    KnownBad(
        id="depthwise-conv-bf16-rtx",
        target="tensorrt-rtx",
        versions=">=1.0,<1.7",
        pattern="depthwise-conv-low",
        issue="pytorch/TensorRT#4178",
        what="depthwise convolutions in bfloat16 are not supported",
        remedy="depthwise-conv-in-fp32",
        precisions=("bf16",),
    ),
    *(
        row
        for target, versions in (("tensorrt", ">=10.3"), ("tensorrt-rtx", ">=1.0"))
        for row in (
            KnownBad(
                id=f"uint8-reader-{target}",
                target=target,
                versions=versions,
                pattern="uint8-reader",
                issue="NVIDIA/TensorRT#3985",
                what="a uint8 tensor is read by something else than a Cast",
                remedy="cast-first",
            ),
            KnownBad(
                id=f"wide-top-k-{target}",
                target=target,
                versions=versions,
                pattern="wide-top-k",
                issue="NVIDIA/TensorRT#4244",
                what="TopK keeps more than 3840",
                remedy=REFUSE,
                advice="export with --top-k of at most 3840",
            ),
            KnownBad(
                id=f"zero-point-{target}",
                target=target,
                versions=versions,
                pattern="zero-point",
                issue="NVIDIA/TensorRT#4698",
                what="quantisation has a zero point other than 0, or one that is no int8 constant",
                remedy=REFUSE,
                advice="quantise symmetrically: signed integers, zero point 0",
            ),
        )
    ),
)


def find(
    target: str, version: str | None = None, precision: str | None = None, gpu: str | None = None
) -> tuple[KnownBad, ...]:
    """The rows of a target that concern a version, a precision and a GPU ("sm89"); what is None is not asked.

    A GPU that is not known ("") is none of those that a row names.
    """
    return tuple(
        row
        for row in TABLE
        if row.target == target
        and (version is None or in_range(version, row.versions))
        and (precision is None or precision in row.precisions)
        and (gpu is None or not row.gpus or gpu in row.gpus)
    )
