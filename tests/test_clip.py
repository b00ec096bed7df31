"""A stream becomes the clips that a model was trained on: at its rate, of the nearest frames, without gaps."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from edgevtx.clip import ClipBuffer, ClipPredictor
from edgevtx.errors import InputError
from edgevtx.manifest import Manifest, Provenance, TensorInfo
from edgevtx.predictor import Predictor
from edgevtx.preprocess import prepare_item, sample_clip
from edgevtx.rules import ClassifyDecode, Clip, Exact, Preprocess

SIZE = (8, 12)
LABELS = tuple(f"class {index}" for index in range(256))


def fill(buffer, times):
    """Push frames that are their own numbers: {number of the frame that made a clip due: the clip's frames}."""
    clips = {}
    for number, time in enumerate(times):
        if rows := buffer.push(number, time):
            clips[number] = rows
    return clips


def nearest(times, moments):
    """The number of the frame nearest to each moment, the earlier of two, found by looking at all of them."""
    return [min(range(len(times)), key=lambda n: (round(abs(times[n] - moment), 9), n)) for moment in moments]


# -- the buffer --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("camera", "model"), [(30, 25 / 8), (30, 12.5), (25, 12.5), (12.5, 12.5), (10, 12.5), (60, 7)])
def test_a_camera_of_another_rate_gives_the_frames_nearest_to_the_models_moments(camera, model):
    times = [100 + n / camera for n in range(int(camera * 9))]
    clips = fill(ClipBuffer(Clip(frames=8, fps=model, stride=3)), times)
    firsts = range(0, 10_000, 3)
    for first, (due, rows) in zip(firsts, clips.items(), strict=False):
        moments = [100 + (first + step) / model for step in range(8)]
        assert rows == nearest(times, moments)
        # an answer is due with the first frame that is not before the clip's last moment
        assert due == next(n for n, time in enumerate(times) if time >= moments[-1] - 1e-9)
    assert len(clips) == (int((times[-1] - 100) * model + 1e-9) - 7) // 3 + 1


def test_at_the_models_own_rate_every_frame_is_taken_once():
    clips = fill(ClipBuffer(Clip(frames=4, fps=10, stride=2)), [n / 10 for n in range(11)])
    assert clips == {3: [0, 1, 2, 3], 5: [2, 3, 4, 5], 7: [4, 5, 6, 7], 9: [6, 7, 8, 9]}


def test_jitter_and_lost_frames_still_give_the_nearest_ones():
    random = np.random.default_rng(3)
    whole = np.arange(400) / 30 + random.uniform(-0.012, 0.012, 400)
    times = [float(time) for time in whole[random.random(400) > 0.15]]
    clips = fill(ClipBuffer(Clip(frames=16, fps=12.5, stride=1)), times)
    assert len(clips) > 120
    for due, rows in clips.items():
        last = int((times[due] - times[0]) * 12.5 + 1e-9)
        known = times[: due + 1]  # the nearest of those that have come by then
        assert rows == nearest(known, [times[0] + (last - 15 + step) / 12.5 for step in range(16)])


def test_one_frame_that_comes_late_can_complete_several_strides_and_gives_the_newest_clip():
    buffer = ClipBuffer(Clip(frames=8, fps=10, stride=1))
    assert fill(buffer, [n / 10 for n in range(8)]) == {7: list(range(8))}
    assert buffer.push(8, 0.9) == [2, 3, 4, 5, 6, 7, 7, 8]


def test_a_gap_starts_a_new_clip():
    buffer = ClipBuffer(Clip(frames=8, fps=10, stride=1))
    assert buffer.gap == pytest.approx(0.2)
    times = [n / 10 for n in range(10)] + [5 + n / 10 for n in range(8)]
    clips = fill(buffer, times)
    assert clips == {7: list(range(8)), 8: list(range(1, 9)), 9: list(range(2, 10)), 17: list(range(10, 18))}
    assert ClipBuffer(Clip(frames=32, fps=12.5, stride=16)).gap == pytest.approx(0.64)


def test_a_slow_stream_fills_clips_with_repeated_frames(caplog):
    buffer = ClipBuffer(Clip(frames=8, fps=10, stride=5))  # longest gap 0.2 s, span 0.7 s
    clips = fill(buffer, [n / 2 for n in range(9)])
    # the model's moments begin at 0.5 s, with the second frame; 0.75, 1.25, ... are the middles between frames
    assert clips == {
        3: [1, 1, 1, 2, 2, 2, 2, 2],
        4: [2, 2, 2, 3, 3, 3, 3, 3],
        5: [3, 3, 3, 4, 4, 4, 4, 4],
        6: [4, 4, 4, 5, 5, 5, 5, 5],
        7: [5, 5, 5, 6, 6, 6, 6, 6],
        8: [6, 6, 6, 7, 7, 7, 7, 7],
    }
    assert buffer.stream == 2
    assert [record.getMessage() for record in caplog.records] == [
        "frames lie 0.50 s apart, allowed 0.20: a new clip begins",
        "a frame comes every 0.50 s, and the model was trained at one every 0.10: each is taken several times",
    ]


def test_a_camera_of_2_frames_a_second_feeds_a_model_of_25():
    times = [100 + n / 2 for n in range(40)]
    clips = fill(ClipBuffer(Clip(frames=32, fps=25, stride=16)), times)
    for first, (due, rows) in enumerate(clips.items()):
        moments = [100.5 + (16 * first + step) / 25 for step in range(32)]
        assert rows == nearest(times, moments)
        assert due == next(n for n, time in enumerate(times) if time >= moments[-1] - 1e-9)
    assert len(clips) == (19 * 25 - 31) // 16 + 1  # of the 19 s after the second frame


def test_a_slow_stream_that_jitters_has_no_gap():
    random = np.random.default_rng(5)
    times = [float(time) for time in np.cumsum(random.uniform(0.33, 0.9, 200))]
    buffer = ClipBuffer(Clip(frames=32, fps=25, stride=1))
    clips = fill(buffer, times)
    assert buffer.stream == 2 and len(clips) > 190
    for due, rows in clips.items():
        last = int((times[due] - times[1]) * 25 + 1e-9)
        assert rows == nearest(times[: due + 1], [times[1] + (last - 31 + step) / 25 for step in range(32)])
        assert len(set(rows)) >= 2


@pytest.mark.parametrize(("silent", "begins_anew"), [(1.0, False), (1.24, False), (1.3, True), (4.0, True)])
def test_a_slow_stream_may_lose_a_frame_but_not_stand_still(silent, begins_anew, caplog):
    buffer = ClipBuffer(Clip(frames=32, fps=25, stride=1))  # a clip spans 1.24 s
    times = [n / 2 for n in range(6)]
    times += [times[-1] + silent + n / 2 for n in range(6)]
    clips = fill(buffer, times)
    assert buffer.stream == (3 if begins_anew else 2)
    mixed = [rows for rows in clips.values() if rows[0] <= 5 < rows[-1]]
    assert bool(mixed) != begins_anew
    assert clips[max(clips)][-1] == 11
    assert (f"frames lie {silent:.2f} s apart" in caplog.text) == begins_anew


def test_of_a_slow_stream_three_intervals_are_waited_for():
    for silent, streams in ((14.9, 2), (15.1, 3)):
        buffer = ClipBuffer(Clip(frames=32, fps=2, stride=1))  # longest gap 4 s, span 15.5 s
        fill(buffer, [0, 5, 10, 15, 20, 20 + silent])
        assert buffer.stream == streams


@pytest.mark.parametrize(("apart", "clips"), [(1.24, True), (1.25, False), (30.0, False)])
def test_every_clip_shows_two_frames_of_the_stream_or_there_is_none(apart, clips, caplog):
    buffer = ClipBuffer(Clip(frames=32, fps=25, stride=1))
    found = fill(buffer, [n * apart for n in range(20)])
    assert bool(found) == clips
    assert all(len(set(rows)) == 2 for rows in found.values())
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2  # at the second frame, and once the pace is known
    word = "each is taken several times" if clips else "a clip spans 1.24: give a faster stream, or no clip is made"
    assert word in messages[1]


def test_a_stream_that_slows_down_begins_anew_until_its_pace_is_known():
    buffer = ClipBuffer(Clip(frames=32, fps=25, stride=1))
    fast = [n / 25 for n in range(41)]  # to 1.6 s
    clips = fill(buffer, [*fast, 2.1, 2.6, 3.1, 3.6, 4.1, 4.6])
    assert buffer.stream == 4  # after 2.1, 2.6 and 3.1 s three of the last five intervals are long
    assert {number: rows[0] for number, rows in clips.items() if number > 40} == {46: 43}
    assert fill(buffer, [4.6 + n / 25 for n in range(1, 40)]) and buffer.stream == 4  # fast again


def test_drop_outs_are_not_a_pace():
    buffer = ClipBuffer(Clip(frames=32, fps=25, stride=1))
    intervals = [0.04] * 9 + [1.0, 1.0, 0.04, 0.04, 0.04, 1.0, 0.04, 1.0]
    fill(buffer, np.cumsum([0.0, *intervals]).tolist())
    assert buffer.stream == 5


def test_another_stream_has_a_pace_of_its_own():
    buffer = ClipBuffer(Clip(frames=32, fps=25, stride=1))
    fill(buffer, [0.0, 0.5, 1.0, 1.5])
    buffer.clear()
    fill(buffer, [10.0, 10.5])
    assert buffer.stream == 4


def test_time_that_runs_back_far_starts_a_new_clip_and_late_frames_are_left_out():
    buffer = ClipBuffer(Clip(frames=4, fps=10, stride=1))
    times = [0.0, 0.1, 0.2, 0.15, 0.2, 0.3]
    assert fill(buffer, times) == {5: [0, 1, 2, 5]}
    assert buffer.stream == 1
    assert fill(buffer, [60.0]) == {} and buffer.stream == 2
    assert fill(buffer, [0.0, 0.1, 0.2, 0.3]) == {3: [0, 1, 2, 3]}  # a video that begins again
    assert buffer.stream == 3


@pytest.mark.parametrize("jump", [4e9, -4e9, 1e15, 1e18, -1e18, 1e308, -1e308, 10**18])
def test_a_clock_that_is_set_costs_one_clip_and_no_time(jump):
    buffer = ClipBuffer(Clip(frames=4, fps=1000, stride=1))
    assert fill(buffer, [n / 1000 for n in range(4)]) == {3: [0, 1, 2, 3]}
    assert fill(buffer, [jump] * 3) == {}
    assert buffer.stream == 2
    assert fill(buffer, [-jump]) == {}
    assert buffer.stream == 3
    assert fill(buffer, [n / 1000 for n in range(4, 8)]) == {3: [0, 1, 2, 3]}


@pytest.mark.parametrize("begin", [0.0, 1.7e9, -3e5])
def test_where_the_clock_began_does_not_matter(begin):
    clips = fill(ClipBuffer(Clip(frames=4, fps=10, stride=2)), [begin + n / 10 for n in range(11)])
    assert clips == {3: [0, 1, 2, 3], 5: [2, 3, 4, 5], 7: [4, 5, 6, 7], 9: [6, 7, 8, 9]}


def test_cleared_it_knows_no_frame():
    buffer = ClipBuffer(Clip(frames=2, fps=10, stride=1))
    assert fill(buffer, [0.0, 0.1]) == {1: [0, 1]}
    buffer.clear()
    assert fill(buffer, [0.11]) == {}
    assert buffer.stream == 2


@pytest.mark.parametrize("time", [float("nan"), float("inf"), "soon", None, 10**400, [1.0]])
def test_a_time_that_is_none_is_refused(time):
    with pytest.raises(InputError, match="finite number of seconds, but got"):
        ClipBuffer(Clip(frames=2, fps=10, stride=1)).push(0, time)


# -- whole clips -------------------------------------------------------------------------------------------------


def test_a_longer_clip_is_sampled_as_transformers_does_it():
    reference = pytest.importorskip("transformers.video_utils")
    for count in (32, 33, 50, 64, 100, 301):
        metadata = reference.VideoMetadata(total_num_frames=count, fps=30)
        expected = reference.default_sample_indices_fn(metadata, num_frames=32)
        assert sample_clip(count, 32) == expected.tolist()


def preprocess(**changes):
    return Preprocess(
        size=Exact(height=SIZE[0], width=SIZE[1]), interpolation="bilinear", scale=1.0, mean=(0, 0, 0), std=(1, 1, 1),
        clip=Clip(frames=4, fps=10, stride=2), **changes,
    )  # fmt: skip


def numbered(count, start=0, size=(40, 60)):
    """Frames of one grey each, their number."""
    return [np.full((*size, 3), start + index, np.uint8) for index in range(count)]


def test_the_frames_of_a_clip_are_prepared_one_by_one():
    frames = numbered(9)
    for clip in (frames, tuple(frames), np.stack(frames), [frame[..., 0] for frame in frames]):
        rows, geometry = prepare_item(clip, preprocess())
        assert rows.shape == (4, *SIZE, 3)
        assert rows[:, 0, 0, 0].tolist() == [0, 2, 4, 6]
        assert geometry.frame_size == (40, 60)
    left = prepare_item(np.stack(frames), preprocess(), roi=(0, 0, 20, 40), rotation=90)[1]
    assert (left.roi, left.rotation) == ((0, 0, 20, 40), 90)


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (numbered(1)[0], r"got one frame \(40, 60, 3\); give its neighbours too, or frame by frame to push\(frame\)"),
        (numbered(1)[0][..., 0], r"got one frame \(40, 60\)"),
        (numbered(3), r"at least 4 of them, but got 3; give a longer clip, or its frames one by one"),
        (np.stack(numbered(2)), "but got 2"),
        (iter(numbered(9)), "collect the frames in a list"),
        (None, "got NoneType"),
        ([*numbered(3), None], "a frame must be .* got NoneType"),
        (np.stack(numbered(5)).astype(np.float32), r"a frame must be .*convert it with .astype\(numpy.uint8\)"),
    ],
)
def test_what_is_no_clip_is_refused(clip, message):
    with pytest.raises(InputError, match=message):
        prepare_item(clip, preprocess())


# -- the predictor -----------------------------------------------------------------------------------------------


class Numbers:
    """An engine that names the frames it was given: class ids are their grey values, scores 0.9 and less."""

    on_gpu, most_rows = False, None

    def __init__(self):
        self.runs = 0

    def new_runtime(self):
        return self

    def run(self, inputs):
        self.runs += 1
        ids = inputs["pixels"][:, :, 0, 0, 0].astype(np.int64)
        return {"class_ids": ids, "scores": np.tile(np.linspace(0.9, 0.6, 4, dtype=np.float32), (len(ids), 1))}

    def close(self):
        pass


def manifest(batch=1, **changes):
    return Manifest(
        name="numbers",
        family="vivit",
        task="classify",
        inputs=(TensorInfo(name="pixels", shape=(batch, 4, *SIZE, 3), dtype="uint8"),),
        outputs=(),
        preprocess=preprocess(**changes),
        decode=ClassifyDecode(top_k=4),
        labels=LABELS,
        graphs=(),
        verdicts=(),
        recommended={},
        provenance=Provenance(),
        tools={},
    )


@pytest.fixture
def model():
    return ClipPredictor(manifest(), SimpleNamespace(name="numbers", device="CPU"), Numbers())


def test_a_clip_is_answered_as_a_whole(model):
    found = model(numbered(9), top_k=3, threshold=0.75)
    assert found.class_ids.tolist() == [0, 2]
    assert found.labels == ("class 0", "class 2")
    assert set(model.stages) == {"preprocess", "engine", "decode"}
    with pytest.raises(InputError, match="got one frame"):
        model(numbered(1)[0])
    with pytest.raises(InputError, match="but got 3"):
        model(numbered(3))
    with pytest.raises(InputError, match="but got 3; give a longer clip"):
        model.batch([numbered(4), numbered(3)])


def test_pushed_frames_are_answered_once_a_clip_is_full_and_then_every_stride(model):
    answers = [model.push(frame, n / 10) for n, frame in enumerate(numbered(9))]
    assert [None if found is None else found.class_ids.tolist() for found in answers] == [
        None, None, None, [0, 1, 2, 3], None, [2, 3, 4, 5], None, [4, 5, 6, 7], None
    ]  # fmt: skip
    assert model.engine.runs == 3
    model.clear()
    model.stride = 1
    answers = [model.push(frame, n / 10, top_k=1) for n, frame in enumerate(numbered(6))]
    assert [found.class_ids.tolist() for found in answers[3:]] == [[0], [1], [2]]
    assert model.clone().stride == 1
    assert model.clone().clip.stride == 2
    for stride in (0, 1.5, True):
        with pytest.raises(InputError, match="stride must be a whole number"):
            model.stride = stride


def test_every_frame_is_resized_once_and_gives_what_the_whole_clip_gives(model, monkeypatch):
    from edgevtx import clip

    random = np.random.default_rng(0)
    frames = list(random.integers(0, 256, (10, 40, 60, 3), dtype=np.uint8))
    calls, seen = [], []
    prepare, run = clip.prepare, model.engine.run
    monkeypatch.setattr(clip, "prepare", lambda *args, **options: calls.append(1) or prepare(*args, **options))
    monkeypatch.setattr(model.engine, "run", lambda inputs: seen.append(inputs["pixels"].copy()) or run(inputs))
    for number, frame in enumerate(frames):
        model.push(frame, number / 20)  # twice the model's rate
    assert len(calls) == len(frames)
    (pushed,) = seen
    np.testing.assert_array_equal(pushed[0], prepare_item(frames[0:8:2], preprocess())[0])
    assert pushed.shape == (1, 4, *SIZE, 3)


def test_frames_without_a_time_take_the_clock(model, monkeypatch):
    from edgevtx import clip

    now = iter(np.arange(50.0, 60.0, 0.1))
    monkeypatch.setattr(clip.clock, "monotonic", lambda: float(next(now)))
    answers = [model.push(frame) for frame in numbered(4)]
    assert answers[3].class_ids.tolist() == [0, 1, 2, 3]
    with pytest.raises(InputError, match="some frames of this stream have a time and others none"):
        model.push(numbered(1)[0], 3.0)
    model.clear()
    assert model.push(numbered(1)[0], 3.0) is None


def test_a_batch_holds_clips():
    model = ClipPredictor(manifest(batch=2), SimpleNamespace(name="numbers", device="CPU"), Numbers())
    found = model.batch([numbered(4), np.stack(numbered(8, start=10)), numbered(5, start=100)])
    assert [item.class_ids.tolist() for item in found] == [[0, 1, 2, 3], [10, 12, 14, 16], [100, 101, 102, 103]]
    assert model.engine.runs == 2
    assert model.push(numbered(1)[0], 0.0) is None
    answers = [model.push(frame, 0.1 + n / 10) for n, frame in enumerate(numbered(3, start=1))]
    assert answers[-1].class_ids.tolist() == [0, 1, 2, 3]


def test_in_steps_a_pending_frame_has_the_last_answer(model):
    def step(frame, time, **options):
        prepared = model.prepare(frame, time=time)
        return prepared.pending, model.decode(model.infer(prepared), prepared, **options)[0].class_ids.tolist()

    found = [step(frame, n / 10) for n, frame in enumerate(numbered(6))]
    assert found == [(True, [])] * 3 + [(False, [0, 1, 2, 3]), (True, [0, 1, 2, 3]), (False, [2, 3, 4, 5])]
    model(numbered(4, start=50))
    assert step(numbered(1)[0], 0.6) == (True, [2, 3, 4, 5])  # another clip's answer is not the stream's
    assert step(numbered(1)[0], 9.0) == (True, [])  # nor is one from before a gap
    with pytest.raises(InputError, match="top_k must be at most 4"):
        step(numbered(1)[0], 9.1, top_k=5)


@pytest.mark.parametrize("cleared", [False, True])
def test_another_streams_answer_is_not_given_where_its_first_frames_were_dropped(model, cleared):
    for n, frame in enumerate(numbered(4)):
        prepared = model.prepare(frame, time=n / 10)
        found = model.decode(model.infer(prepared), prepared)[0]
    assert found.class_ids.tolist() == [0, 1, 2, 3]
    if cleared:
        model.clear()
    model.prepare(numbered(1)[0], time=9.0)  # a pipeline dropped this one: nobody asks for its answer
    prepared = model.prepare(numbered(1)[0], time=9.1)
    assert len(model.decode(model.infer(prepared), prepared)[0]) == 0


def test_a_model_of_frames_keeps_none():
    frames = manifest()
    frames = Predictor(frames, SimpleNamespace(name="photos", device="CPU"), Numbers())
    with pytest.raises(InputError, match=r"photos answers single frames and keeps none; .*model\(frame\)"):
        frames.push(numbered(1)[0])
