"""A model of clips in the pipeline: frames at the source's pace, clips at the model's, a record for every frame."""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from edgevtx.clip import ClipPredictor
from edgevtx.errors import InputError
from edgevtx.manifest import Manifest, Provenance, TensorInfo
from edgevtx.preprocess import prepare
from edgevtx.rules import ClassifyDecode, Clip, Exact, Lark, Preprocess
from edgevtx.stream.pipeline import run
from edgevtx.stream.sources import Frame, Source, open_source

SIZE = (24, 32)


class Brightness:
    """An engine whose class ids are the mean brightness of each frame of the clip; it takes `seconds`."""

    on_gpu, most_rows = False, None

    def __init__(self, seconds=0.0):
        self.seconds, self.seen = seconds, []

    def new_runtime(self):
        return self

    def run(self, inputs):
        time.sleep(self.seconds)
        (clip,) = inputs["pixels"]
        self.seen.append(clip.copy())
        ids = np.rint(clip.mean((1, 2, 3))).astype(np.int64)
        return {"class_ids": ids[None], "scores": np.linspace(0.9, 0.1, len(ids), dtype=np.float32)[None]}

    def close(self):
        pass


def clip_model(frames=4, fps=25.0, stride=2, engine=None):
    shape = (1, frames, *SIZE, 3)
    manifest = Manifest(
        name="brightness",
        family="vivit",
        task="classify",
        inputs=(TensorInfo(name="pixels", shape=shape, dtype="uint8"),),
        outputs=(),
        preprocess=Preprocess(
            size=Exact(height=SIZE[0], width=SIZE[1]),
            interpolation="bilinear",
            scale=1.0,
            mean=(0, 0, 0),
            std=(1, 1, 1),
            clip=Clip(frames=frames, fps=fps, stride=stride),
        ),
        decode=ClassifyDecode(top_k=frames),
        labels=(),
        graphs=(),
        verdicts=(),
        recommended={},
        provenance=Provenance(),
        tools={},
    )
    return ClipPredictor(manifest, SimpleNamespace(name="brightness", device="CPU"), engine or Brightness())


def records_of(source, model, **options):
    records = []
    summary = run(source, model, on_record=records.append, **options)
    return records, summary


@pytest.mark.parametrize("fps", [25.0, 12.5, 10.0])
def test_every_frame_of_a_video_has_the_last_clips_answer(fps, make_video):
    path = make_video(frames=30)  # 25 a second
    with open_source(path) as source:
        records, summary = records_of(source, clip_model(fps=fps))
    assert [record.frame.index for record in records] == list(range(30))
    assert summary.frames == 30 and summary.dropped == 0

    pushed, expected = clip_model(fps=fps), []
    with open_source(path) as source:
        for frame in source:
            found = pushed.push(frame.image, frame.index / 25)
            expected.append(expected[-1] if found is None and expected else [] if found is None else found.class_ids)
    assert [list(record.result.class_ids) for record in records] == [list(item) for item in expected]
    waits = [not len(record.result) for record in records]
    full = round(3 * 25 / fps) if 25 % fps == 0 else 8
    assert waits == [True] * full + [False] * (30 - full)


def test_a_second_source_begins_a_clip_of_its_own(make_video):
    model = clip_model(fps=4.0)
    for time_, level in ((0.0, 200), (0.25, 210), (0.5, 220)):  # another source's, a quarter of a second apart
        assert model.push(np.full((*SIZE, 3), level, np.uint8), time_) is None
    with open_source(make_video(frames=20)) as source:  # from 0 to 0.76 s
        records_of(source, model)
    assert len(model.engine.seen) == 1
    assert model.engine.seen[0].mean((1, 2, 3)).max() < 195


def test_only_a_due_clip_costs_the_engine(make_video):
    model = clip_model(stride=4)
    with open_source(make_video(frames=12)) as source:
        records, _ = records_of(source, model)
    assert len(model.engine.seen) == 3  # after frames 3, 7 and 11
    assert [record.stages["engine"] > 0.001 for record in records].count(True) <= 12
    assert set(records[0].stages) == {"read", "preprocess", "engine", "decode", "write"}


def test_denoising_is_a_stage_of_clips_too(make_video):
    model = clip_model(stride=4)
    preprocess = msgspec.structs.replace(model.manifest.preprocess, denoise=Lark(window=3, analysis=3))
    model.manifest = msgspec.structs.replace(model.manifest, preprocess=preprocess)
    with open_source(make_video(frames=6)) as source:
        records, summary = records_of(source, model)
    assert all(record.stages["denoise"] > 0 for record in records)  # waiting ones as well
    assert list(summary.stage_ms)[1:4] == ["preprocess", "denoise", "engine"]


def test_options_reach_the_frames_and_the_answers(make_video):
    with open_source(make_video(frames=8)) as source:
        records, _ = records_of(source, clip_model(), top_k=1, roi=(0, 0, 64, 48), rotation=90)
    assert [len(record.result) for record in records] == [0, 0, 0, 1, 1, 1, 1, 1]
    with open_source(make_video(frames=8)) as source, pytest.raises(InputError, match="top_k must be at most 4"):
        run(source, clip_model(), top_k=9)


def test_single_images_are_refused(tmp_path):
    from edgevtx.images import write_image

    write_image(tmp_path / "photo.png", np.zeros((48, 64, 3), np.uint8))
    for path in (tmp_path / "photo.png", tmp_path):
        with (
            open_source(path) as source,
            pytest.raises(InputError, match=r"holds single images, and brightness takes clips of 4 frames; .* a video"),
        ):
            run(source, clip_model())


def test_a_video_that_ends_before_its_first_clip_is_full_is_an_error(make_video):
    model = clip_model(frames=8, fps=5.0)
    words = (
        "gave 20 frames, too few for a clip or too far apart: brightness takes 8 frames at 5 a second, and two of the "
        "video must lie within these 1.4 s; give a longer video"
    )
    with open_source(make_video(frames=20)) as source, pytest.raises(InputError, match=words):
        run(source, model)
    path = make_video(frames=36)
    with open_source(path) as source:
        assert run(source, model).frames == 36
    with open_source(path) as source:
        assert run(source, model, limit=20).frames == 20  # as was asked


def test_a_video_slower_than_the_model_fills_clips_with_its_frames_repeated(make_video, caplog):
    model = clip_model(frames=8, fps=5.0, stride=2)  # the longest gap is 0.4 s, a clip spans 1.4 s
    with open_source(make_video(frames=12, fps=2.0)) as source:
        records, summary = records_of(source, model)
    assert summary.frames == 12
    # the stream begins with the second frame, and its first clip is full 1.4 s later, with the fifth
    assert [not len(record.result) for record in records] == [True] * 4 + [False] * 8
    rows = model.engine.seen[0]
    same = [bool((one == other).all()) for one, other in itertools.pairwise(rows)]
    # moments 0, 0.2, ... 1.4 s after the second frame; the middles between frames are 0.25, 0.75 and 1.25 s
    assert same == [True, False, True, False, True, True, False]
    assert caplog.text.count("a new clip begins") == caplog.text.count("each is taken several times") == 1


def test_a_video_whose_frames_lie_further_apart_than_a_clip_is_long_is_an_error(make_video):
    words = "too far apart: brightness takes 8 frames at 10 a second, and two of the video must lie within these 0.7 s"
    with open_source(make_video(frames=9, fps=1.0)) as source, pytest.raises(InputError, match=words):
        run(source, clip_model(frames=8, fps=10.0))


class Camera(Source):
    """A live source of `count` frames, one every `period` seconds; a frame's brightness is its number.

    `held` is how many of its images are in memory, `most_held` how many were at once.
    """

    live = True

    def __init__(self, count, period=0.02):
        super().__init__("camera")
        self.frames, self.period = count, period
        self.held = self.most_held = 0

    def __iter__(self):
        begin = time.monotonic()
        for index in range(self.frames):
            while (now := time.monotonic()) < begin + index * self.period:
                time.sleep(0.002)
            yield Frame(self._image(index), index, time.time(), self.name, monotonic=now)

    def _image(self, index):
        image = np.full((48, 64, 3), index % 256, np.uint8)
        self.held += 1
        self.most_held = max(self.most_held, self.held)
        weakref.finalize(image, self._let_go)
        return image

    def _let_go(self):
        self.held -= 1


def test_a_live_clip_has_no_gap_while_the_engine_runs(caplog):
    engine = Brightness(seconds=0.9)  # far longer than the 0.25 s without a frame that end a clip
    model = clip_model(frames=8, fps=8, stride=2, engine=engine)
    records, summary = records_of(Camera(250), model)
    assert "a new clip begins" not in caplog.text
    clips = [np.rint(clip.mean((1, 2, 3))).astype(int) for clip in engine.seen]
    assert len(clips) >= 3
    for clip in clips:
        assert (np.diff(clip) > 0).all()
    # the newest clip is answered: the first one in a queue would be a stride, 12 frames of the camera, after the last
    assert clips[1][-1] - clips[0][-1] > 20, clips
    assert summary.frames < 250
    assert summary.dropped == 250 - summary.frames - (249 - records[-1].frame.index)
    indices = [record.frame.index for record in records]
    assert indices == sorted(indices)


class SlowSink:
    """Takes `seconds` for a record, and keeps its frame's number and its answer."""

    notes = ()

    def __init__(self, seconds=0.0):
        self.seconds, self.indices, self.answers = seconds, [], []

    def write(self, record):
        time.sleep(self.seconds)
        self.indices.append(record.frame.index)
        self.answers.append(list(record.result.class_ids))

    def close(self):
        pass


@pytest.mark.parametrize(("engine", "sink"), [(0.5, 0.0), (0.0, 0.2), (0.3, 0.1)])
@pytest.mark.parametrize("stride", [1, 3])
def test_a_camera_that_is_faster_than_the_model_or_a_sink_fills_no_memory(engine, sink, stride):
    """At a stride of 1 every frame makes a clip due; 300 come while a few are answered."""
    camera, sink = Camera(300, period=0.005), SlowSink(sink)
    model = clip_model(frames=24, fps=200.0, stride=stride, engine=Brightness(engine))
    summary = run(camera, model, [sink])
    assert camera.most_held <= 14  # 4 wait for the engine, one is in it, 2 wait for the sinks, and those at hand
    assert sink.indices == sorted(set(sink.indices))
    assert sink.indices[-1] == 299  # the oldest are dropped, never the newest
    assert summary.frames == len(sink.indices) < 150
    assert summary.dropped == 300 - summary.frames
    assert any(sink.answers), "no clip was answered"


def test_a_live_run_can_be_stopped_and_limited():
    stop = threading.Event()
    threading.Timer(0.4, stop.set).start()
    records, summary = records_of(Camera(1000), clip_model(), stop=stop)
    assert summary.stopped and 5 < len(records) < 100
    records, summary = records_of(Camera(1000), clip_model(), limit=10)
    assert summary.frames == len(records) == 10


def test_a_real_video(data_file):
    path, engine = data_file("vtest.avi"), Brightness()
    with open_source(path) as source:
        assert source.fps == 10.0
        records, summary = records_of(source, clip_model(frames=16, fps=5.0, stride=8, engine=engine), limit=120)
    assert summary.frames == 120
    assert [len(record.result) for record in records].count(0) == 30  # 16 frames of ours lie 3 s apart
    assert len(engine.seen) == 6
    rule = clip_model().manifest.preprocess
    with open_source(path) as source:
        taken = [prepare(frame.image, rule)[0] for frame in itertools.islice(source, 31)]
    np.testing.assert_array_equal(engine.seen[0], taken[0:31:2])
