"""Which weights of a U-Net move, by name: in unlearning, in gradients, and in fine-tuning."""

from __future__ import annotations

from torch import nn

from bench.errors import UnknownName

WEIGHT_SELECTIONS: dict[str, tuple[str, ...]] = {
    "cross-attn-kv": ("attn2.to_k", "attn2.to_v"),
    "cross-attn": ("attn2.",),
    "attn": ("attn1.", "attn2."),
    "all": ("",),
}
"""Parts of diffusers' names of weights (arXiv 2406.09408, section 4 and appendix C)."""


def check_selection(selection: str) -> None:
    """Raise UnknownName where ``selection`` is none of WEIGHT_SELECTIONS."""
    if selection not in WEIGHT_SELECTIONS:
        raise UnknownName("selection of weights", selection, WEIGHT_SELECTIONS)


def select_weights(unet: nn.Module, selection: str) -> dict[str, nn.Parameter]:
    """The parameters of ``unet`` that ``selection`` names, in the module's order; raises UnknownName for another."""
    check_selection(selection)
    parts = WEIGHT_SELECTIONS[selection]
    return {name: weight for name, weight in unet.named_parameters() if any(part in name for part in parts)}
