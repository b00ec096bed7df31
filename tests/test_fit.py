"""Classes by nearest neighbours: fitted on folders of images, answered as the paper's classifier does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

import edgevtx  # noqa: E402
from edgevtx import manifest as m  # noqa: E402
from edgevtx import rules as r  # noqa: E402
from edgevtx.bundle import Bundle, write_bundle  # noqa: E402
from edgevtx.cli import cli  # noqa: E402
from edgevtx.cli.verify import replay_one  # noqa: E402
from edgevtx.decode.knn import Bank, compare_answers, decode_knn, read_bank, write_bank  # noqa: E402
from edgevtx.errors import BundleError, InputError, SourceError, VerificationError  # noqa: E402
from edgevtx.fit import fit  # noqa: E402
from edgevtx.golden import Golden, write_golden  # noqa: E402
from edgevtx.images import write_image  # noqa: E402
from edgevtx.results import Classification, Features  # noqa: E402

SIZE, PATCH, WIDTH = (32, 48), 8, 16
TARGETS = ("openvino", "onnxruntime")


def backbone_graph(path: Path) -> None:
    """pixels (1,H,W,3) uint8 -> cls (1,D), the mean of the patches; patches (1,h,w,D), a convolution's ReLU."""
    rng = np.random.default_rng(0)
    make, value, floats = onnx.helper.make_node, onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    kernel = rng.normal(0, 0.01, (WIDTH, 3, PATCH, PATCH)).astype(np.float32)
    nodes = [
        make("Cast", ["pixels"], ["floats"], to=floats),
        make("Sub", ["floats", "grey"], ["centred"]),
        make("Transpose", ["centred"], ["nchw"], perm=[0, 3, 1, 2]),
        make("Conv", ["nchw", "kernel"], ["map"], strides=[PATCH, PATCH]),
        make("Relu", ["map"], ["active"]),
        make("Transpose", ["active"], ["patches"], perm=[0, 2, 3, 1]),
        make("ReduceMean", ["patches"], ["cls"], axes=[1, 2], keepdims=0),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "backbone",
        [value("pixels", onnx.TensorProto.UINT8, [1, *SIZE, 3])],
        [value("cls", floats, [1, WIDTH]), value("patches", floats, [1, SIZE[0] // PATCH, SIZE[1] // PATCH, WIDTH])],
        [
            onnx.numpy_helper.from_array(kernel, "kernel"),
            onnx.numpy_helper.from_array(np.array([127.5], np.float32), "grey"),
        ],
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """The bundle of a backbone that was verified elsewhere."""
    import onnxruntime

    folder = tmp_path_factory.mktemp("backbone") / "files"
    folder.mkdir()
    graphs, verdicts = [], []
    for target in TARGETS:
        file = f"graph.{target}.onnx"
        backbone_graph(folder / file)
        graphs.append(m.Graph(file=file, target=target, variant="", versions=">=1", precisions=("fp32",), opset=17))
        verdicts.append(m.Verdict(target=target, precision="fp32", status="passed-here", graph=file, sensitivity=1e4))
    pixels = np.random.default_rng(1).integers(0, 256, (1, *SIZE, 3), np.uint8)
    session = onnxruntime.InferenceSession(folder / "graph.onnxruntime.onnx", providers=["CPUExecutionProvider"])
    names = ["cls", "patches"]
    outputs = dict(zip(names, session.run(names, {"pixels": pixels}), strict=True))
    write_golden(folder / "golden.npz", Golden(pixels[0], {"pixels": pixels}, outputs))
    manifest = m.Manifest(
        name="backbone",
        family="dino",
        task="embed",
        inputs=(m.TensorInfo(name="pixels", shape=(1, *SIZE, 3), dtype="uint8"),),
        outputs=tuple(m.TensorInfo(name=name, shape=outputs[name].shape, dtype="float32") for name in names),
        preprocess=r.Preprocess(
            size=r.Exact(height=SIZE[0], width=SIZE[1]),
            interpolation="bilinear",
            scale=1.0,
            mean=(0,) * 3,
            std=(1,) * 3,
        ),
        decode=r.EmbedDecode(patch_size=PATCH),
        labels=(),
        graphs=tuple(graphs),
        verdicts=tuple(verdicts),
        recommended=dict.fromkeys(TARGETS, "fp32"),
        provenance=m.Provenance(),
        tools={},
    )
    return write_bundle(folder, manifest, folder.parent / "backbone.vtx")


def crops(photo, count, seed):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        y, x = (int(rng.integers(0, edge - 150)) for edge in photo.shape[:2])
        yield photo[y : y + 120, x : x + 150]


@pytest.fixture(scope="module")
def photographs():
    data = pytest.importorskip("skimage.data")
    return {name: np.ascontiguousarray(getattr(data, name)()[..., ::-1]) for name in ("chelsea", "coffee", "rocket")}


@pytest.fixture(scope="module")
def images(photographs, tmp_path_factory):
    """A folder a class with 5, 6 and 7 images, one file that is none, and a hidden folder."""
    root = tmp_path_factory.mktemp("images")
    for index, (name, photo) in enumerate(photographs.items()):
        (root / name).mkdir()
        for number, crop in enumerate(crops(photo, 5 + index, index)):
            write_image(root / name / f"{number}.png", crop)
    (root / "coffee" / "notes.txt").write_text("no image")
    (root / ".thumbnails").mkdir()
    return root


@pytest.fixture(scope="module")
def fitted(backbone, images, tmp_path_factory):
    return fit(backbone, images, tmp_path_factory.mktemp("fitted") / "things.vtx", k=7, temperature=0.1)


def paper_knn(train, labels, query, k, temperature, classes):
    """Caron et al. (2021): cosine similarities, the k largest, each voting exp(similarity / T) for its label."""
    torch = pytest.importorskip("torch")
    bank = torch.nn.functional.normalize(torch.tensor(train, dtype=torch.float64), dim=1)
    similarity = bank @ torch.nn.functional.normalize(torch.tensor(query, dtype=torch.float64), dim=0)
    nearest, indices = similarity.topk(k)
    one_hot = torch.nn.functional.one_hot(torch.tensor(labels)[indices], classes).double()
    votes = ((nearest / temperature).exp()[:, None] * one_hot).sum(0)
    return (votes / votes.sum()).numpy()


def test_the_report_counts_images_and_names_what_was_skipped(fitted):
    assert fitted.images == {"chelsea": 5, "coffee": 6, "rocket": 7}
    assert [Path(item.source).name for item in fitted.skipped] == ["notes.txt"]
    assert "notes.txt is not an image" in str(fitted.skipped[0])


@pytest.mark.parametrize("runtime", TARGETS)
def test_a_fitted_bundle_answers_as_the_papers_classifier_on_its_own_features(
    runtime, backbone, images, fitted, photographs
):
    labels = sorted(photographs)
    with edgevtx.load(backbone, runtime=runtime) as model:
        files = [(index, file) for index, label in enumerate(labels) for file in sorted((images / label).glob("*.png"))]
        train = np.stack([model(edgevtx.read_image(file)).cls for _, file in files])
        ids = [index for index, _ in files]
        asked = [crop for photo in photographs.values() for crop in crops(photo, 4, 99)]
        queries = [model(frame).cls for frame in asked]
    with edgevtx.load(fitted.bundle, runtime=runtime) as model:
        assert model.info.verdict in ("passed-here", "passed-elsewhere")
        assert (model.info.task, model.labels) == ("classify", tuple(labels))
        truth = [name for name in photographs for _ in range(4)]
        right = 0
        for frame, query, name in zip(asked, queries, truth, strict=True):
            found = model(frame)
            assert isinstance(found, Classification)
            shares = paper_knn(train, ids, query, 7, 0.1, 3)
            np.testing.assert_allclose(found.scores, shares[found.class_ids], atol=2e-4)
            assert found.class_ids[0] == shares.argmax()
            assert abs(found.scores.sum() - 1) < 1e-5
            assert found.labels == tuple(labels[i] for i in found.class_ids)
            right += found.labels[0] == name
        assert right >= 9  # of 12; by chance 4
        assert len(model(asked[0], top_k=1)) == 1
        assert (model(asked[0], threshold=0.3).scores > 0.3).all()
        features = model.features(asked[0])
        assert isinstance(features, Features)
        np.testing.assert_array_equal(features.cls, queries[0])


def test_verdicts_graphs_and_golden_stay_and_the_answer_is_replayed(backbone, fitted):
    before, after = Bundle.open(backbone), Bundle.open(fitted.bundle)
    assert after.manifest.verdicts == before.manifest.verdicts
    unchanged = {item.path: item.sha256 for item in before.manifest.files}
    assert {item.path: item.sha256 for item in after.manifest.files if item.path != r.BANK} == unchanged
    assert r.BANK in {item.path for item in after.manifest.files}
    assert "fitted on 18 images of 3 classes" in after.manifest.notes[-1]
    for target in TARGETS:
        verdict = replay_one(after, target, "fp32", "CPU")
        assert verdict.status == "passed-here"
        assert any("nearest neighbours" in check.name and check.compared == 1 for check in verdict.checks)


def test_equal_images_give_equal_bytes_and_a_fitted_bundle_can_be_fitted_again(backbone, images, fitted, tmp_path):
    again = fit(str(fitted.bundle), str(images), str(tmp_path / "things.vtx"), k=7, temperature=0.1)
    first, second = Bundle.open(fitted.bundle).manifest, Bundle.open(again.bundle).manifest
    assert {item.path: item.sha256 for item in first.files} == {item.path: item.sha256 for item in second.files}
    assert len(second.notes) == len(first.notes)


@pytest.mark.parametrize(
    ("spoil", "options", "error", "sentence"),
    [
        (lambda root: shutil.rmtree(root), {}, InputError, "is no folder; give one that holds a folder"),
        (
            lambda root: [shutil.rmtree(root / name) for name in ("coffee", "rocket")],
            {},
            InputError,
            "holds 1 folder, but",
        ),
        (lambda root: (root / "empty").mkdir(), {}, InputError, "the class 'empty' has no images"),
        (
            lambda root: [path.write_text("x") for path in (root / "rocket").iterdir()],
            {},
            SourceError,
            "none of the 7 files in .*rocket is an image",
        ),
        (lambda root: None, {"k": 19}, InputError, "k is 19, but 18 images were read; choose 1 to 18"),
        (lambda root: None, {"k": 0}, InputError, "neighbours that vote, must be 1 or more, a whole number, but got 0"),
        (lambda root: None, {"k": 2.5}, InputError, "must be 1 or more, a whole number, but got 2.5"),
        *(
            (lambda root: None, {"temperature": value}, InputError, f"votes must be above 0, but got {value!r}")
            for value in (0.0, -0.1, float("nan"), float("inf"), "warm", None)
        ),
    ],
)
def test_what_is_no_folder_of_classes_is_refused(spoil, options, error, sentence, backbone, images, tmp_path):
    shutil.copytree(images, tmp_path / "images")
    spoil(tmp_path / "images")
    with pytest.raises(error, match=sentence):
        fit(backbone, tmp_path / "images", tmp_path / "out.vtx", **options)
    assert not (tmp_path / "out.vtx").exists()


def test_a_bundle_without_a_vector_of_the_image_is_refused(tiny_bundle, images, tmp_path):
    with pytest.raises(InputError, match="gives no vector of the whole image"):
        fit(tiny_bundle, images, tmp_path / "out.vtx")


def test_a_bundle_that_is_no_backbone_has_no_features(tiny_bundle):
    with edgevtx.load(tiny_bundle, runtime="null") as model, pytest.raises(InputError, match="gives no features"):
        model.features(np.zeros((32, 48, 3), np.uint8))


RULE = r.KnnDecode(features=r.EmbedDecode(patch_size=8), k=2, temperature=0.07)
BANK = Bank(np.eye(4, dtype=np.float32), np.array([0, 0, 1, 2]))


@pytest.mark.parametrize(
    "changes",
    [
        {"vectors": np.eye(4)},
        {"vectors": np.full((4, 4), np.nan, np.float32)},
        {"vectors": np.ones((1, 4), np.float32), "class_ids": np.zeros(1, np.int64)},
        {"vectors": np.ones((4, 5), np.float32)},
        {"class_ids": np.array([0, 1, 2, 3])},
        {"class_ids": np.array([0, 1, 2])},
    ],
)
def test_vectors_that_do_not_fit_are_refused(changes, tmp_path):
    write_bank(tmp_path / "knn.npz", BANK)
    assert len(read_bank(tmp_path / "knn.npz", RULE, 4, 3).vectors) == 4
    spoiled = Bank(changes.get("vectors", BANK.vectors), changes.get("class_ids", BANK.class_ids))
    write_bank(tmp_path / "knn.npz", spoiled)
    with pytest.raises(BundleError, match="fit the bundle again"):
        read_bank(tmp_path / "knn.npz", RULE, 4, 3)


def test_damaged_pickled_and_missing_vectors_are_refused(tmp_path, fitted):
    np.savez(tmp_path / "knn.npz", vectors=np.array([{}], object), class_ids=np.zeros(1))
    with pytest.raises(BundleError, match="holds no fitted vectors"):
        read_bank(tmp_path / "knn.npz", RULE, 4, 3)
    (tmp_path / "knn.npz").write_bytes(b"PK nothing")
    with pytest.raises(BundleError, match="holds no fitted vectors"):
        read_bank(tmp_path / "knn.npz", RULE, 4, 3)
    opened = Bundle.open(fitted.bundle)
    shutil.copytree(opened.root, tmp_path / "less", ignore=shutil.ignore_patterns(r.BANK, "manifest.json"))
    with pytest.raises(BundleError, match=r"without listing knn\.npz"):
        write_bundle(tmp_path / "less", opened.manifest, tmp_path / "less.vtx")


def test_a_cold_temperature_overflows_nothing_and_a_vector_of_zeros_is_refused():
    cls = np.array([0.0, 0, 3, 2.9], np.float32)
    found = decode_knn(
        {"cls": cls}, None, r.KnnDecode(features=RULE.features, k=4, temperature=1e-4), ("a", "b", "c"), bank=BANK
    )
    assert found.labels[0] == "b"
    np.testing.assert_allclose(found.scores, [1, 0, 0], atol=1e-6)
    with pytest.raises(VerificationError, match="vector of zeros"):
        decode_knn({"cls": 0 * cls}, None, RULE, ("a", "b", "c"), bank=BANK)


def test_another_class_fails_the_comparison_unless_the_decision_was_close():
    clear, other = (np.array([vector], np.float32) for vector in ([1, 0, 0.2, 0], [0, 0, 1, 0.2]))
    check = compare_answers({"cls": clear}, {"cls": other}, BANK, RULE, 3)
    assert (check.passed, check.error, check.ties) == (False, 1.0, 0)
    first, second = (np.array([vector], np.float32) for vector in ([0, 0, 1, 0.9999], [0, 0, 0.9999, 1]))
    check = compare_answers({"cls": first}, {"cls": second}, BANK, RULE, 3)
    assert (check.passed, check.ties) == (True, 1)


def test_the_verb_prints_what_it_did(backbone, images, tmp_path, monkeypatch):
    from click.testing import CliRunner

    monkeypatch.setenv("COLUMNS", "200")
    out = tmp_path / "things.vtx"
    arguments = ["fit", str(backbone), "--images", str(images), "--out", str(out), "-k", "3"]
    found = CliRunner().invoke(cli, [*arguments, "--json"])
    assert found.exit_code == 0, found.stderr
    assert json.loads(found.stdout)["images"] == {"chelsea": 5, "coffee": 6, "rocket": 7}
    found = CliRunner().invoke(cli, arguments)
    assert found.exit_code == 0, found.stderr
    assert "6 images" in found.stdout and "skipped" in found.stdout and str(out) in found.stdout
    found = CliRunner().invoke(cli, ["run", str(out), str(images / "rocket" / "0.png")])
    assert found.exit_code == 0, found.stderr
    assert "rocket" in found.stdout
    found = CliRunner().invoke(cli, [*arguments[:-1], "30"])
    assert found.exit_code == 2
    assert "k is 30" in found.stderr
