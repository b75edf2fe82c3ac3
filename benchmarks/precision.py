r"""How far the image gradient turns where networks compute in bfloat16, with fresh networks and with trained ones.

    python benchmarks/precision.py                                     # digits_ipc1 as it ships
    python benchmarks/precision.py --recipe cifar10_ipc10 --source <folder with CIFAR-10> \
        --pool convnet3_narrow,vit_micro,resnet_narrow

A condenser in float32 makes all image steps of one outer iteration. Before the first and after the last, the gradient
of every class is computed once more with each network alone in bfloat16, and with all of them. Prints a Markdown table
of cosines to float32: of each target's derivative with respect to the stored images, and of their balanced sum, by
which the images move; over all classes, in brackets that of the worst class.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click
import torch
import torch.nn.functional as F
from data import recipe_on
from torch import Tensor

from hmdc_hub.condense.batches import RealImages
from hmdc_hub.condense.class_gradient import plain_attention
from hmdc_hub.condense.hand import Hand
from hmdc_hub.condense.images import StoredImages
from hmdc_hub.condense.loop import Condenser
from hmdc_hub.condense.match import image_derivatives
from hmdc_hub.condense.members import Members
from hmdc_hub.condense.pool import Pool
from hmdc_hub.condense.team import Threads
from hmdc_hub.condense.views import draw_view
from hmdc_hub.models import PoolModel, build_for
from hmdc_hub.provenance import device_name
from hmdc_hub.sources import load_source


@contextmanager
def reduced(networks: list[PoolModel]) -> Iterator[None]:
    """Let networks compute in bfloat16 for a while."""
    before = [net.spec for net in networks]
    for net in networks:
        net.spec = net.spec.model_copy(update={"precision": "bfloat16"})
    yield
    for net, spec in zip(networks, before, strict=True):
        net.spec = spec


def gradients(work: Condenser) -> Tensor:
    """Compute classes x (targets + 1) x numbers: each target's derivative, and their balanced sum."""
    objectives, found = work.pool.members.objectives, []
    for label in range(work.real.classes):
        rows, stored = work.real_batches[label], work.images.of(label).to(work.real.device)
        view = draw_view(work.spec, work.real.side, len(rows), work.seed, (work.outer, 0, label))
        leaf = stored.clone().requires_grad_()
        synthetic = view.synthetic(leaf, work.spec.factor)
        apart = image_derivatives(objectives, view.real(work.real.take(rows)), synthetic, label, None).gradients
        own = [torch.autograd.grad(synthetic, leaf, g, retain_graph=True)[0] for g in apart]
        weights = work.balance.weights(label).tolist()
        whole = torch.stack([w * g for w, g in zip(weights, own, strict=True)]).sum(0)
        found.append(torch.stack([g.flatten() for g in (*own, whole)]))
    return torch.stack(found)


@click.command()
@click.option("--recipe", default="digits_ipc1", show_default=True)
@click.option("--source", help="Data to use in place of the recipe's, such as a folder of parquet files.")
@click.option("--pool", help="Names in model_pool/, in place of the recipe's.")
@click.option("-o", "overrides", multiple=True, help="Of the recipe, such as condense.batch=32.")
@click.option("--device", default="cpu", show_default=True)
def main(recipe: str, source: str | None, pool: str | None, overrides: tuple[str, ...], device: str) -> None:
    """Measure and print."""
    resolved = recipe_on(source, recipe, [*overrides, *([f"pool=[{pool}]"] if pool else [])])
    place = torch.device(device)
    data, spec = load_source(resolved.source), resolved.condense
    real, threads = RealImages(data, spec, resolved.seed, place), Threads(place)
    networks = [build_for(model.model_copy(update={"precision": "float32"}), data).to(place) for model in resolved.pool]
    hand = Hand(spec, resolved.seed, real, Members(networks, spec, resolved.seed))
    condensing = Pool(hand, threads)
    rows = []
    with threads.one_each(), plain_attention():
        condensing.reset(0, real)
        pixels = torch.stack([hand.starting_images(label) for label in range(real.classes)])
        images = StoredImages.begin(range(real.classes), pixels, data)
        work = Condenser(spec, resolved.seed, real, condensing, images)
        work.choose_real_batches(range(real.classes), work.values())
        for stage in ("fresh", "trained"):
            if stage == "trained":
                for inner in range(spec.networks.reset_every):
                    work.step()
                    click.echo(f"image step {inner + 1} of {spec.networks.reset_every}", err=True)
                work.outer = 0  # the same views as before
            wanted = gradients(work)
            for chosen in [*([net] for net in networks), networks] if len(networks) > 1 else [networks]:
                with reduced(chosen):
                    got = gradients(work)
                each = F.cosine_similarity(got, wanted, dim=2)
                together = F.cosine_similarity(got.transpose(0, 1).flatten(1), wanted.transpose(0, 1).flatten(1), dim=1)
                names = " and ".join(net.spec.name for net in chosen)
                cells = [
                    f"{a:.4f} ({b:.4f})" for a, b in zip(together.tolist(), each.min(0).values.tolist(), strict=True)
                ]
                rows.append([stage, names, *cells])
    threads.close()
    targets = work.pool.members.objectives.names()
    steps = spec.networks.reset_every
    print(f"{resolved.name}; {steps} image steps; {device_name(place)}; torch {torch.__version__}\n")
    print(f"| networks | in bfloat16 | {' | '.join(targets)} | balanced sum |")
    print(f"|---|---|{'---:|' * (len(targets) + 1)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
