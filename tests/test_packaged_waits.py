import torch
from no_waits import no_waits
from test_inference import ROOT, window

from merfast import bundle as bundles
from merfast.models import inputs_of
from merfast.models.fusion_network import FusionNetwork, run_padded
from merfast.types import Batch


def test_a_pass_of_the_packaged_bundle_waits_for_nothing() -> None:
    model = bundles.load(ROOT).model.to("meta")
    batch = Batch.pack([window(1.0 + i, i, crops=5 * i) for i in range(4)])
    with torch.inference_mode(), no_waits():
        features = model.encode(*inputs_of(batch, "meta"))
        assert run_padded(FusionNetwork(model), features).shape == (4, 7)
