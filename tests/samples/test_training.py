"""The training recipe: both models can be trained, and the decoder inherits exactly what the proposals say."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from samples.forest_fire.convergence import inherit_scores, local_start  # noqa: E402
from samples.forest_fire.data import cached_shard  # noqa: E402
from samples.forest_fire.families import FAMILIES, rtdetr  # noqa: E402
from samples.forest_fire.train import Trainer  # noqa: E402


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_steps_of_training_change_every_part_and_resume_where_they_stopped(name, tmp_path):
    family = FAMILIES[name]
    shard = cached_shard(tmp_path, family.render, (96, 128), range(6))
    # of ten steps the second hands over, where the family does
    trainer = Trainer(family, 0, 10, tmp_path / "work", [shard])
    before = {key: value.clone() for key, value in trainer.model.named_parameters()}
    assert all(math.isfinite(trainer.advance()) for _ in range(3))
    same = {key for key, value in trainer.model.named_parameters() if torch.equal(value, before[key])}
    # DETR's first layer attends to zeros
    same = {key for key in same if not key.endswith("decoder.layers.0.self_attn.v_proj.weight")}
    assert not [key for key in same if "decoder" in key or "backbone" in key], same
    trainer.save()
    resumed = Trainer(family, 0, 10, tmp_path / "work", [shard])
    resumed.load()
    assert resumed.step == 3
    assert resumed.advance() == pytest.approx(trainer.advance(), rel=1e-3)


def test_a_decoder_that_inherits_gives_the_proposals_scores_and_boxes():
    torch.manual_seed(0)
    model = rtdetr().eval()
    local_start(model)  # as the library draws them, all proposals are alike
    pixels = torch.rand(1, 3, 320, 320)
    with torch.no_grad():
        norm = model.model.enc_output[1]
        norm.weight.uniform_(0.5, 1.5)  # trained norms scale and shift
        norm.bias.uniform_(-0.5, 0.5)
        proposed = model(pixel_values=pixels)
        inherit_scores(model)
        found = model(pixel_values=pixels)
    # the proposals themselves must not have changed
    np.testing.assert_allclose(found.enc_topk_logits, proposed.enc_topk_logits, atol=1e-4)
    np.testing.assert_allclose(found.logits, found.enc_topk_logits, atol=1e-4)
    np.testing.assert_allclose(found.pred_boxes, found.enc_topk_bboxes, atol=1e-4)
    assert not np.allclose(proposed.logits, proposed.enc_topk_logits, atol=1e-2)
