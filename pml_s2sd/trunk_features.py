"""`count_features`: how many features a trunk has, for `in_features`."""

from __future__ import annotations

import torch
from torch import nn

from ._modes import in_eval_mode
from ._trunk_input import Inputs, call, device_of, placed
from ._trunk_output import Field, Tokens, trunk_output
from ._what_to_write import contents


def count_features(
    trunk: nn.Module, example: Inputs, *, field: Field | None = None, tokens: Tokens | None = None
) -> int:
    """F, the number of features of a trunk: of what it returns for an example, in eval mode. It stays as it was.

    What a library calls a model's number of features may be that of another layer: `num_features` of timm's
    mobilenetv3_large_100 is 960, and it returns 1,280.

    Args:
        trunk: from images, or whatever the example holds, to what an embedder takes.
        example: its input: a tensor; a dict, passed as keywords; a tuple, passed as arguments one by one. Values play
            no part. Images should be square: by the shape of its maps, (B, F, H, H) or (B, H, H, F), F is told from H.
        field, tokens: as `S2SDEmbedder` has them.

    Raises:
        TypeError, ValueError: the trunk returns something else, or maps whose shape leaves open which F is.

    Example:
        >>> import torch
        >>> from pytorch_metric_learning import losses
        >>> from pml_s2sd import count_features, s2sd
        >>> trunk = torch.nn.Sequential(torch.nn.Conv2d(3, 48, 3), torch.nn.ReLU())
        >>> count_features(trunk, torch.zeros(1, 3, 32, 32))
        48
        >>> embedder, loss_func = s2sd(
        ...     losses.MultiSimilarityLoss(), count_features(trunk, torch.zeros(1, 3, 32, 32)), embedding_size=8
        ... )
    """
    reading = trunk_output(field, tokens)
    with torch.no_grad(), in_eval_mode(trunk):
        output = call(trunk, placed(example, trunk, device_of(trunk)))
    found = reading.tensor(output)
    if not isinstance(found, torch.Tensor):
        raise TypeError(
            f"expected a trunk that returns a tensor, got {type(found).__name__}{contents(found)}; name one that it "
            "holds, field=…, and say tokens=… where that has shape (B, N, F)"
        )
    shape = tuple(found.shape)
    if len(shape) == 2 or (len(shape) == 3 and tokens is not None):
        return shape[-1]
    if len(shape) == 4 and (shape[1] == shape[2]) != (shape[2] == shape[3]):
        return shape[1] if shape[2] == shape[3] else shape[3]
    raise ValueError(f"cannot tell the features from shape {shape}; {_remedy(shape)}")


def _remedy(shape: tuple[int, ...]) -> str:
    if len(shape) == 3:
        return 'of token sequences (B, N, F) say tokens="class" or tokens="mean"'
    if len(shape) == 4:
        return "give an example of square images of another size, or in_features yourself"
    return "expected features (B, F), feature maps (B, F, H, W) or token sequences (B, N, F)"
