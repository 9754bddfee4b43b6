"""Retrieval metrics in both directions, with ties by mean rank and several captions per video."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

RECALL_AT = (1, 5, 10, 50)


def ranks(similarity: Float[Tensor, "Q G"], target: Int[Tensor, "Q"]) -> Float[Tensor, "Q"]:
    """Rank of the right gallery item of every query; 1 is best.

    Ties take the mean rank: the average over all orders of the tied items, so that a model that gives every
    item the same similarity has rank (G + 1) / 2 and cannot profit from the order of the data set.

    Args:
        similarity: queries × gallery.
        target: index of the right gallery item of each query.

    Returns:
        float64 ranks in [1, G]; halves come from ties.

    Raises:
        ValueError: a similarity is NaN, or the targets do not fit the matrix.

    Examples:
        >>> ranks(torch.tensor([[0.9, 0.1], [0.5, 0.5]]), torch.tensor([0, 1])).tolist()
        [1.0, 1.5]
    """
    _require_valid(similarity, target, "target", similarity.shape[1])

    own = similarity.gather(1, target[:, None])  # [Q, 1]
    better = (similarity > own).sum(dim=1)
    tied = (similarity == own).sum(dim=1) - 1  # the right item always ties with itself
    return 1.0 + better.double() + 0.5 * tied.double()


def retrieval_metrics(ranks: Float[Tensor, "Q"]) -> dict[str, float]:
    """R@1, R@5, R@10, R@50 in percent (share of ranks ≤ k), median rank MdR and mean rank MnR.

    Raises:
        ValueError: there are no ranks.
    """
    if ranks.numel() == 0:
        raise ValueError("retrieval_metrics: expected at least one rank, got none; the split has no queries")

    values = ranks.double().sort().values
    metrics = {f"R@{k}": 100.0 * (values <= k).double().mean().item() for k in RECALL_AT}

    # Of an even number, the mean of the two in the middle.
    lower = values[(len(values) - 1) // 2]
    upper = values[len(values) // 2]
    return metrics | {"MdR": 0.5 * (lower + upper).item(), "MnR": values.mean().item()}


def text_to_video(similarity: Float[Tensor, "Q G"], caption_clip: Int[Tensor, "Q"]) -> dict[str, float]:
    """Every caption is a query of its own; the gallery is the clips."""
    return retrieval_metrics(ranks(similarity, caption_clip))


def video_to_text_best_similarity(similarity: Float[Tensor, "Q G"], caption_clip: Int[Tensor, "Q"]) -> dict[str, float]:
    """Video→text where the gallery is the clips' caption sets, each scored by its most similar caption.

    This is CLIP4Clip's and EMCL-Net's definition: a query competes with one score per other clip.
    """
    return retrieval_metrics(video_to_text_ranks_by_similarity(similarity, caption_clip))


def video_to_text_best_rank(similarity: Float[Tensor, "Q G"], caption_clip: Int[Tensor, "Q"]) -> dict[str, float]:
    """Video→text where the gallery is all captions, and the best rank among the clip's own captions counts.

    This is the definition of CE, MMT and image–text retrieval: a query competes with every caption of the other
    clips, so it is never easier than `video_to_text_best_similarity`. R@1 agrees unless there are ties.
    """
    return retrieval_metrics(video_to_text_ranks_by_rank(similarity, caption_clip))


def chance(gallery: int) -> dict[str, float]:
    """The metrics of a model that knows nothing, where one item of the gallery is right for each query.

    The k first places are taken by k of G items, so that R@k is 100·k/G. This holds for captions that look for clips,
    and on average over clips for sets of captions of any sizes (`video_to_text_best_similarity`): however much larger
    some sets are, k of them have the k first places.

    Raises:
        ValueError: there is nothing to find.

    Examples:
        >>> chance(4)["R@1"], chance(4)["MdR"]
        (25.0, 2.5)
    """
    if gallery < 1:
        raise ValueError(f"chance: gallery is {gallery}, expected 1 or more items")
    recalls = {f"R@{k}": 100.0 * min(k, gallery) / gallery for k in RECALL_AT}
    return recalls | {"MdR": (gallery + 1) / 2, "MnR": (gallery + 1) / 2}


def chance_of_best_rank(caption_clip: Int[Tensor, "Q"]) -> dict[str, float]:
    """The same for `video_to_text_best_rank`: a clip with m of Q captions has m tries, and the first of them counts.

    None of m captions is among the first k of Q in C(Q − m, k) of C(Q, k) orders; the best of m ranks is
    (Q + 1) / (m + 1) on average. Clips are averaged over, and MdR is the median over all of them.

    Raises:
        ValueError: there are no captions.
    """
    captions = len(caption_clip)
    if captions == 0:
        raise ValueError("chance_of_best_rank: expected at least one caption, got none; the split has no queries")
    owned = torch.bincount(caption_clip)
    sizes, clips = owned[owned > 0].unique(return_counts=True)
    share = clips.double() / clips.sum()

    # The share of clips whose best rank is k or less, for each k from 0 on: a product over the places before.
    k = torch.arange(captions, dtype=torch.float64)
    left = ((captions - sizes[:, None] - k).clamp_min(0) / (captions - k)).cumprod(1)
    within = torch.cat([torch.zeros(1, dtype=torch.float64), 1 - share @ left])

    recalls = {f"R@{k}": 100.0 * within[min(k, captions)].item() for k in RECALL_AT}
    # Of two ranks between which half of the clips lies, their mean. Rounding must not move a half.
    lower = int((within >= 0.5 - 1e-12).nonzero()[0])
    upper = int((within > 0.5 + 1e-12).nonzero()[0])
    mean = (share * (captions + 1) / (sizes + 1)).sum().item()
    return recalls | {"MdR": (lower + upper) / 2, "MnR": mean}


def video_to_text_ranks_by_similarity(
    similarity: Float[Tensor, "Q G"], caption_clip: Int[Tensor, "Q"]
) -> Float[Tensor, "G"]:
    """Rank of each clip's own caption set among the caption sets of all clips.

    Raises:
        ValueError: a similarity is NaN, the clips of the captions do not fit the matrix, or a clip has no caption.
    """
    clips = similarity.shape[1]
    _require_valid(similarity, caption_clip, "caption_clip", clips)
    _require_captions(caption_clip, clips)

    best = similarity.new_full((clips, clips), float("-inf"))  # [clip as query, clip as owner of captions]
    owner = caption_clip[None, :].expand(clips, -1)
    best.scatter_reduce_(1, owner, similarity.T, reduce="amax")
    return ranks(best, torch.arange(clips, device=similarity.device))


def video_to_text_ranks_by_rank(similarity: Float[Tensor, "Q G"], caption_clip: Int[Tensor, "Q"]) -> Float[Tensor, "G"]:
    """Best rank among each clip's own captions in the list of all captions.

    With m own and n foreign captions tied at the best own similarity, the first own one is preceded by n / (m + 1)
    foreign ones on average over the orders of the tie; a caption that a clip has twice costs it nothing.

    Raises:
        ValueError: a similarity is NaN, the clips of the captions do not fit the matrix, or a clip has no caption.
    """
    clips = similarity.shape[1]
    _require_valid(similarity, caption_clip, "caption_clip", clips)
    _require_captions(caption_clip, clips)

    own = caption_clip[None, :] == torch.arange(clips, device=similarity.device)[:, None]  # [G, Q]
    by_clip = similarity.T  # [G, Q]
    best = by_clip.masked_fill(~own, float("-inf")).amax(dim=1, keepdim=True)  # [G, 1]
    better = (by_clip > best).sum(dim=1)

    tied = by_clip == best
    foreign = (tied & ~own).sum(dim=1)
    mine = (tied & own).sum(dim=1)
    return 1.0 + better.double() + foreign.double() / (mine.double() + 1.0)


def _require_valid(similarity: Tensor, target: Tensor, name: str, gallery: int) -> None:
    if similarity.ndim != 2 or target.shape != similarity.shape[:1]:
        raise ValueError(
            f"{name} must hold one index per row of similarity: expected shape [{similarity.shape[0]}] beside a "
            f"[queries, gallery] matrix, got {list(target.shape)} beside {list(similarity.shape)}; pass the matrix "
            "with one row per caption"
        )
    if target.numel() and (int(target.min()) < 0 or int(target.max()) >= gallery):
        raise ValueError(
            f"{name} must be in [0, {gallery - 1}], the columns of similarity; got values from {int(target.min())} "
            f"to {int(target.max())}; is the matrix transposed? It needs captions as rows and clips as columns"
        )
    if torch.isnan(similarity).any():
        count = int(torch.isnan(similarity).sum())
        raise ValueError(
            f"similarity must not hold NaN, got {count} of {similarity.numel()}; a NaN compares as neither better nor "
            "worse and would count as a hit. Look for non-finite features or a diverged training run"
        )


def _require_captions(caption_clip: Tensor, clips: int) -> None:
    missing = (torch.bincount(caption_clip, minlength=clips) == 0).nonzero().flatten().tolist()
    if missing:
        raise ValueError(
            f"caption_clip must name every clip at least once for video→text, got no caption for {len(missing)} of "
            f"{clips} clips (first: {missing[:5]}); leave clips without captions out of the split"
        )
