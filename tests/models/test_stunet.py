"""STU-Net against its paper; tests/models/test_nets.py holds it to what every network keeps."""

import torch
import yaml
from entry import ROOT

from hnseg.models.nets import build


def test_the_small_one_has_the_papers_14_6_million_parameters() -> None:
    """Table 1 of arXiv 2304.06716, for the CT and the 105 classes of TotalSegmentator."""
    settings = yaml.safe_load((ROOT / "conf/model/stunet.yaml").read_text())["model"]["settings"]
    with torch.device("meta"):
        network = build(in_channels=1, out_channels=105, **settings)
    assert round(sum(weights.numel() for weights in network.parameters()) / 1e6, 2) == 14.60


def test_its_stages_have_strides_of_their_own() -> None:
    strides = [1, [1, 2, 2], 2]
    network = build("hnseg.models.stunet.STUNet", 2, 3, features=[4, 6, 8], strides=strides)
    depths = network.train()(torch.zeros(1, 2, 4, 8, 8))
    assert [tuple(depth.shape[2:]) for depth in depths] == [(4, 8, 8), (4, 4, 4)]
