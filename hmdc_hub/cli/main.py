"""The entry point: a table of verbs whose modules are loaded when one is asked for.

Only click is imported here, so that `hmdc-hub --help` answers at once; a verb's module imports in turn what it needs
inside its functions, so that listing recipes never waits for torch.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from hmdc_hub import __version__
from hmdc_hub.errors import FormerNameWarning
from hmdc_hub.text import did_you_mean

# Where each command lives (a module of this package, which has it under its name), and its line in `hmdc-hub --help`.
VERBS = {
    "condense": ("condense", "Condense a dataset, score the result and package it."),
    "evaluate": ("evaluate", "Score a run, a published set, or anybody's images."),
    "compare": ("compare", "Put scored sets side by side."),
    "sweep": ("sweep", "Compare variants of a recipe at an equal budget."),
    "package": ("push", "Build what a Hub dataset will hold from a run."),
    "push": ("push", "Publish a run as a dataset on the Hugging Face Hub."),
    "pull": ("pull", "Get a verified copy of a published set as a folder."),
    "verify": ("verify", "Check a published set, a package or a run again."),
    "recipes": ("recipes", "List, show, copy and validate recipes."),
    "pool": ("pool", "List, show, copy and check the models that recipes name."),
    "init": ("init", "Write a recipe for a dataset of your own."),
    "runs": ("runs", "List, show and remove runs."),
    "env": ("env", "Print versions, devices and Hub settings, for bug reports."),
}

# What people try, who know other tools.
MEANT = {
    "run": ("condense", "runs"), "distill": ("condense",), "train": ("condense", "evaluate"),
    "score": ("evaluate",), "test": ("evaluate",), "check": ("verify", "recipes validate", "pool check"),
    "upload": ("push",), "publish": ("push",), "download": ("pull",), "diff": ("compare",), "create": ("init",),
    "list": ("recipes ls", "pool ls", "runs ls"), "ls": ("recipes ls", "pool ls", "runs ls"),
    "show": ("recipes show", "pool show", "runs show"), "rm": ("runs rm",), "models": ("pool ls",),
}  # fmt: skip

EPILOG = """\b
hmdc-hub recipes ls                  what can be condensed
hmdc-hub condense digits_ipc1        the whole job: condense, score, package
hmdc-hub condense RECIPE --dry-run   what it would cost
hmdc-hub push                        publish the newest finished run on the Hub

Exit status: 0 done, 2 something you wrote is wrong (nothing was written), 1 it failed while running, 130 or 143
stopped by you."""


class LazyGroup(click.Group):
    """A group whose commands are the lines of `VERBS`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name every verb, in the table's order."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a verb's module and take its command from it; None for a name that is not in the table."""
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"hmdc_hub.cli.{VERBS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or name the verbs that are spelled alike (click knows only loaded ones)."""
        name = args[0]
        if name in MEANT:
            quoted = [repr(verb) for verb in MEANT[name]]
            raise click.UsageError(f"No such command {name!r}. {did_you_mean(quoted).capitalize()}", ctx)
        if name not in VERBS and not name.startswith("-"):
            raise click.NoSuchCommand(name, possibilities=VERBS, ctx=ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help lines of the table: click would import every verb for them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in VERBS.items()])


@click.group(cls=LazyGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="hmdc-hub %(version)s")
def cli() -> None:
    """Condense image datasets with HMDC, score them, publish them on the Hugging Face Hub."""


def run(arguments: Sequence[str]) -> int:
    """Run one command line, of what stands after the program's name; gives the exit status: 0, 1, 2, 130 or 143."""
    # click's own `main` would swallow every broken pipe, also that of a worker process, and call a Ctrl-C "Aborted!".
    try:
        with _former_names_as_notes(), cli.make_context("hmdc-hub", list(arguments)) as context:
            cli.invoke(context)
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except (Exception, KeyboardInterrupt) as error:
        from hmdc_hub.cli._output import present

        return present(error)
    return 0


@contextmanager
def _former_names_as_notes() -> Iterator[None]:
    """Say once what a recipe calls by a former name; other warnings go where they went."""
    told, show_others = set(), warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
        if not issubclass(category, FormerNameWarning):
            show_others(message, category, *rest, **more)
        elif str(message) not in told:
            from hmdc_hub.cli import _output as output

            told.add(str(message))
            output.talk(str(message), "note:")

    with warnings.catch_warnings(action="always", category=FormerNameWarning):
        warnings.showwarning = show
        yield


def main() -> None:
    """Run the command line of this process and exit with its status."""
    if "_HMDC_HUB_COMPLETE" in os.environ:
        cli.main(prog_name="hmdc-hub")
    if not sys.stderr.isatty():
        # Bars of the Hub's libraries, read when those are imported: a log file has no use for them.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if bars_off := os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", bars_off)
    status = run(sys.argv[1:])
    if status > 128:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # an impatient second Ctrl-C must not break the ending
    sys.exit(status)
