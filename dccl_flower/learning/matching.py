"""What the cloud offers a device of other users' samples: its pool, and ways to match it.

Coarse matching of CoDA (Gu et al., arXiv 2201.10382), by sample, and of MPDA (Yan et al., KDD
2022), by user. The cloud holds all samples as they are, and what it offers reaches a device as it
is: neither method keeps users' samples from each other.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn import functional

from dccl_flower.data.samples import Samples, count
from dccl_flower.models.scoring import Embeddings, Recommender
from dccl_flower.models.wide_deep import mean_of_items

ROWS = 4096  # of samples whose keys are computed at once


@dataclass(frozen=True)
class KeyWeights:
    """How much each counts in how alike two samples are: the item, its features, the history.

    Raises ValueError for a weight below 0, and where all are 0.
    """

    item: float = 1.0
    features: float = 1.0
    history: float = 1.0

    def __post_init__(self) -> None:
        weights = astuple(self)
        if not (min(weights) >= 0 and sum(weights) > 0):
            raise ValueError(f"weights={weights}: must be 0 or more, and not all 0")


@torch.no_grad()
def match_keys(model: Recommender, samples: Samples, weights: KeyWeights | None = None) -> Tensor:
    """Return a key (N, D) of length one for each sample, from "item" and "history" alone.

    That is all a device must tell for the cloud to compute the keys of its samples. The parts are
    embeddings, of the item, of its features and the mean of the history's, each of length one
    before it is weighed; so keys' inner product is a weighted mean of the parts' cosines. A part
    that is absent, as an empty history is, is zero.
    """
    weights = KeyWeights() if weights is None else weights
    parts = zip(samples["item"].split(ROWS), samples["history"].split(ROWS), strict=True)
    return torch.cat([_keys(model.embedded, *part, weights) for part in parts])


def _keys(embedded: Embeddings, items: Tensor, history: Tensor, weights: KeyWeights) -> Tensor:
    own = embedded.item_codes.table.embedding_dim
    vectors = embedded.of_items(items)
    parts = (vectors[:, :own], vectors[:, own:], mean_of_items(embedded, history))
    weighed = [
        weight**0.5 * functional.normalize(part)
        for weight, part in zip(astuple(weights), parts, strict=True)
    ]
    return functional.normalize(torch.cat(weighed, 1))


def rows_of_some_users(users: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Return the rows, in order, of users drawn at random, ``most`` rows at most.

    ``users`` (N,) are those of the rows. A pool is made smaller by whole users, so that matching by
    user loses no more than matching by sample. Raises ValueError where the first one does not fit.
    """
    names, places, rows = users.unique(return_inverse=True, return_counts=True)
    order = torch.randperm(len(names), generator=generator)
    is_drawn = torch.zeros(len(names), dtype=torch.bool)
    is_drawn[order[rows[order].cumsum(0) <= most]] = True
    if not is_drawn.any():
        raise ValueError(f"most={most}: must leave room for the rows of any user")
    return is_drawn[places].nonzero().squeeze(1)


class Pool:
    """The cloud's samples, with keys (N, D) of length one, to be searched for others' samples.

    What is found are positions in ``samples``, each at most once and none of the asking user's; a
    pool that holds too few gives fewer. A search by key compares with every sample: N * D products
    a key, about 0.1 s for 50 keys among 200 000 samples of 64 numbers on one core. Trees are no
    faster at such D; for a pool of millions draw :func:`rows_of_some_users` first. Raises
    ValueError for an empty pool, and unless each sample has a key.
    """

    def __init__(self, samples: Samples, keys: Tensor) -> None:
        if not count(samples) or len(keys) != count(samples):
            raise ValueError(f"{count(samples)} samples and {len(keys)} keys: must be one each")
        self.samples, self._users = samples, samples["user"]
        # Of keys of length one the closest are those with the largest cosine; scikit-learn has a
        # fast kernel for the distance, none for the cosine.
        self._index = NearestNeighbors(algorithm="brute", metric="euclidean").fit(keys.numpy())
        self._sorted_users, self._by_user = self._users.sort(stable=True)
        is_liked = samples["label"] > 0
        pairs = torch.stack([self._users[is_liked], samples["item"][is_liked]], 1)
        self._likers, self._liked = pairs.unique(dim=0).unbind(1)

    def nearest(self, keys: Tensor, each: int, without_user: int) -> Tensor:
        """Return the ``each`` samples closest to every key (K, D), the closest of all first.

        A sample close to several keys is found once, so there are K * each at most. Raises
        ValueError unless ``each`` is 1 or more.
        """
        if each < 1:
            raise ValueError(f"each={each}: must be 1 or more")
        if not len(keys):
            return torch.empty(0, dtype=torch.long)
        asked = min(each + len(self.of_user(without_user)), len(self._users))
        with threadpool_limits(1):  # which of equals are found would depend on the threads
            distances, positions = self._index.kneighbors(keys.numpy(), asked)
        is_other = self._users.numpy()[positions] != without_user
        is_close = is_other & (is_other.cumsum(1) <= each)
        order = np.lexsort((positions[is_close], distances[is_close]))
        found, first = np.unique(positions[is_close][order], return_index=True)
        return torch.from_numpy(found[first.argsort()])

    def of_user(self, user: int) -> Tensor:
        """Return the positions of a user's own samples, in order."""
        start, end = torch.searchsorted(self._sorted_users, torch.tensor([user, user + 1]))
        return self._by_user[start:end]

    def similar_users(self, liked: Tensor, without_user: int) -> Tensor:
        """Return the users who like some of the items ``liked``, the most similar first.

        Similar is how many items two users both like, of all that one of them likes (Jaccard);
        equals are in the order of their numbers.
        """
        liked = liked.unique()
        is_shared = torch.isin(self._liked, liked)
        shared = torch.bincount(self._likers, is_shared)
        either = torch.bincount(self._likers) + len(liked) - shared
        similarity = shared / either
        similarity[without_user : without_user + 1] = 0
        order = similarity.argsort(descending=True, stable=True)
        return order[: int((similarity > 0).sum())]

    def of_similar_users(self, liked: Tensor, most: int, without_user: int) -> Tensor:
        """Return ``most`` samples of those :meth:`similar_users` names, user after user."""
        found = torch.empty(0, dtype=torch.long)
        for user in self.similar_users(liked, without_user).tolist():
            if len(found) >= most:
                break
            found = torch.cat([found, self.of_user(user)])
        return found[:most]

    def random(self, most: int, without_user: int, generator: torch.Generator) -> Tensor:
        """Return ``most`` samples drawn without replacement."""
        others = (self._users != without_user).nonzero().squeeze(1)
        return others[torch.randperm(len(others), generator=generator)[:most]]
