"""Metrics whose libraries want torchvision, in the runs beside it: ours against theirs, with random weights."""

import numpy as np
import pytest
import torch

pytest.importorskip("torchvision", reason="the package does without torchvision; CI installs it for a step of its own")
pytest.importorskip("torch_fidelity", reason="published FIDs need it; CI installs it for a step of its own")

import torchvision  # noqa: E402
from torch_fidelity import FeatureExtractorInceptionV3  # noqa: E402
from torchmetrics.functional.image.lpips import _LPIPS  # noqa: E402

from vargpt_hf.evaluation.image_files import as_pixels  # noqa: E402
from vargpt_hf.evaluation.image_metrics import features_of, inception_score, lpips_of_pairs  # noqa: E402
from vargpt_hf.evaluation.networks import inception_network, lpips_network  # noqa: E402
from vargpt_hf.tiny.shapes import render, sample_scene  # noqa: E402


@pytest.fixture(scope="module")
def scenes():
    rng = np.random.default_rng(0)
    return [render(sample_scene(rng)).resize((64, 64)) for _ in range(4)]


@pytest.mark.parametrize(("net", "builder"), [("alex", torchvision.models.alexnet), ("vgg", torchvision.models.vgg16)])
def test_lpips_is_the_library_s(net, builder, scenes, tmp_path):
    torch.manual_seed(0)
    model = builder(weights=None)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    theirs = _LPIPS(net=net, pnet_rand=True)
    theirs.net.load_state_dict({name: tensor for name, tensor in zip(theirs.net.state_dict(), model.features.state_dict().values())})
    pixels = as_pixels(scenes)
    found = lpips_of_pairs(pixels, pixels.flip(0), lpips_network(net, tmp_path / "weights.pth"))
    with torch.no_grad():
        torch.testing.assert_close(found, theirs(pixels, pixels.flip(0)).flatten())
    assert found.min() > 0


def test_inception_is_torch_fidelity_s(scenes, tmp_path, monkeypatch):
    """The network of published FIDs; its file is taken from a fresh network, since the real one has to be downloaded."""
    with monkeypatch.context() as patched:
        patched.setattr(torch.nn.Module, "load_state_dict", lambda self, tensors: None)
        patched.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda url, progress: {})
        torch.manual_seed(0)
        fresh = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], verbose=False)
    torch.save(fresh.state_dict(), tmp_path / "weights.pth")
    features = features_of(scenes, inception_network(tmp_path / "weights.pth"))
    logits = features_of(scenes, inception_network(tmp_path / "weights.pth", "logits"))
    images = torch.stack([torch.from_numpy(np.array(scene)).permute(2, 0, 1) for scene in scenes])
    for ours, theirs in zip((features, logits), fresh(images)):
        torch.testing.assert_close(ours, theirs)
    assert features.shape == (4, 2048) and 0.99 < inception_score(logits, splits=1) < 4
    (tmp_path / "other.pth").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="does not hold the weights"):
        inception_network(tmp_path / "other.pth")
