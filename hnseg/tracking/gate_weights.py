"""What a learned gate makes of the input channels."""

from __future__ import annotations

from collections.abc import Sequence

import lightning as L

from hnseg.models.gate import ChannelGate


class GateWeights(L.Callback):
    """Logs the weights of a network's gate after each epoch, as `gate/CHANNEL`; nothing without a gate.

    They are the network's own, also where their moving average is validated.

    Args:
        channels: Names of the input channels.
    """

    def __init__(self, channels: Sequence[str]) -> None:
        self.channels = channels

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Logs the epoch's."""
        for gate in (module for module in pl_module.modules() if isinstance(module, ChannelGate)):
            weights = gate.weights.detach()
            pl_module.log_dict({f"gate/{name}": w for name, w in zip(self.channels, weights, strict=True)})
