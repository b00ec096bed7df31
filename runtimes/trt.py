"""TensorRT and TensorRT-RTX: one backend for both packages, which have the same interface.

An engine is a plan with its record, see `edgevtx.runtimes.plan`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgevtx.errors import RuntimeUnavailableError
from edgevtx.runtimes import host
from edgevtx.runtimes.base import BuildReport, Engine, EngineOptions, Probe
from edgevtx.runtimes.trt_build import build_plan, check_gpu


@dataclass(frozen=True)
class TensorRt:
    """The backend over one package; see `edgevtx.runtimes.base.Backend`."""

    target: str
    package: str
    PRECISIONS: tuple[str, ...] = ("fp32", "fp16", "bf16")

    def probe(self) -> Probe:
        """Never available yet; the version says that its compiler is installed."""
        try:
            trt = host.import_package(self.package, target=self.target, extra=self.target)
        except RuntimeUnavailableError as error:
            return host.unavailable(self.target, self.target, error)
        return Probe(self.target, False, version=trt.__version__, reason="it can compile here, but not run")

    def fingerprint(self, options: EngineOptions) -> dict[str, str]:
        """Version, architecture and precision. How much memory the builder had is no part of it."""
        trt = host.import_package(self.package, target=self.target, extra=self.target)
        if options.precision not in self.PRECISIONS:
            raise RuntimeUnavailableError(
                f"{self.target} is offered in {', '.join(self.PRECISIONS)}, but {options.precision} was asked for"
            )
        check_gpu(trt, self.target, options)
        return {self.target: trt.__version__, "gpu": options.gpu, "precision": options.precision}

    def build(self, graph: Path, folder: Path, options: EngineOptions) -> BuildReport:
        """Compile `graph` into a plan and its record under `folder`."""
        return build_plan(self.package, graph, folder, options)

    def open(self, graph: Path, folder: Path, options: EngineOptions) -> Engine:
        """Running is not there yet."""
        raise RuntimeUnavailableError(f"{self.target} compiles here, but cannot run; use another runtime")


TENSORRT = TensorRt("tensorrt", "tensorrt")
TENSORRT_RTX = TensorRt("tensorrt-rtx", "tensorrt_rtx")
