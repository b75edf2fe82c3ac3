from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import Tensor

from hmdc_hub import cluster, rng


def noise(*shape: int, key: int = 0) -> Tensor:
    return torch.randn(*shape, generator=rng.generator(0, "test", key))


def blobs(count: int, k: int, dims: int) -> Tensor:
    """Return points around k far centres, in turn."""
    return noise(count, dims, key=1) + 12 * noise(k, dims, key=2).repeat(-(-count // k), 1)[:count]


def run(points: Tensor, k: int, seed: int = 0, max_iter: int = 100) -> Tensor:
    return cluster.kmeans(points, k, rng.generator(seed, "kmeans"), max_iter=max_iter)


def distances(points: Tensor, centres: Tensor) -> Tensor:
    """Return exact squared distances P x k."""
    return (points.double()[:, None] - centres.double()[None]).square().sum(2)


def inertia(points: Tensor, centres: Tensor) -> float:
    return float(distances(points, centres).min(dim=1).values.sum())


@pytest.mark.parametrize(("k", "dims"), [(4, 2), (8, 16)])
def test_inertia_equals_scikit_learns_on_blobs(k: int, dims: int) -> None:
    points = blobs(300, k, dims)
    wanted = KMeans(k, n_init=10, random_state=0).fit(points.numpy()).inertia_
    best = min(inertia(points, run(points, k, seed)) for seed in range(10))
    assert best == pytest.approx(wanted, rel=1e-4)


def test_inertia_is_near_scikit_learns_where_there_are_no_blobs() -> None:
    points = noise(400, 8)
    wanted = KMeans(20, n_init=5, random_state=0).fit(points.numpy()).inertia_
    assert min(inertia(points, run(points, 20, seed)) for seed in range(5)) < 1.03 * wanted


def test_centres_rest_at_the_means_of_their_points() -> None:
    points = noise(200, 5)
    centres = run(points, 7)
    assigned = distances(points, centres).argmin(dim=1)
    means = torch.stack([points[assigned == i].mean(dim=0) for i in range(7)])
    torch.testing.assert_close(centres, means, rtol=0, atol=1e-5)


def test_a_result_follows_from_the_generator() -> None:
    points = noise(200, 5)
    assert torch.equal(run(points, 7, 1), run(points, 7, 1))
    assert not torch.equal(run(points, 7, 1), run(points, 7, 2))


def test_no_iterations_leave_the_start() -> None:
    points = noise(50, 3)
    start = run(points, 5, max_iter=0)
    assert distances(start, points).min(dim=1).values.max() < 1e-10
    assert inertia(points, run(points, 5, max_iter=1)) < inertia(points, start)


def test_the_start_takes_one_point_of_each_far_blob() -> None:
    points = torch.cat([noise(30, 4, key=i) + 1000 * torch.eye(4)[i] for i in range(4)])
    for seed in range(20):
        start = cluster._start(points - points.mean(0), 4, rng.generator(seed, "start"))
        assert sorted((start // 30).tolist()) == [0, 1, 2, 3]


def test_the_start_draws_in_proportion_to_squared_distance() -> None:
    points = torch.tensor([[0.0], [1.0], [3.0]])
    second = []
    for seed in range(3000):
        first, other = cluster._start(points, 2, rng.generator(seed, "start")).tolist()
        if first == 0:
            second.append(other)
    assert abs(len(second) / 3000 - 1 / 3) < 0.03
    assert abs(second.count(2) / len(second) - 0.9) < 0.03


@settings(deadline=None, max_examples=40)
@given(different=st.integers(1, 4), copies=st.integers(1, 4), seed=st.integers(0, 1000), offset=st.floats(-1e3, 1e3))
def test_the_start_is_distinct_and_takes_copies_last(different: int, copies: int, seed: int, offset: float) -> None:
    points = (noise(different, 6) + offset).repeat(copies, 1)
    points = points - points.mean(dim=0)
    start = cluster._start(points, len(points), rng.generator(seed, "start")).tolist()
    assert sorted(start) == list(range(len(points)))
    assert {index % different for index in start[:different]} == set(range(different))


def test_copies_are_taken_uniformly() -> None:
    points = torch.full((4, 2), 5.0)
    starts = [tuple(cluster._start(points, 2, rng.generator(seed, "start")).tolist()) for seed in range(2400)]
    assert len(set(starts)) == 12
    assert all(abs(starts.count(pair) - 200) < 70 for pair in set(starts))


def test_points_that_are_all_alike() -> None:
    points = torch.full((6, 3), 0.7)
    torch.testing.assert_close(run(points, 4), points[:4])


@pytest.mark.parametrize("k", [5, 9])
def test_as_many_clusters_as_points_or_more_are_the_points(k: int) -> None:
    points = noise(5, 3)
    centres = run(points, k)
    assert centres.shape == (5, 3)
    assert inertia(points, centres) < 1e-10
    assert sorted(cluster.nearest(points, centres, distinct=True).tolist()) == [0, 1, 2, 3, 4]


def test_an_empty_cluster_keeps_its_centre() -> None:
    points, centres = noise(6, 2), noise(3, 2, key=5)
    got = cluster._means(points, torch.tensor([0, 2, 0, 2, 0, 2]), centres)
    torch.testing.assert_close(got, torch.stack([points[::2].mean(0), centres[1], points[1::2].mean(0)]))


def test_far_from_zero_the_clusters_are_the_same() -> None:
    points = (noise(100, 4) * 1024).round() / 1024
    near, far = run(points, 6), run(points + 512, 6)
    torch.testing.assert_close(far - 512, near, rtol=0, atol=1e-3)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    points = noise(101, 4)
    whole, other = run(points, 6), noise(8, 4, key=3)
    picked = [cluster.nearest(points, other, distinct=distinct) for distinct in (False, True)]
    monkeypatch.setattr(cluster, "CHUNK", 150)
    torch.testing.assert_close(run(points, 6), whole)
    assert torch.equal(cluster.nearest(points, other), picked[0])
    assert torch.equal(cluster.nearest(points, other, distinct=True), picked[1])


def test_both_ways_to_sum_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    points, assigned = noise(101, 4), torch.arange(101) % 7
    monkeypatch.setattr(cluster, "CHUNK", 150)
    sums = cluster._sums_by_product(points, assigned, 9)
    means = cluster._means(points, assigned, torch.zeros(9, 4))  # on a CPU, where they are added by index
    torch.testing.assert_close(sums / assigned.bincount(minlength=9).clamp(min=1)[:, None], means)


def assert_first_nearest(chosen: int, points: Tensor, centre: Tensor, left: list[int]) -> None:
    """Check that a point is the first of those left that are nearest to a centre up to rounding.

    Whether one as far apart as the rounding that is allowed still counts is itself decided by rounding.
    """
    away = distances(points, centre[None])[:, 0]
    middle = points.double().mean(dim=0)
    norms = (points - middle).square().sum(1) + (centre - middle).square().sum()
    least = away[left].min()
    may, must = ([i for i in left if away[i] <= least + share * norms[i]] for share in (2e-5, 5e-6))
    assert chosen in may and chosen <= must[0]


@settings(deadline=None, max_examples=40)
@given(count=st.integers(1, 30), k=st.integers(1, 10), seed=st.integers(0, 1000))
def test_nearest_is_the_nearest(count: int, k: int, seed: int) -> None:
    points, centres = noise(count, 3, key=seed), noise(k, 3, key=seed + 1)
    for centre, chosen in zip(centres, cluster.nearest(points, centres).tolist(), strict=True):
        assert_first_nearest(chosen, points, centre, list(range(count)))


@settings(deadline=None, max_examples=40)
@given(count=st.integers(1, 12), k=st.integers(1, 14), seed=st.integers(0, 1000))
def test_distinct_centres_choose_in_order_among_what_is_left(count: int, k: int, seed: int) -> None:
    points, centres = noise(count, 2, key=seed), noise(k, 2, key=seed + 1)
    left = list(range(count))
    for centre, chosen in zip(centres[:count], cluster.nearest(points, centres, distinct=True).tolist(), strict=True):
        assert_first_nearest(chosen, points, centre, left)
        left.remove(chosen)


def test_ties_go_to_the_lowest_index() -> None:
    points = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    centres = torch.zeros(3, 2)
    assert cluster.nearest(points, centres).tolist() == [0, 0, 0]
    assert cluster.nearest(points, centres, distinct=True).tolist() == [0, 1, 2]


@pytest.mark.parametrize(("nearer", "wanted"), [(0.0, 0), (1e-6, 0), (2e-5, 1), (1e-3, 1)])
def test_what_is_nearer_by_more_than_rounding_is_taken(nearer: float, wanted: int) -> None:
    points = torch.tensor([[1.0, 0.0], [nearer - 1, 0.0]])
    assert cluster.nearest(points, torch.zeros(1, 2)).tolist() == [wanted]


@pytest.mark.parametrize("offset", [0.0, 10.0, -30.0])
def test_rounding_decides_nothing_between_two_points_and_their_mean(offset: float) -> None:
    points = noise(200, 64) + offset
    first, second = points[:100], points[100:]
    for mean in ((first + second) / 2, first / 2 + second / 2, first + (second - first) / 2):
        moved = mean * (1 + torch.finfo(torch.float32).eps * noise(100, 64, key=3).sign())
        assert cluster.nearest(points, moved).tolist() == list(range(100))
        assert cluster.nearest(points.flip(0), moved.flip(0)).tolist() == list(range(100))
        assert cluster.nearest(points, moved.repeat(2, 1), distinct=True).tolist() == list(range(200))


def generators(count: int) -> list[torch.Generator]:
    return [rng.generator(0, "kmeans", c) for c in range(count)]


def alone(classes: Sequence[Tensor], k: int, max_iter: int = 100) -> list[Tensor]:
    """Return the centres of each class by the form for one class."""
    gens = generators(len(classes))
    return [cluster.kmeans(points, k, gen, max_iter) for points, gen in zip(classes, gens, strict=True)]


def together(classes: Sequence[Tensor], k: int, max_iter: int = 100) -> list[Tensor]:
    return list(cluster._representatives(classes, k, generators(len(classes)), max_iter))


def assert_nearest(got: Sequence[Tensor], classes: Sequence[Tensor], centres: Sequence[Tensor]) -> None:
    """Check that the points are those nearest to the centres of their class, the first of those equally near."""
    for found, points, middle in zip(got, classes, centres, strict=True):
        assert found.dtype == torch.int64
        assert torch.equal(found, cluster.nearest(points, middle))


@pytest.mark.parametrize("max_iter", [0, 1, 2, 100])
@pytest.mark.parametrize("k", [1, 6, 10])
@pytest.mark.parametrize("sizes", [(60, 60, 60), (90, 33, 64, 7), (40,), (12, 1, 3, 50), (2, 5)], ids=str)
def test_classes_together_choose_as_each_alone(sizes: tuple[int, ...], k: int, max_iter: int) -> None:
    classes = [noise(size, 16, key=c) + 3 * c for c, size in enumerate(sizes)]
    assert_nearest(together(classes, k, max_iter), classes, alone(classes, k, max_iter))


def test_blobs_together_give_the_same_points_as_each_alone() -> None:
    classes = [blobs(size, 5, 16) for size in (100, 60, 73)]
    wanted = [cluster.nearest(*pair).tolist() for pair in zip(classes, alone(classes, 5), strict=True)]
    assert [found.tolist() for found in together(classes, 5)] == wanted


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 5)), min_size=1, max_size=5),
    k=st.integers(1, 12),
    max_iter=st.sampled_from([0, 1, 100]),
    offset=st.sampled_from([0.0, 1.0, -100.0]),
)
def test_copies_together_choose_as_each_alone(
    sizes: list[tuple[int, int]], k: int, max_iter: int, offset: float
) -> None:
    # At random places, so that no rounding decides between clusters.
    classes = [(noise(different, 6, key=c) + offset).repeat(copies, 1) for c, (different, copies) in enumerate(sizes)]
    assert_nearest(together(classes, k, max_iter), classes, alone(classes, k, max_iter))


def test_a_class_at_rest_waits_for_the_others() -> None:
    classes = [blobs(40, 4, 8), noise(400, 8)]
    found = [together(classes, 4, max_iter) for max_iter in range(20)]
    assert_nearest(found[-1], classes, alone(classes, 4, 19))
    assert all(torch.equal(at_rest, found[2][0]) for at_rest, _ in found[2:])
    assert not torch.equal(found[2][1], found[-1][1]) and not torch.equal(found[6][1], found[-1][1])


def test_an_empty_cluster_and_padding_leave_the_means_alone() -> None:
    points, centres = noise(2, 6, 3), noise(2, 4, 3, key=5)
    assigned = torch.tensor([[0, 2, 0, 2, 0, 2], [1, 1, 3, -1, -1, -1]])
    wanted = centres.clone()
    wanted[0, 0], wanted[0, 2] = points[0, ::2].mean(0), points[0, 1::2].mean(0)
    wanted[1, 1], wanted[1, 3] = points[1, :2].mean(0), points[1, 2]
    torch.testing.assert_close(cluster._means_together(points, assigned, centres), wanted)


def test_groups_hold_what_fits_with_classes_of_like_size_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "TOGETHER", 2400)
    # Without a GPU: on a CPU each class goes alone, with or without room.
    classes = [torch.empty(size, 8, device="meta") for size in (100, 20, 500, 30, 100, 100, 20)]
    assert list(cluster._groups(classes, 4)) == [[2], [0, 4, 5], [3, 1, 6]]
    monkeypatch.setattr(cluster, "CHUNK", 800)
    assert list(cluster._groups(classes, 4)) == [[2], [0, 4], [5, 3], [1, 6]]
    on_cpu = list(cluster._groups([noise(3, 8), noise(5, 8)], 4))
    assert on_cpu == [[1], [0]]
    assert list(cluster._groups([], 4)) == []


def test_representatives_come_in_the_order_of_the_classes() -> None:
    # Computed by size: class 4 first; several at a time on a GPU, below.
    classes = [noise(size, 16, key=size) for size in (50, 51, 20, 3, 80)]
    got = cluster.representatives(classes, 6, generators(5), max_iter=7)
    assert_nearest(got, classes, alone(classes, 6, max_iter=7))


@pytest.mark.gpu
def test_a_gpu_gives_the_same_twice() -> None:
    points = noise(2000, 64).cuda()
    assert torch.equal(run(points, 40), run(points, 40))


@pytest.mark.gpu
def test_a_gpu_clusters_classes_together_as_a_cpu_does_one_by_one() -> None:
    classes = [noise(size, 64, key=size) for size in (300, 200, 310, 5)]
    on_gpu = [points.cuda() for points in classes]
    got = [cluster.representatives(on_gpu, 20, generators(4)) for _ in range(2)]
    assert all(torch.equal(*pair) for pair in zip(*got, strict=True))
    assert_nearest(got[0], classes, alone(classes, 20))


def test_centres_of_weighted_points_rest_at_their_weighted_means() -> None:
    points, weights = noise(200, 5), noise(200, key=7).exp()
    centres = cluster.kmeans(points, 7, rng.generator(0, "kmeans"), weights=weights)
    assigned = distances(points, centres).argmin(dim=1)
    members = [assigned == i for i in range(7)]
    means = torch.stack([(weights[m, None] * points[m]).sum(0) / weights[m].sum() for m in members])
    torch.testing.assert_close(centres, means, rtol=0, atol=1e-5)
    assert not torch.allclose(centres, run(points, 7))


def test_weights_of_one_change_nothing_but_rounding() -> None:
    points = noise(200, 5)
    weighted = cluster.kmeans(points, 7, rng.generator(0, "kmeans"), weights=torch.ones(200))
    torch.testing.assert_close(weighted, run(points, 7))


def test_weighted_classes_together_are_those_alone() -> None:
    points = [noise(count, 4, key=count) for count in (30, 50, 41)]
    weights = [noise(len(each), key=100 + len(each)).exp() for each in points]

    def gens() -> list[torch.Generator]:
        return [rng.generator(0, "class", c) for c in range(3)]

    alone = cluster.representatives(points, 6, gens(), weights=weights)
    together = cluster._representatives(points, 6, gens(), 100, weights)
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)
