r"""What becomes of mutual distillation while a run goes on: step by step, for each of its forms.

    python benchmarks/distillation.py                                  # digits_ipc1 as it ships, all forms
    python benchmarks/distillation.py --recipe cifar10_ipc10 --source <folder with CIFAR-10> \
        --pool convnet3_narrow,vit_micro --form paper --steps 16

The run is the condenser's own, with its trainings. Before an image step, and after each: the matching loss of
`distill/...` and its share of the image gradient (mean over classes; weights of the balance as they are then), always
on the same views; and on one fixed minibatch of real images mutual distillation itself, and the variance over these
images of what P makes of them, mean over taps and dimensions (and positions), semantic and spatial, of the first and of
the second model. `random` is the paper's form with P and Q as they were drawn; all forms begin with the same networks,
images and P. Of a pool of more than two, the first pair is shown.

Prints Markdown tables.
"""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import get_args

import click
import torch
from data import first_classes, recipe_on
from stepper import Stepper

from hmdc_hub.condenser.hmdc import HMDC
from hmdc_hub.condenser.matching import accumulate, balance_weights, combine, image_gradients
from hmdc_hub.provenance import device_name
from hmdc_hub.schema import Distillation
from hmdc_hub.sources import load_source, resolve_source
from hmdc_hub.store.files import write_json_atomic

FORMS: dict[str, list[str]] = {
    form: [f"condense.distillation={form}"] if form != "paper" else [] for form in get_args(Distillation)
} | {"random": ["condense.projection.batches_per_step=0"]}
DRAW = (0, 4)  # the image step whose views are looked at, whichever step it is
PROBED = 256  # real images in the fixed minibatch
COLUMNS = ("matching loss", "share, %", "distillation", "semantic 1", "spatial 1", "semantic 2", "spatial 2")


def probe(hmdc: HMDC, images: torch.Tensor) -> dict[str, float]:
    """Measure everything in the state that a run is in; changes nothing."""
    return dict(zip(COLUMNS, [*_matching(hmdc), *_projected(hmdc, images)], strict=True))


def _matching(hmdc: HMDC) -> tuple[float, float]:
    """Give the first pair's matching loss, and its share of the image gradient in percent."""
    real, labels, size = hmdc.real, list(range(hmdc.real.classes)), hmdc.sizes[0]
    place = [name.startswith("distill/") for name in hmdc.networks.objectives.names()].index(True)
    losses, shares = [], []
    for few in torch.split(torch.tensor(labels), hmdc.at_once.classes):
        rows = few.tolist()
        drawn = real.draw_classes(rows, rows, [hmdc.real_batches[c] for c in rows], DRAW, [size.ipc])
        (packed,) = hmdc.execution.upload([drawn])
        classes = packed.tensors
        leaf = size.images.pixels[classes.rows].requires_grad_()
        synthetic = real.view_synthetic(classes, leaf)
        given = real.view_real(classes), classes.shares, synthetic.detach(), classes.labels
        loss, found = image_gradients(hmdc.networks.objectives, *given, None, hmdc.at_once.images)
        each = [torch.autograd.grad(synthetic, leaf, one, retain_graph=True)[0] for one in found.unbind(1)]
        gradients, accumulated = torch.stack(each, 1), size.accumulated[classes.rows]
        if not hmdc.inner:  # as the step to come does
            accumulated = accumulate(accumulated, gradients)
        weights = balance_weights(accumulated) if hmdc.spec.balance else torch.ones_like(accumulated)
        losses.append(loss[:, place])
        shares.append(combine(gradients, weights)[1])
    share = torch.cat(shares).mean(0)
    return float(torch.cat(losses).mean()), float(100 * share[place] / share.sum())


@torch.no_grad()
def _projected(hmdc: HMDC, images: torch.Tensor) -> list[float]:
    """Give mutual distillation of the first pair, and the variances of what its P makes of the images."""
    pair, networks = hmdc.networks.objectives.pairs[0], hmdc.networks.networks
    features = [networks[m].run_with({}, networks[m].prepare(images)) for m in (pair.first, pair.second)]
    found = [float(pair.distillation(*features).mean())]
    for side, seen in enumerate(features):
        varies = pair.distillation.project(side, seen.taps).var(0, correction=0)  # L x (1 + s s) x d
        found += [float(varies[:, 0].mean()), float(varies[:, 1:].mean())]
    return found


@click.command()
@click.option("--recipe", default="digits_ipc1", show_default=True)
@click.option("--source", help="Data to use in place of the recipe's, such as a folder of parquet files.")
@click.option("--pool", help="Names in model_pool/, in place of the recipe's.")
@click.option("--classes", type=int, help="The first so many of the source.")
@click.option("-o", "overrides", multiple=True, help="Of the recipe, such as condense.batch=32.")
@click.option("--form", "forms", multiple=True, type=click.Choice(list(FORMS)), help="[default: all]")
@click.option("--steps", default=16, show_default=True, help="Image steps; at most to the first reset.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="JSON file with every number.")
def main(
    recipe: str,
    source: str | None,
    pool: str | None,
    classes: int | None,
    overrides: tuple[str, ...],
    forms: tuple[str, ...],
    steps: int,
    device: str,
    out: Path | None,
) -> None:
    """Measure and print."""
    wishes = [*overrides, *([f"pool=[{pool}]"] if pool else [])]
    found: dict[str, list[dict[str, float]]] = {}
    for form in forms or FORMS:
        resolved = recipe_on(source, recipe, [*wishes, *FORMS[form]])
        loaded = first_classes(load_source(resolve_source(resolved.source)), classes)
        began = time.monotonic()
        with closing(Stepper(resolved, loaded, torch.device(device))) as stepper:
            hmdc = stepper.hmdc
            images = hmdc.real.read(
                torch.randperm(len(hmdc.real.labels), generator=torch.Generator().manual_seed(0))[:PROBED]
            )
            rows = found[form] = [probe(hmdc, images)]
            for _ in zip(range(min(steps, resolved.condense.networks.reset_every)), hmdc.run(), strict=False):
                rows.append(probe(hmdc, images))
        click.echo(f"\n{form}, {len(rows) - 1} image steps, {time.monotonic() - began:.0f} s\n")
        click.echo("| step | " + " | ".join(COLUMNS) + " |\n|---|" + "---:|" * len(COLUMNS))
        for step, row in enumerate(rows):
            click.echo(f"| {step} | " + " | ".join(f"{row[name]:.3g}" for name in COLUMNS) + " |")
    click.echo(
        f"\n{recipe}, pool {[spec.name for spec in resolved.pool]}, {device_name(torch.device(device))}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, one condensing run of each"
    )
    if out is not None:
        write_json_atomic(out, found)


if __name__ == "__main__":
    main()
