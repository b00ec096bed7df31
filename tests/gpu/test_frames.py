"""Frames in this GPU's memory, and frames that it resizes, against the arithmetic of the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

import edgevtx
from edgevtx.bundle import write_bundle
from edgevtx.errors import InputError
from edgevtx.geometry import Geometry
from edgevtx.manifest import Graph
from edgevtx.rules import PyramidDecode
from edgevtx.runtimes.base import Frames
from edgevtx.runtimes.cuda import Buffer, Device, Stream, adopt
from edgevtx.runtimes.resample import INTERPOLATIONS, Resizer, resize


def noise(height: int, width: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def on_gpu(device: Device, stream: Stream, array: Any) -> Any:
    """An array in the GPU's memory, offered as torch and CuPy offer theirs; its `buffer` must be freed."""
    buffer = Buffer(device, array.nbytes)
    buffer.host[:] = array.reshape(-1).view(np.uint8)
    buffer.upload(array.nbytes, stream)
    stream.synchronize()
    facts = {"shape": array.shape, "typestr": array.dtype.str, "data": (buffer.pointer, False), "version": 3}
    return SimpleNamespace(__cuda_array_interface__={**facts, "stream": None}, buffer=buffer)


# -- the kernel ------------------------------------------------------------------------------------------------


@pytest.fixture
def stream(device: Device) -> Iterator[Stream]:
    made = Stream(device)
    yield made
    made.close()


@pytest.fixture
def put(device: Device, stream: Stream) -> Iterator[Callable[[Frames], Any]]:
    """put(frames) -> the input that this GPU makes of them."""
    resizer = Resizer(device, stream)

    def work(feed: Frames) -> Any:
        target = Buffer(device, feed.size)
        resizer.put(feed, target, stream)
        target.download(feed.size, stream)
        stream.synchronize()
        found = target.host.reshape(feed.shape).copy()
        target.free()
        return found

    yield work
    resizer.close()


def whole(size: tuple[int, int], new_size: tuple[int, int]) -> Geometry:
    """All of a frame, resized to all of the input."""
    return Geometry(size, (0, 0, size[1], size[0]), 0, new_size, (0, 0), new_size)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(
    ("size", "new_size"),
    [((1080, 1920), (640, 640)), ((480, 640), (518, 518)), ((2160, 3840), (224, 224)), ((3, 5), (7, 2))],
)
def test_every_byte_is_as_the_host_computes_it(put: Any, interpolation: str, size: Any, new_size: Any) -> None:
    frame = noise(*size)
    found = put(Frames((frame,), (whole(size, new_size),), new_size, interpolation))[0]
    np.testing.assert_array_equal(found, resize(frame, new_size, interpolation))


def test_regions_channels_and_padding(put: Any, device: Device, stream: Stream) -> None:
    frame = noise(480, 640)
    geometry = Geometry((480, 640), (101, 51, 540, 403), 0, (200, 249), (12, 3), (224, 256))
    given = on_gpu(device, stream, frame)
    wanted = np.full((2, 224, 256, 3), 114, np.uint8)
    wanted[:, 12:212, 3:252] = resize(frame[51:403, 101:540, ::-1], (200, 249), "bilinear")
    feed = Frames((adopt(given), frame), (geometry, geometry), (224, 256), "bilinear", fill=114, rgb=True)
    np.testing.assert_array_equal(put(feed), wanted)
    given.buffer.free()


def test_memory_after_frames_of_many_sizes(put: Any, device: Device, resident: Callable[[], int]) -> None:
    random = np.random.default_rng(0)
    frame = noise(1080, 1920)
    before = 0, 0
    for index in range(2000):
        height, width = (int(side) for side in random.integers(8, (1081, 1921)))
        size = (height, width) if index else (1080, 1920)
        put(Frames((frame[: size[0], : size[1]],), (whole(size, (224, 224)),), (224, 224), "bilinear"))
        if index == 200:
            before = device.memory()[0], resident()
    assert device.memory()[0] >= before[0] - (8 << 20)
    assert resident() - before[1] < 32 << 20


# -- users -----------------------------------------------------------------------------------------------------


@pytest.fixture
def parts(tiny_parts: Callable[..., Any]) -> Any:
    return tiny_parts()


@pytest.fixture
def bundle(target: str, parts: Any, empty_cache: Path, tmp_path: Path) -> Path:
    """A bundle whose network gives the scores of patches of a frame of 48x32 px."""
    row = Graph(file=f"graph.{target}.onnx", target=target, variant="", versions=">=1", precisions=("fp32",), opset=17)
    (parts.folder / row.file).write_bytes((parts.folder / "graph.openvino.onnx").read_bytes())
    rule = PyramidDecode(maps=("scores",), strides=(4,))
    graphs = (*parts.manifest.graphs, row)
    manifest = msgspec.structs.replace(parts.manifest, task="embed", decode=rule, graphs=graphs)
    return write_bundle(parts.folder, manifest, tmp_path / "tiny.vtx")


def scores(model: Any, frame: Any, **options: Any) -> Any:
    return model.infer(model.prepare(frame, **options))["scores"]


def agrees(found: Any, parts: Any, pixels: Any) -> bool:
    wanted = parts.graph.reference(pixels[None])["scores"]
    return bool(np.allclose(found, wanted, rtol=1e-4, atol=2e-3))


def test_a_frame_on_the_gpu_goes_in_as_it_is(target: str, bundle: Path, parts: Any, device: Device) -> None:
    stream, frame = Stream(device), noise(32, 48)
    given, other = on_gpu(device, stream, frame), on_gpu(device, stream, noise(33, 48))
    with edgevtx.load(bundle, runtime=target, precision="fp32", device="GPU", allow_unverified=True) as model:
        for _ in range(4):
            assert agrees(scores(model, given), parts, frame)
            assert agrees(scores(model, noise(32, 48, 1)), parts, noise(32, 48, 1))
        assert model.prepare(given).geometries[0].frame_size == (32, 48)
        with pytest.raises(InputError, match="resize='gpu'"):
            model(other)
    for item in (given, other):
        item.buffer.free()
    stream.close()


def test_the_gpu_resizes_for_the_engine(target: str, bundle: Path, parts: Any, device: Device) -> None:
    options: Any = {"runtime": target, "precision": "fp32", "device": "GPU", "allow_unverified": True}
    stream = Stream(device)
    with edgevtx.load(bundle, resize="gpu", **options) as model, model.clone() as other:
        for seed in range(12):  # past the warm-up of a graph
            frame = noise(40 + seed, 90, seed)
            given = on_gpu(device, stream, frame)
            wanted = resize(frame, (32, 48), "bilinear")
            assert agrees(scores(model, frame), parts, wanted)
            assert agrees(scores(other, given), parts, wanted)
            assert agrees(scores(model, given, color="rgb"), parts, wanted[..., ::-1])
            given.buffer.free()
    stream.close()


def test_tensors_of_torch_are_taken(target: str, bundle: Path, parts: Any) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    options: Any = {"runtime": target, "precision": "fp32", "device": "GPU", "allow_unverified": True}
    frame = noise(64, 96)
    tensor = torch.from_numpy(frame).cuda()
    with edgevtx.load(bundle, resize="gpu", **options) as model:
        assert agrees(scores(model, tensor), parts, resize(frame, (32, 48), "bilinear"))
        small = tensor[:32, :48].contiguous()
        assert agrees(scores(model, small), parts, frame[:32, :48])
        with pytest.raises(InputError, match="C-contiguous"):
            model(tensor[:, ::2])
    assert (tensor.cpu().numpy() == frame).all()
