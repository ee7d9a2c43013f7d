"""Images of other channel counts reach the network, its normalisation and its weights."""

from pathlib import Path

import pytest
import torch
from command_line import JOB
from data.loading import picture_folder

from ekgsearch.artefact.factory import zoo_factory
from ekgsearch.artefact.kinds import build
from ekgsearch.errors import NetworkError
from ekgsearch.jobfile import load_job
from ekgsearch.pipeline.setup import set_up
from ekgsearch.storage.tensors import save_tensors


def test_a_job_says_how_many_channels_its_images_and_so_its_network_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "job.yaml").write_text(JOB.format(output=tmp_path / "run"))
    pictures = picture_folder(tmp_path / "pictures", train=32)
    of_pictures = (f"data.root={pictures}", "data.name=image_folder", "pretrain.batch_size=8", "finetune.batch_size=8")
    for settings, channels in ((("data.channels=1",), 1), ((*of_pictures, "data.channels=4"), 4)):
        setup = set_up(load_job(tmp_path / "job.yaml", settings))
        assert setup.recipe.input_shape == (channels, 8, 8)
        assert len(setup.mean) == len(setup.std) == channels
        again = setup.data.open()
        assert again.content_hash == setup.dataset.content_hash
        images = setup.workload(tmp_path).normalisation(again.train.read(torch.arange(2)))
        assert setup.network(images).shape == (2, setup.dataset.num_classes)


def test_weights_for_other_images_are_refused_by_the_layer(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB.format(output=tmp_path / "run"))
    weights = tmp_path / "weights.safetensors"
    save_tensors(weights, build(zoo_factory("resnet20", 10, (3, 8, 8)), seed=0).state_dict(), {})
    given = (f"net.weights={weights}", "data.channels=1")
    with pytest.raises(NetworkError, match=r"first layer, conv1\.weight, takes images of 3 channels, .* images of 1;"):
        set_up(load_job(tmp_path / "job.yaml", given))
