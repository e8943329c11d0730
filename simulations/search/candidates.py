"""What the search for a fusion tries: each candidate is one change of the base."""

from __future__ import annotations

# The published rule with as many rounds as the others get, so that each change stands alone.
BASE = (
    "loss=ce",
    "normalisation=batch",
    "fusion=average",
    "head_tuning=none",
    "exemplars=0",
    "rounds.cloud_weight=0.5",
    "rounds.lr_schedule=cosine",
)

STRICT: dict[str, tuple[str, ...]] = {
    "frozen statistics": ("normalisation=batch_frozen", "rounds.max_grad_norm=1"),
    "fused statistics": (
        "normalisation=batch_fused",
        "rounds.max_grad_norm=1",
        "rounds.statistics_step=0.2",
    ),
    "mixed statistics": ("normalisation=batch_mixed",),
    "start from the mimic": ("model.co_start=mimic",),
    "start from the mimic, its statistics frozen": (
        "model.co_start=mimic",
        "normalisation=batch_frozen",
        "rounds.freeze_statistics_after=0",
        "rounds.max_grad_norm=1",
    ),
    "start from the mimic, its statistics mixed": (
        "model.co_start=mimic",
        "normalisation=batch_mixed",
        "rounds.freeze_statistics_after=0",
    ),
    "group norm": ("normalisation=group",),
    "group norm + weight standardisation": ("normalisation=group_ws",),
    "prior correction": ("loss=prior_corrected",),
    "unseen classes masked": ("pretrain.mask_unseen=true",),
    "momentum kept": ("rounds.keep_momentum=true",),
    "class-wise head": ("fusion=class_wise_head",),
    "head tuning": ("head_tuning=federated",),
    "scaffold": ("rounds.scaffold=true",),
    "server momentum": ("rounds.server_momentum=0.9", "rounds.momentum=0"),
    "mimic on mixed images": ("distil.mixup=true",),
    "weights by data size": ("rounds.cloud_weight=0.8",),
    "published schedule": ("rounds.lr_schedule=last_two_halved",),
}

EXEMPLARS: dict[str, tuple[str, ...]] = {
    "500 exemplars": ("exemplars=500",),
    "500 exemplars, herded": ("exemplars=500", "exemplar_choice=herded"),
    "500 exemplars, no cloud training": ("exemplars=500", "rounds.cloud_weight=0"),
}

POOL = {**STRICT, **EXEMPLARS}

CENTRAL: dict[str, tuple[str, ...]] = {
    "batch norm": (),
    "batch norm, twice the rate": ("rounds.lr={twice}",),
    "batch norm, half the rate": ("rounds.lr={half}",),
    "group norm + weight standardisation": ("normalisation=group_ws",),
}
