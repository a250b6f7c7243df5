"""Figures of the MSCOCO study as published, to compare a board's order with. Not measured here.

Source: arXiv 2511.10721 (the follow-up of arXiv 2406.09408), Table 1: loss change in 1e-3, means over 110 queries, K =
500 of 118,287 images; ``datainf`` from Table 2 of the first paper (NeurIPS 2024). It is the loss of the retrained model
minus that of θ0 (unpaired), so ``random`` is not near zero there.
"""

from __future__ import annotations

import pandas as pd

NAME = "MSCOCO as published, K = 500"
MSCOCO = pd.Series(
    {
        "random": 3.51, "pixel": 3.59, "clip_text": 3.82, "clip": 4.18, "abc_clip": 4.35, "dinov2": 3.89, "dino": 4.76,
        "abc_dino": 4.75, "trak": 5.18, "journey_trak": 4.44, "d_trak": 5.44, "ours": 5.57, "ours_ekfac": 5.83,
        "datainf": 3.7,
    }
)  # fmt: skip
"""Loss change in 1e-3 by the names that methods have here."""
