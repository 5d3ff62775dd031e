"""What the features are of a trunk's output that is no plain tensor of them: a named field; tokens, pooled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import torch

from ._argument_checks import check_choice
from ._features import PlainOutput, checked_features, smallest_maps
from ._what_to_write import contents, remedy

Field = str | int
Tokens = Literal["class", "mean"]
MASK = "attention_mask"
"""What Hugging Face and sentence-transformers call the mask of a text's tokens: 0 where one is padding."""


def trunk_output(field: Field | None, tokens: Tokens | None) -> PlainOutput | NamedOutput:
    """The strategy of these settings.

    Raises:
        TypeError, ValueError: a setting that there is not.
    """
    if field is not None and (isinstance(field, bool) or not isinstance(field, str | int)):
        raise TypeError(
            f"field must be a name, or a position, in what the trunk returns, got {type(field).__name__} ({field!r})"
        )
    if tokens is not None:
        check_choice("tokens", tokens, get_args(Tokens))
    return PlainOutput() if field is None and tokens is None else NamedOutput(field, tokens)


class NamedOutput(NamedTuple):
    """A field of the output, or all of it, and how its tokens become features. A tensor is taken for the field."""

    field: Field | None
    tokens: Tokens | None

    def features(
        self, output: Any, attention_mask: torch.Tensor | None, in_features: int, *, maps_only: bool
    ) -> torch.Tensor:
        """Features (B, F) or feature maps (B, F, H, W), checked; with `maps_only` the latter.

        Args:
            output: what the trunk returned.
            attention_mask: (B, N), 0 where a token is padding; one beside the field goes before it. None: none is.
        """
        found = self.tensor(output)
        if self.tokens is not None and isinstance(found, torch.Tensor):
            if found.dim() == 3:
                beside = None if found is output else entry(output, MASK)
                found = self._pooled(found, attention_mask if beside is None else beside, in_features, maps_only)
            elif found.dim() == 4 and self.tokens == "class":
                raise ValueError(
                    f'tokens="class" needs token sequences of shape (B, N, {in_features}), got shape '
                    f"{tuple(found.shape)}; leave tokens out, and feature maps are averaged"
                )
        return checked_features(found, in_features, maps_only=maps_only)

    def tensor(self, output: Any) -> Any:
        """What the field holds."""
        if self.field is None or isinstance(output, torch.Tensor):
            return output
        found = entry(output, self.field)
        if not isinstance(found, torch.Tensor):
            there = "there is none" if found is None else f"it is a {type(found).__name__}{contents(found)}"
            raise TypeError(
                f"field={self.field!r} must name a tensor in what the trunk returns, and {there}; got "
                f"{type(output).__name__}{contents(output)}"
            )
        return found

    def _pooled(self, tokens: torch.Tensor, mask: Any, in_features: int, maps_only: bool) -> torch.Tensor:
        """Of token sequences (B, N, F)."""
        shape = tuple(tokens.shape)
        if shape[2] != in_features or shape[1] == 0:
            raise ValueError(
                f"expected token sequences of shape (B, N, {in_features}), got shape {shape}"
                f"{remedy(tokens, in_features, maps_only) or '; in_features must be the size of a token'}"
            )
        if self.tokens == "class":
            return tokens[:, 0]
        if mask is None:
            return tokens.mT.unsqueeze(3)
        return mean_of_kept(tokens, checked_mask(mask, shape), with_maximum=maps_only)


def entry(output: Any, field: Field) -> Any:
    """What `output` holds under this name or at this position; None for nothing."""
    if isinstance(output, Mapping):
        return output.get(field)
    if isinstance(field, str):
        return getattr(output, field, None)
    return output[field] if isinstance(output, tuple | list) and -len(output) <= field < len(output) else None


def checked_mask(mask: Any, shape: tuple[int, ...]) -> torch.Tensor:
    """(B, N, 1), bool, of an attention mask of tokens of this shape."""
    if not isinstance(mask, torch.Tensor) or tuple(mask.shape) != shape[:2]:
        found = f"shape {tuple(mask.shape)}" if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise ValueError(
            f"attention_mask must be a tensor of shape {shape[:2]}, one entry a token, got {found}; give that of the "
            "tokens that the trunk returns"
        )
    if mask.is_floating_point():
        raise TypeError(
            f"attention_mask must be 1 where a token counts and 0 where it is padding, integers or bool, got "
            f"{mask.dtype}; give the tokenizer's"
        )
    return mask.bool().unsqueeze(2)


def mean_of_kept(tokens: torch.Tensor, kept: torch.Tensor, *, with_maximum: bool) -> torch.Tensor:
    """The mean of the tokens (B, N, F) that `kept` (B, N, 1) marks, in float32 or wider; 0 where it marks none.

    With their maximum it is made into feature maps that have both. What other tokens hold plays no part, be it NaN.
    """
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    average = tokens.masked_fill(~kept, 0).sum(1, dtype=dtype) / kept.sum(1).clamp(min=1)
    if not with_maximum:
        return average
    largest = tokens.masked_fill(~kept, -torch.inf).amax(1).to(dtype)
    return smallest_maps(average, torch.where(kept.any(1), largest, average))
