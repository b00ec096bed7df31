"""What resizes frames on a GPU: its arithmetic against Pillow, its kernel's text over a fake memory (`fake_ptx`).

What a GPU makes of the text is shown by tests/gpu.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from edgevtx.errors import DeviceError, InputError
from edgevtx.gpu_frames import place
from edgevtx.preprocess import pad_batch, prepare
from edgevtx.rules import Bilateral, Clip, Exact, Letterbox, LongestEdge, Preprocess, ShortestEdge, Windows
from edgevtx.runtimes.base import Frames
from edgevtx.runtimes.cuda import Buffer, Device, Stream
from edgevtx.runtimes.resample import INTERPOLATIONS, KERNEL, Resizer, make_taps, resample, resize
from tests.runtimes import fake_gpu
from tests.runtimes.fake_gpu import Machine, pointer_of


def noise(height: int, width: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def of_pillow(image: Any, height: int, width: int, interpolation: str) -> Any:
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling[interpolation.upper()]))


# -- the arithmetic --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(
    ("length", "new_length"), [(640, 224), (1080, 518), (37, 36), (36, 37), (17, 200), (5, 1), (1, 7), (3, 2), (64, 64)]
)
def test_a_pass_gives_pillows_bytes(interpolation: str, length: int, new_length: int) -> None:
    image, taps = noise(6, length), make_taps(length, new_length, interpolation)
    np.testing.assert_array_equal(resample(image, taps), of_pillow(image, 6, new_length, interpolation))
    assert taps.first.min() >= 0 and (taps.first + taps.weights.shape[1]).max() <= length


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("size", [(45, 80), (80, 45), (224, 224)])
def test_both_passes_are_pillows_up_to_their_order(interpolation: str, size: tuple[int, int]) -> None:
    image, (height, width) = noise(135, 240), size
    found = resize(image, size, interpolation)
    across = of_pillow(image, 135, width, interpolation)
    np.testing.assert_array_equal(found, of_pillow(across, height, width, interpolation))
    # in the order that this Pillow chooses; weights below zero can carry a level of rounding further
    apart = np.abs(found.astype(int) - of_pillow(image, height, width, interpolation))
    assert apart.max() <= (2 if interpolation in ("bicubic", "lanczos") else 1)


# -- the kernel ------------------------------------------------------------------------------------------------


@pytest.fixture
def put(machine: Machine) -> Any:
    """put(frames) -> the input that the fake GPU makes of them."""
    device = Device(0, "tensorrt")
    with device.current():
        stream = Stream(device)
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
        stream.close()
    device.release()
    assert machine.left() == {}


@pytest.fixture
def manifest(tiny_parts: Callable[..., Any]) -> Callable[[Preprocess], Any]:
    """manifest(preprocess) -> one of a model that takes any size."""
    made = tiny_parts(dynamic=True).manifest
    return lambda preprocess: msgspec.structs.replace(made, preprocess=preprocess)


def rule(size: Any, **more: Any) -> Preprocess:
    facts = {"interpolation": "bilinear", "scale": 1.0, "mean": (0, 0, 0), "std": (1, 1, 1), **more}
    return Preprocess(size=size, **facts)


CASES: dict[str, tuple[Preprocess, dict[str, Any]]] = {
    "exact": (rule(Exact(height=9, width=11)), {}),
    "larger": (rule(Exact(height=40, width=50), interpolation="bicubic"), {}),
    "shortest edge": (rule(ShortestEdge(shortest=10, longest=15), interpolation="hamming"), {}),
    "longest edge, padded": (rule(LongestEdge(longest=16)), {}),
    "letterbox": (rule(Letterbox(height=16, width=16, fill=114)), {}),
    "crop": (rule(ShortestEdge(shortest=14), crop=(10, 10)), {}),
    "crop that pads": (rule(ShortestEdge(shortest=8), crop=(12, 10)), {}),
    "region": (rule(Exact(height=7, width=6)), {"roi": (3, 2, 17, 15)}),
    "rgb": (rule(Exact(height=7, width=6)), {"color": "rgb"}),
    "region in rgb, letterboxed": (rule(Letterbox(height=8, width=10)), {"roi": (1, 0, 19, 16), "color": "rgb"}),
}


@pytest.mark.parametrize("on_gpu", [False, True], ids=["of the host", "of the GPU"])
@pytest.mark.parametrize("case", CASES)
def test_the_gpu_makes_the_host_s_input(
    machine: Machine, put: Any, manifest: Callable[[Preprocess], Any], case: str, on_gpu: bool
) -> None:
    preprocess, options = CASES[case]
    frame = noise(18, 24)
    wanted, geometry = prepare(frame, preprocess, **options)
    given = pointer_of(machine, frame, offset=64) if on_gpu else frame
    inputs, geometries = place([given], manifest(preprocess), "gpu", **options)
    assert geometries == (geometry,)
    found = put(inputs["pixels"])[0]
    assert np.abs(found.astype(int) - wanted).max() <= 1
    assert (found != wanted).mean() < 0.1  # where Pillow's order of the passes is the other one
    outside = np.ones(wanted.shape[:2], bool)
    x0, y0, x1, y1 = geometry.valid_box
    outside[y0:y1, x0:x1] = False
    np.testing.assert_array_equal(found[outside], wanted[outside])


@pytest.mark.parametrize("shape", [(18, 24), (18, 24, 1)])
def test_grey_is_repeated(machine: Machine, put: Any, manifest: Callable[[Preprocess], Any], shape: Any) -> None:
    preprocess, frame = rule(Exact(height=9, width=24)), noise(18, 24)[..., 0].reshape(shape)
    wanted, _ = prepare(frame, preprocess)
    for given in (frame, pointer_of(machine, frame)):
        inputs, _ = place([given], manifest(preprocess), "gpu")
        np.testing.assert_array_equal(put(inputs["pixels"])[0], wanted)


def test_a_batch_of_unequal_frames_is_padded(machine: Machine, put: Any, manifest: Callable[[Preprocess], Any]) -> None:
    preprocess = rule(ShortestEdge(shortest=8))
    frames = [noise(16, 24), noise(32, 16, 1)]
    wanted, sizes = pad_batch([prepare(frame, preprocess)[0] for frame in frames])
    inputs, _ = place([pointer_of(machine, frames[0]), frames[1]], manifest(preprocess), "gpu")
    assert np.abs(put(inputs["pixels"]).astype(int) - wanted).max() <= 1
    assert sizes.tolist() == [[8, 12], [16, 8]]


def test_memory_is_allocated_once_for_frames_of_one_size(
    machine: Machine, put: Any, manifest: Callable[[Preprocess], Any]
) -> None:
    made = manifest(rule(Exact(height=9, width=11)))
    for seed in range(3):
        inputs, _ = place([noise(18, 24, seed)], made, "gpu")
        machine.calls.clear()
        put(inputs["pixels"])
    assert machine.count("cuMemAlloc") == 1  # the test's own
    assert machine.count("cuMemcpyHtoDAsync") == 1 and machine.count("cuLaunchKernel") == 2


@pytest.mark.parametrize("integrated", [False, True])
def test_what_lies_between_the_passes_stays_on_the_gpu(monkeypatch: pytest.MonkeyPatch, integrated: bool) -> None:
    machine = fake_gpu.install(monkeypatch, integrated=integrated)
    device = Device(0, "tensorrt")
    with device.current():
        stream = Stream(device)
        resizer = Resizer(device, stream)
        left = machine.left()
        assert left["locked"] == 1  # the frames' alone
        assert left["memory"] == (1 if integrated else 2)
        resizer.close()
        stream.close()
    device.release()
    assert machine.left() == {}


def test_a_gpu_that_resizes_wrongly_is_not_used(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgevtx.runtimes.resample.KERNEL", KERNEL.replace("max.s32", "min.s32"))
    device = Device(0, "tensorrt")
    with device.current():
        stream = Stream(device)
        with pytest.raises(DeviceError, match=r"Fake Orin \(sm87\) does not resize frames as the host does"):
            Resizer(device, stream)
        stream.close()
    device.release()
    assert machine.left() == {} and machine.retained == 0


# -- what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"interpolation": "nearest"}, "resizes with 'nearest', which is not done on the GPU"),
        ({"resize": "opencv-plain"}, "resizes without antialiasing"),
        ({"windows": Windows(size=(8, 8), stride=(4, 4))}, "looks at windows"),
        ({"clip": Clip(frames=4, fps=8, stride=1)}, "looks at clips"),
        ({"denoise": Bilateral()}, "denoises its frames"),
    ],
)
def test_what_the_gpu_does_not_do_is_refused(
    manifest: Callable[[Preprocess], Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        place([noise(18, 24)], manifest(rule(Exact(height=9, width=11), **changes)), "gpu")


@pytest.mark.parametrize(
    ("frame", "options", "message"),
    [
        (noise(18, 24), {"rotation": 90}, "is not rotated"),
        (noise(18, 24), {"color": "gbr"}, 'color must be "bgr" or "rgb"'),
        (noise(18, 24), {"roi": (0, 0, 30, 18)}, "roi must be"),
        (noise(18, 24).astype(np.float32), {}, "scale it to 0..255"),
        (noise(18, 24).transpose(2, 0, 1), {}, "its channels come first"),
        ("photo.jpg", {}, "but got str"),
    ],
)
@pytest.mark.parametrize("on_gpu", [False, True], ids=["of the host", "of the GPU"])
def test_a_frame_that_is_none_is_refused(
    machine: Machine,
    manifest: Callable[[Preprocess], Any],
    frame: Any,
    options: dict[str, Any],
    message: str,
    on_gpu: bool,
) -> None:
    if on_gpu and isinstance(frame, np.ndarray):
        frame = pointer_of(machine, np.ascontiguousarray(frame))
    with pytest.raises(InputError, match=message):
        place([frame], manifest(rule(Exact(height=9, width=11))), "gpu", **options)
