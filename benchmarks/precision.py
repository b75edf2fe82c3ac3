r"""How far the image gradient turns where networks compute in bfloat16, with fresh networks and with trained ones.

    python benchmarks/precision.py                                     # digits_ipc1 as it ships
    python benchmarks/precision.py --recipe cifar10_ipc10 --source <folder with CIFAR-10> \
        --pool convnet3_narrow,vit_micro,resnet_narrow

A condenser in float32 makes all image steps of one outer iteration. Before the first and after the last, the gradient
of every class is computed once more with each network alone in bfloat16, and with all of them. Prints a Markdown table
of cosines to float32: of each objective's derivative with respect to the synthetic images, and of their balanced sum,
by which the images move; over all classes, in brackets that of the worst class.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

import click
import torch
import torch.nn.functional as F
from data import recipe_on
from stepper import Stepper
from torch import Tensor

from hmdc_hub.condenser.hmdc import HMDC
from hmdc_hub.condenser.matching import balance_weights, combine, image_gradients
from hmdc_hub.models import PoolModel
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


def gradients(hmdc: HMDC) -> Tensor:
    """Compute classes x (objectives + 1) x numbers: each objective's derivative, and their balanced sum."""
    found, (size,) = [], hmdc.sizes
    for label in range(hmdc.real.classes):
        drawn = hmdc.real.draw_classes([label], [label], [hmdc.real_batches[label]], (0, 0), [size.ipc])
        stored = size.images.pixels[drawn.rows].requires_grad_()
        real, synthetic = hmdc.real.view_real(drawn), hmdc.real.view_synthetic(drawn, stored)
        given = (real, drawn.shares, synthetic.detach(), drawn.labels)
        _, apart = image_gradients(hmdc.networks.objectives, *given, None, hmdc.at_once.images)
        own = torch.cat([torch.autograd.grad(synthetic, stored, g, retain_graph=True)[0] for g in apart.unbind(1)])
        whole, _ = combine(own[None], balance_weights(size.accumulated[drawn.rows]))
        found.append(torch.cat([own.flatten(1), whole.flatten(1)]))
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
    exact = [model.model_copy(update={"precision": "float32"}) for model in resolved.pool]
    rows = []
    with closing(Stepper(resolved.model_copy(update={"pool": exact}), data, place)) as stepper:
        hmdc = stepper.hmdc
        networks = hmdc.networks.networks
        for stage in ("fresh", "trained"):
            if stage == "trained":
                chosen_before = hmdc.real_batches
                for inner, _ in zip(range(spec.networks.reset_every), hmdc.run(), strict=False):
                    click.echo(f"image step {inner + 1} of {spec.networks.reset_every}", err=True)
                hmdc.real_batches = chosen_before
            wanted = gradients(hmdc)
            for chosen in [*([net] for net in networks), networks] if len(networks) > 1 else [networks]:
                with reduced(chosen):
                    got = gradients(hmdc)
                each = F.cosine_similarity(got, wanted, dim=2)
                together = F.cosine_similarity(got.transpose(0, 1).flatten(1), wanted.transpose(0, 1).flatten(1), dim=1)
                names = " and ".join(net.spec.name for net in chosen)
                cells = [
                    f"{a:.4f} ({b:.4f})" for a, b in zip(together.tolist(), each.min(0).values.tolist(), strict=True)
                ]
                rows.append([stage, names, *cells])
        objectives = hmdc.networks.objectives.names()
    steps = spec.networks.reset_every
    print(f"{resolved.name}; {steps} image steps; {device_name(place)}; torch {torch.__version__}\n")
    print(f"| networks | in bfloat16 | {' | '.join(objectives)} | balanced sum |")
    print(f"|---|---|{'---:|' * (len(objectives) + 1)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
