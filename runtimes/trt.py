"""TensorRT and TensorRT-RTX: one backend for both packages, which have the same interface.

An engine is a plan with its record, see `edgevtx.runtimes.plan`; it is compiled by `trt_build`, opened by `trt_loaded`
and run by `trt_run`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgevtx.errors import InputError, RuntimeUnavailableError
from edgevtx.runtimes import context, cuda, host, sample, trt_inspect
from edgevtx.runtimes.base import BuildReport, Engine, EngineOptions, Probe, Runtime, TensorSpec
from edgevtx.runtimes.plan import PLAN, PlanRecord, Profile, check_plan, read_plan
from edgevtx.runtimes.trt_build import architectures, build_plan, check_gpu
from edgevtx.runtimes.trt_loaded import Loaded
from edgevtx.runtimes.trt_profiles import most_rows
from edgevtx.runtimes.trt_run import Execution

# "CPU" is the device that `load` asks for unless it is told another
_DEVICES = re.compile(r"(?:CPU|AUTO|GPU(?:\.(\d+))?)\Z")


@dataclass(frozen=True)
class TensorRt:
    """The backend over one package; see `edgevtx.runtimes.base.Backend`.

    Devices are "GPU", which is the first one, "GPU.0", "GPU.1", ... With `graphs` False no run is made a CUDA graph.
    """

    target: str
    package: str
    graphs: bool = True
    PRECISIONS: tuple[str, ...] = ("fp32", "fp16", "bf16", "int8")

    def probe(self) -> Probe:
        """Whether it can run here; without a GPU the version still says that its compiler is installed."""
        version = ""
        try:
            version = str(self._package().__version__)
            gpus = self._served(cuda.find_gpus(self.target))
        except RuntimeUnavailableError as error:
            found = host.unavailable(self.target, self.target, error)
            if not version:
                return found
            advice = str(error).partition("; ")[2].removeprefix("install it with: ")  # the package is there
            return replace(found, version=version, install=advice)
        return Probe(self.target, True, version=version, devices=tuple(map(str, gpus)))

    def _served(self, gpus: tuple[cuda.Gpu, ...]) -> tuple[cuda.Gpu, ...]:
        """Those that the package compiles for; `RuntimeUnavailableError` where there is none."""
        known = architectures(self._package())
        served = tuple(gpu for gpu in gpus if not known or gpu.sm in known)
        if not served:
            raise RuntimeUnavailableError(
                f"{self.target} was asked for, but it compiles for {', '.join(known)}, and here is "
                f"{', '.join(map(str, gpus))}; use TensorRT, or ONNX Runtime with its CUDA provider"
            )
        return served

    def fingerprint(self, options: EngineOptions) -> dict[str, str]:
        """Version, architecture, precision and, where it is for the GPU here, its model and driver.

        What was asked of the plan is no part of it: of plans that differ in that alone one is kept.
        """
        trt = self._package()
        options = self._settle(trt, options)
        facts = {self.target: str(trt.__version__), "gpu": options.gpu, "precision": options.precision}
        if options.gpu not in architectures(trt):  # compiled and measured on the device itself
            facts |= self.place(options)
        return facts

    def place(self, options: EngineOptions) -> dict[str, str]:
        """The GPU's model and driver; nothing where none is here that serves."""
        if not self.probe().available:
            return {}
        return {"device name": self._gpu(options).model, "driver": host.nvidia_driver()}

    def build(self, graph: Path, folder: Path, options: EngineOptions) -> BuildReport:
        """Compile `graph` into a plan and its record under `folder`; see `trt_build.build_plan`.

        For the architecture of `options.gpu`, without one for the GPU here.
        """
        trt = self._package()
        options, device = self._settle(trt, options), ""
        if options.gpu not in architectures(trt):
            first, chosen = cuda.find_gpus(self.target)[0], self._gpu(options)
            if chosen.model != first.model:
                raise RuntimeUnavailableError(
                    f"{self.target} compiles on the first GPU, {first}, and {options.device} is {chosen}; set "
                    f"CUDA_VISIBLE_DEVICES={chosen.ordinal} and ask for device GPU"
                )
            device = chosen.model
        return build_plan(self.package, graph, folder, options, device)

    def open(self, graph: Path, folder: Path, options: EngineOptions) -> Engine:
        """Open a plan on its GPU, and run it once, so that what is compiled or loaded late is done here.

        Raises `CompileError` for a plan of another version or GPU, and `DeviceError` where the GPU fails.
        """
        trt = self._package()
        record = read_plan(folder / PLAN)
        gpu = self._gpu(options)
        check_plan(record, self.target, str(trt.__version__), gpu.sm)
        device = cuda.Device(gpu.ordinal, self.target)
        loaded = Loaded(trt, self.target, device, folder / PLAN, record, self.graphs)
        spare: list[Execution] = []

        def release() -> None:
            while spare:
                spare.pop().close()
            loaded.leave(loaded.owner)

        def new_runtime() -> Runtime:
            try:  # several threads may ask at once
                execution = spare.pop()
            except IndexError:
                execution = Execution(loaded)
            return context.Context(
                self.target, record.inputs, record.outputs, execution.run, adopt=cuda.adopt, release=execution.close
            )

        try:
            spare.append(Execution(loaded))
            # TensorRT-RTX compiles each profile's kernels when it is first used
            profiles = record.profiles if hasattr(trt, "IRuntimeCache") else record.profiles[:1]
            for profile in reversed(profiles or ({},)):  # the first one last: it stays active
                spare[0].run(dict(sample.inputs(graph, _usual(record, profile))))
            with device.current():
                loaded.keep_cache()
                executed = loaded.inspect()
        except BaseException:
            release()
            raise
        share: dict[str, float] = {}
        if executed is not None:
            share = executed.share
            trt_inspect.warn(executed, record.precision, target=self.target, device=str(gpu))
        return context.engine(
            self.target,
            str(trt.__version__),
            str(gpu),
            new_runtime,
            release,
            on_gpu=True,
            executed_share=share,
            most_rows=most_rows(record),
        )

    def _package(self) -> Any:
        trt = host.import_package(self.package, target=self.target, extra=self.target)
        if not hasattr(trt, "__version__"):  # a mere folder of that name on the path
            raise RuntimeUnavailableError(
                f"runtime {self.target} was asked for, but {self.package} is a folder without the package's code; "
                f"rename it if it is yours, and install the package with: {host.install_command(self.target)}"
            )
        return trt

    def _gpu(self, options: EngineOptions) -> cuda.Gpu:
        gpus, ordinal = cuda.find_gpus(self.target), _ordinal(options)
        if ordinal >= len(gpus):
            raise RuntimeUnavailableError(
                f"{self.target} was asked for device {options.device}, but this machine has {len(gpus)} GPUs "
                f"({', '.join(map(str, gpus))}); choose GPU.0 to GPU.{len(gpus) - 1}"
            )
        return gpus[ordinal]

    def _settle(self, trt: Any, options: EngineOptions) -> EngineOptions:
        """The options with their precision checked and the architecture filled in."""
        if options.precision not in self.PRECISIONS:
            raise RuntimeUnavailableError(
                f"{self.target} is offered in {', '.join(self.PRECISIONS)}, but {options.precision} was asked for; "
                "choose another precision"
            )
        # a compiler of other GPUs' engines without a GPU must be told one, and `check_gpu` says which there are
        if not architectures(trt) or (not options.gpu and self.probe().available):
            gpu = self._gpu(options)
            if options.gpu not in ("", gpu.sm):
                raise RuntimeUnavailableError(
                    f"{self.target} was asked to compile for {options.gpu}, but compiles on its own device alone, and "
                    f"that is {gpu}; compile on a machine that has an {options.gpu}"
                )
            options = replace(options, gpu=gpu.sm)
        check_gpu(trt, self.target, options)
        return options


TENSORRT = TensorRt("tensorrt", "tensorrt")
TENSORRT_RTX = TensorRt("tensorrt-rtx", "tensorrt_rtx")


def _ordinal(options: EngineOptions) -> int:
    match = _DEVICES.match(options.device)
    if match is None:
        raise InputError(f"device must be GPU or GPU.NUMBER for TensorRT, but got {options.device!r}")
    return int(match[1] or 0)


def _usual(record: PlanRecord, profile: Profile) -> tuple[TensorSpec, ...]:
    """The inputs in the shapes that a profile's kernels were chosen for."""
    return tuple(
        replace(spec, shape=profile[spec.name].opt) if spec.name in profile else spec for spec in record.inputs
    )
