"""A network as the objectives see it: outputs of all views of a batch and, where asked for, their embeddings."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ekgsearch.errors import NetworkError
from ekgsearch.finetune.config import FinetuneConfig


@dataclass(frozen=True)
class Answer:
    """What a network says to the views of a batch.

    Attributes:
        outputs: outputs (B, V, ...), float32: logits (B, V, C) of a classifier.
        embeddings: inputs (B, V, F) of the classifier, float32; None where they are not kept.
    """

    outputs: Tensor
    embeddings: Tensor | None


class Student(nn.Module):
    """Runs all views of a batch through a network at once, so that batch statistics cover them all.

    Attributes:
        network: the network.
        width: features F of an embedding; 0 where none are kept.
    """

    def __init__(self, network: nn.Module, config: FinetuneConfig, classifier: str | None = None) -> None:
        """Wrap a network; the wrapper adds no parameters.

        Args:
            network: outputs (N, ...) of images (N, C, H, W).
            config: names precision and memory layout.
            classifier: path of the linear layer whose input is the embedding; None where no embeddings are needed.

        Raises:
            NetworkError: there is no linear layer at that path.
        """
        super().__init__()
        self.network = network
        self._config = config
        self._embeddings: Tensor | None = None
        self.width = 0
        self._hook = None
        if classifier is not None:
            linear = linear_at(network, classifier)
            self.width = linear.in_features
            self._hook = linear.register_forward_pre_hook(self._keep)

    def forward(self, views: Tensor) -> Answer:
        """Answer to views (B, V, C, H, W)."""
        images = views.flatten(0, 1)
        if self._config.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self._config.precision == "bfloat16"):
            outputs = self.network(images).float()
        outputs = outputs.view(*views.shape[:2], *outputs.shape[1:])
        if not self.width:  # the compiler does not look at hooks: this tells it that with and without them differ
            return Answer(outputs, None)
        embeddings, self._embeddings = self._embeddings, None
        assert embeddings is not None, "the forward pass of the classifier keeps its input"
        return Answer(outputs, embeddings.float().view(*views.shape[:2], -1))

    def release(self) -> None:
        """Leave the network as it was before it was wrapped."""
        if self._hook is not None:
            self._hook.remove()

    def _keep(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._embeddings = inputs[0]


def linear_at(network: nn.Module, path: str) -> nn.Linear:
    """Find the classifier of a network.

    Raises:
        NetworkError: there is no linear layer at that path.
    """
    module = dict(network.named_modules()).get(path)
    if not isinstance(module, nn.Linear):
        found = "nothing" if module is None else type(module).__name__
        raise NetworkError(f"expected the linear layer that makes the logits at {path!r}, found {found}")
    return module
