"""The verb table, help, and how every kind of error ends the program."""

from __future__ import annotations

import importlib
import io
import sys
from pathlib import Path

import click
import pytest

from hmdc_hub import errors
from hmdc_hub.cli import main
from tests.cli.conftest import Call


def test_help_is_data(call: Call) -> None:
    done = call("--help")
    assert done.status == 0 and done.err == ""
    for verb in main.VERBS:
        assert f"\n  {verb} " in done.out
    assert "hmdc-hub recipes ls" in done.out and "Exit status" in done.out


def test_version(call: Call) -> None:
    assert call("--version").out == "hmdc-hub 0.1.0\n"


def test_no_arguments_is_a_usage_error_with_help(call: Call) -> None:
    done = call()
    assert done.status == 2 and done.out == "" and "Commands:" in done.err and "error" not in done.err


@pytest.mark.parametrize("verb", main.VERBS)
def test_table_and_command_say_the_same(verb: str) -> None:
    module, line = main.VERBS[verb]
    command = getattr(importlib.import_module(f"hmdc_hub.cli.{module}"), verb)
    assert isinstance(command, click.Command)
    assert command.name == verb and command.short_help == line
    assert len(line) < 66, "one line at 80 columns"


@pytest.mark.parametrize("verb", main.VERBS)
def test_every_verb_has_help(call: Call, verb: str) -> None:
    done = call(verb, "--help")
    assert done.status == 0 and done.out.startswith(f"Usage: hmdc-hub {verb}")
    assert all(len(line) <= 80 for line in done.out.splitlines())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["condnse"], "No such command 'condnse'. Did you mean 'condense'?\nsee: hmdc-hub --help"),
        (["recipe", "ls"], "Did you mean 'recipes'?"),
        (["xyzzy"], "No such command 'xyzzy'.\nsee: hmdc-hub --help"),
        (["--verison"], "No such option '--verison'. Did you mean '--version'?"),
        (["recipes", "list"], "No such command 'list'. Did you mean 'ls'?\nsee: hmdc-hub recipes --help"),
        (["recipes", "validat"], "Did you mean 'validate'?"),
        (["env", "--jsn"], "No such option '--jsn'. Did you mean '--json'?"),
        (["condense"], "Missing argument 'RECIPE'.\nsee: hmdc-hub condense --help"),
        (["condense", "a", "--resume", "--force"], "give one of them"),
        (["condense", "a", "--workers", "0"], "0 is not in the range x>=1"),
        (["condense", "digits_ipc1", "condense.ipc=2"], "(condense.ipc=2). Did you mean -o condense.ipc=2?"),
        (["condense", "b=2", "digits_ipc1"], "(b=2). Did you mean -o b=2?"),
        (["condense", "digits_ipc1", "other"], "Got unexpected extra argument (other)."),
        (["recipes", "validate", "digits_ipc1", "seed=2"], "Did you mean -o seed=2?"),
        (["recipes", "show", "digits_ipc1", "seed=2"], "Did you mean -o seed=2?"),
        (["run", "digits_ipc1"], "No such command 'run'. Did you mean 'condense' or 'runs'?\nsee: hmdc-hub --help"),
        (["list"], "Did you mean 'recipes ls', 'pool ls' or 'runs ls'?"),
        (["condense", "digits_ipc1", "--ipc", "5"], "No such option '--ipc'. Did you mean -o condense.ipc=5?\nsee: "),
        (["condense", "--ipc=5", "digits_ipc1"], "Did you mean -o condense.ipc=5?"),
        (["condense", "digits_ipc1", "--condense.ipc", "5"], "Did you mean -o condense.ipc=5?"),
        (["condense", "digits_ipc1", "--seeds"], "Did you mean -o evaluate.seeds=VALUE?"),
        (["condense", "digits_ipc1", "--seed", "--json"], "Did you mean -o seed=VALUE?"),
        (["recipes", "show", "digits_ipc1", "--test-fraction", "0.2"], "Did you mean -o source.test_fraction=0.2?"),
        (
            ["condense", "digits_ipc1", "--batch", "8"],
            "Did you mean -o condense.batch=8, -o condense.networks.batch=8 or -o evaluate.batch=8?",
        ),
        (["evaluate", "x", "--batch", "8"], "Did you mean -o evaluate.batch=8?"),
        (["evaluate", "x", "evaluate.epochs=8"], "Did you mean -o evaluate.epochs=8?"),
        (["evaluate", "x", "--ipc", "5"], "No such option '--ipc'. (Did you mean"),
        (
            ["condense", "digits_ipc1", "-o", "evaluate.models=[mlp,", "vit_tiny]"],
            "took a list apart at its spaces. Quote it: -o 'evaluate.models=[mlp, vit_tiny]'",
        ),
        (["condense", "-o", "pool=[{name:", "a},", "vit]", "digits_ipc1"], "Quote it: -o 'pool=[{name: a}, vit]'"),
    ],
)
def test_slips_of_the_keyboard(call: Call, arguments: list[str], words: str) -> None:
    done = call(*arguments)
    assert done.status == 2 and done.out == ""
    assert done.err.startswith("error: ") and words in done.err


OURS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.HmdcError)]


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(as_json: bool) -> None:
        raise error

    from hmdc_hub.cli.env import env

    monkeypatch.setattr(env, "callback", fail)


def made(kind: type[errors.HmdcError]) -> errors.HmdcError:
    if issubclass(kind, errors.RecipeError):
        return kind("a.yaml", [errors.Problem("seed", 3, "-1", "must be at least 0", "seed: 0")], hint="do that")
    if issubclass(kind, errors.Interrupted):
        return kind("what happened", signal_number=15, hint="do that")
    return kind("what happened", hint="do that")


@pytest.mark.parametrize("kind", OURS)
def test_our_errors_have_a_status_and_no_traceback(
    call: Call, monkeypatch: pytest.MonkeyPatch, kind: type[errors.HmdcError]
) -> None:
    raising(monkeypatch, made(kind))
    done = call("env")
    usage, stopped = issubclass(kind, errors.UsageError), issubclass(kind, errors.Interrupted)
    assert done.status == (143 if stopped else 2 if usage else 1)
    assert done.out == "" and done.err.endswith("\ndo that\n") and "Traceback" not in done.err
    assert done.err.startswith("what happened" if stopped else "error: ")


def test_recipe_problems_are_all_shown(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = [errors.Problem("seed", 3, "-1", "must be at least 0", "seed: 0"), errors.Problem("", None, "", "no")]
    raising(monkeypatch, errors.RecipeError("a.yaml", problems))
    assert call("env").err == (
        "error: a.yaml: 2 problems\n  line 3: seed = -1: must be at least 0\n      for example  seed: 0\n  no\n"
    )


def test_ctrl_c_outside_of_long_work(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, KeyboardInterrupt())
    done = call("env")
    assert done.status == 130 and done.err == "stopped at once\n"


@pytest.mark.parametrize("error", [ValueError("x"), OSError("y"), BrokenPipeError("z"), AssertionError()])
def test_a_bug_keeps_its_traceback(call: Call, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    raising(monkeypatch, error)
    done = call("env")
    assert done.status == 1 and done.out == ""
    assert "Traceback" in done.err and type(error).__name__ in done.err
    assert "hmdc-hub env" in done.err.splitlines()[-1]


def test_a_name_too_long_for_the_file_system_is_the_users(folder: Path, call: Call) -> None:
    done = call("condense", "digits_ipc1", "--run-dir", "x" * 300)
    assert done.status == 2 and done.err.startswith("error: xxx") and "(300 characters)" in done.err
    assert "Traceback" not in done.err and "shorter" in done.err and not list(folder.iterdir())


@pytest.mark.parametrize("name", main.MEANT)
def test_verbs_of_other_tools_are_answered_with_ones_that_are_there(call: Call, name: str) -> None:
    assert name not in main.VERBS
    for verb in main.MEANT[name]:
        assert call(*verb.split(), "--help").status == 0 and repr(verb) in call(name).err


def test_lists_that_are_whole_are_not_taken_for_ones_that_are_not(call: Call, folder: Path) -> None:
    for values in (["evaluate.models=[mlp, vit_tiny]"], ["seed=[", "--json"], ["seed=[", "-o", "a=]"]):
        assert "Quote it" not in call("recipes", "show", "digits_ipc1", "-o", *values).err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("colour", "start"), [({}, "\x1b[31m\x1b[1merror:\x1b[0m "), ({"NO_COLOR": "1"}, "error: ")])
def test_an_error_on_a_terminal(monkeypatch: pytest.MonkeyPatch, colour: dict[str, str], start: str) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in {"COLUMNS": "40", "TERM": "xterm", **colour}.items():
        monkeypatch.setenv(name, value)
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    assert main.run(["condense", "digits_ipc1", "--batch", "8"]) == 2
    said = screen.getvalue()
    assert said.startswith(start)
    lines = said.removeprefix(start).splitlines()
    assert all(len(line) <= 40 for line in lines[1:]) and len(lines[0]) <= 40 - len("error: ")
    assert " ".join(lines).endswith("-o evaluate.batch=8? see: hmdc-hub condense --help") and "\x1b" not in lines[1]
