"""A network that `torch.compile` translates at its first use."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Translated:
    """A network that runs translated, or as it is where it cannot be, which a warning then tells.

    Args:
        network: Image → logits, of one depth or several.
        name: What the warning calls it.
    """

    def __init__(self, network: Callable[[Tensor], Any], name: str) -> None:
        self._network, self._name = network, name
        # Images of one shape follow one another; a translation that fits any shape would be slower.
        self._run: Callable[[Tensor], Any] = torch.compile(network, dynamic=False)

    def __call__(self, image: Tensor) -> Any:
        """Logits."""
        try:
            return self._run(image)
        except torch.OutOfMemoryError:  # as it is, it would take more
            raise
        except Exception as error:
            if self._run is self._network:
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            message = "%s: torch.compile failed (%s); it runs as it is"
            logging.getLogger(__name__).warning(message, self._name, reason)
            self._run = self._network
            return self._network(image)
