"""Recommenders by name; what they have in common is in :mod:`dccl_flower.models.scoring`."""

from __future__ import annotations

from typing import Protocol

from dccl_flower.models.din import Din
from dccl_flower.models.sasrec import SasRec
from dccl_flower.models.scoring import Catalogue, Change, Recommender
from dccl_flower.models.wide_deep import WideAndDeep

__all__ = ["RECOMMENDERS", "Catalogue", "Change", "Recommender", "build_recommender"]


class _Kind(Protocol):
    def __call__(
        self, catalogue: Catalogue, *, embedding: int, hidden: tuple[int, ...], user_ids: bool
    ) -> Recommender: ...


RECOMMENDERS: dict[str, _Kind] = {"din": Din, "sasrec": SasRec, "wide_deep": WideAndDeep}


def build_recommender(
    name: str,
    catalogue: Catalogue,
    *,
    embedding: int = 16,
    hidden: tuple[int, ...] = (64, 32),
    user_ids: bool = False,
) -> Recommender:
    """Return a recommender whose weights are drawn from torch's global generator.

    ``embedding`` is the width of a code's vector, ``hidden`` those of the layers; ``user_ids``
    adds a vector for each user. Raises ValueError for an unknown name and a width below 1.
    """
    if name not in RECOMMENDERS:
        raise ValueError(f"recommender={name}: must be one of {', '.join(RECOMMENDERS)}")
    if not hidden or min(embedding, *hidden) < 1:
        raise ValueError(
            f"embedding={embedding} hidden={list(hidden)}: must be widths of 1 or more"
        )
    return RECOMMENDERS[name](catalogue, embedding=embedding, hidden=hidden, user_ids=user_ids)
