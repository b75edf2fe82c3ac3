"""One push: plan, commit everything at once, tag, read back.

Nothing on the Hub changes but by one commit on top of exactly the state that the plan was made for. Whatever fails, and
wherever this process is killed, the repository is as before or as planned, and the next push goes on from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from hmdc_hub.errors import FormatError, NetworkError, RunError, UsageError
from hmdc_hub.events import Callback, Note, Stage, silent
from hmdc_hub.publish.build import package, refuse_secrets
from hmdc_hub.publish.card import read_facts
from hmdc_hub.publish.hub import Hub
from hmdc_hub.publish.plan import PushOptions, PushPlan, make_plan, repository_id
from hmdc_hub.store.configs import SCORES_CONFIG
from hmdc_hub.store.files import sha256_file
from hmdc_hub.store.hub import GO_ON, ConflictError, UnsureError, scrubbed
from hmdc_hub.store.rundir import RunDir
from hmdc_hub.temporary import TemporaryFolder

ROUNDS = 6  # how often a push is planned anew because the Hub failed or somebody else was quicker


@dataclass(frozen=True)
class Published:
    """What a push came to."""

    repo_id: str
    commit: str  # what the Hub serves now; of a pull request, its own commit
    changed: bool  # False: it was all there already
    tags: tuple[str, ...]  # at content like this
    url: str  # of the dataset, or of the pull request
    revision: str  # what a reader names to get exactly this: a tag, or the ref of the pull request
    loads: Mapping[str, int]  # rows of the configurations that were read back and loaded


def publish(
    run: RunDir, options: PushOptions | None = None, *, hub: Hub | None = None, callback: Callback = silent
) -> Published:
    """Push a run without asking anybody: plan it and carry the plan out."""
    with Push(run, options or PushOptions(), hub=hub, callback=callback) as pushing:
        return pushing.apply(pushing.plan())


@dataclass(frozen=True)
class _Commit:
    """A commit that holds what was planned; `pull` is the ref of its pull request or empty."""

    plan: PushPlan
    oid: str
    changed: bool
    pull: str = ""


class Push:
    """A push of a complete run, all its sizes or one, with temporary files that live as long as the `with` block.

    The run is packaged anew, which gives the same bytes; the callback is told about every stage.
    """

    def __init__(
        self, run: RunDir, options: PushOptions, *, hub: Hub | None = None, callback: Callback = silent
    ) -> None:
        if options.create_pr and options.branch != "main":
            message = f"--create-pr proposes a change to main, not to {options.branch}."
            raise UsageError(message, hint="Leave --revision out.")
        if options.create_pr and options.tag is not None:
            raise UsageError("--tag: a pull request is not tagged.", hint="Push with --tag once it is merged.")
        self.run, self.options, self.hub, self.callback = run.whole, _of_size(run, options), hub or Hub(), callback
        self._temporary = TemporaryFolder()
        self._folders = 0
        self._package, self._closed = Path(), ""

    def __enter__(self) -> Push:
        return self

    def __exit__(self, *_: object) -> None:
        self._temporary.cleanup()

    def plan(self) -> PushPlan:
        """Package the run, look at the Hub and say what is to be done; changes nothing there.

        An AccessError comes before a byte is sent: nobody is logged in, or may not write there.
        """
        self.callback(Stage("package", str(self.run.package)))
        self._package = package(self.run, config=self.options.config)
        local, *_ = read_facts(self._package)  # what follows is alike of all sizes of a run
        if (share := local.recipe.source.validation_fraction) is not None:
            raise UsageError(
                f"This set was condensed for choosing settings: source.validation_fraction = {share} kept images back, "
                "and its scores are on them, not on the test split; such a set is not published.",
                hint="Condense the recipe without validation_fraction, and push that run.",
            )
        account = self.hub.account()
        repo_id = repository_id(self.options.repo_id, account.name, local.recipe.publish.name)
        self.callback(Stage("plan", f"looking at {repo_id}"))
        source = local.info.source
        if source.kind == "hub":
            recorded = "private" if source.private else "gated" if source.gated else ""
            self._closed = recorded or self.hub.closed_to_strangers(source.id)
        plan = make_plan(self.hub, self._package, self._closed, repo_id, self.options, self._folder())
        if plan.remote is None:
            account.refuse_unless_writer(repo_id.split("/")[0])
        elif not plan.options.create_pr:
            self.hub.check_write(repo_id)
        return plan

    def apply(self, plan: PushPlan) -> Published:
        """Do what a plan says, planning anew whenever the Hub is no longer as it was.

        A RunError if one of these configurations was changed on the Hub meanwhile, or reading back found other bytes.
        """
        done = self._commit(plan)
        plan, tags = done.plan, () if done.pull else done.plan.tags
        for tag in tags:
            if self.hub.tag(plan.repo_id, tag, done.oid):
                continue
            there = self.hub.look(plan.repo_id, tag)  # it exists: good if at content like this
            alike = there is not None and any(
                tag == one.tag and there.holds(one.manifest_path, one.manifest) for one in plan.pushed
            )
            if there is None or not there.branch_exists or not (alike or there.head == done.oid):
                raise RunError(
                    f"{plan.repo_id} has a tag {tag} at other content, and a tag never moves. The commit itself is "
                    "there.",
                    hint="Delete that tag on the Hub, or push again with another --tag.",
                )
        self.callback(Stage("read back", f"{plan.repo_id} at {done.oid[:12]}"))
        loads = _read_back(self.hub, plan, done.pull or done.oid, self._folder())
        url = f"{scrubbed(self.hub.api.endpoint)}/datasets/{plan.repo_id}"
        return Published(
            repo_id=plan.repo_id,
            commit=done.oid,
            changed=done.changed,
            tags=tags,
            url=f"{url}/discussions/{done.pull.rpartition('/')[2]}" if done.pull else url,
            revision=done.pull or (tags[0] if tags else plan.options.branch),
            loads=loads,
        )

    def _folder(self) -> Path:
        self._folders += 1
        folder = self._temporary.path / str(self._folders)
        folder.mkdir()
        return folder

    def _commit(self, first: PushPlan) -> _Commit:
        """Get a commit that holds what was planned; what is missing for it is created, and planned on anew."""
        plan, failure = first, NetworkError("")
        for tried in range(1, ROUNDS + 1):
            if plan.remote is None:
                self.callback(Stage("create", f"{plan.repo_id}, {'private' if plan.private else 'public'}"))
                self.hub.create(plan.repo_id, private=plan.private)
                plan = self._again(plan, first)
            if not plan.existing.branch_exists and not plan.options.create_pr:
                self.hub.create_branch(plan.existing)
                plan = self._again(plan, first)
            if not plan.changes:
                return _Commit(plan, plan.existing.head, changed=tried > 1)
            for path, content in plan.uploads.items():  # once more, now that they are about to be sent
                if isinstance(content, Path) and (
                    content.is_symlink() or not content.is_file() or sha256_file(content) != plan.files[path]
                ):
                    raise FormatError(f"{content} was changed while it was being published.", hint="Push again.")
            refuse_secrets(plan.uploads)
            self.callback(Stage("upload", f"{len(plan.uploads)} files to {plan.repo_id}"))
            try:
                info = self.hub.commit(plan)
                return _Commit(plan, str(info.oid), True, str(info.pr_revision or ""))
            except ConflictError:
                self.callback(Note("somebody else pushed meanwhile: planning again"))
                failure = NetworkError(f"{plan.repo_id} changes faster than this push can follow.", hint=GO_ON)
            except UnsureError as error:
                self.callback(Note(f"{error.message} Looking whether the commit is there."))
                failure = error
                if plan.options.create_pr and (pull := self._pull_of(plan)):
                    return _Commit(plan, pull[1], True, pull[0])
                if tried < ROUNDS:
                    self.hub.rest(error, tried)
            plan = self._again(plan, first)
        if not plan.changes:
            return _Commit(plan, plan.existing.head, changed=True)
        raise failure

    def _again(self, plan: PushPlan, first: PushPlan) -> PushPlan:
        """Plan anew on what the Hub holds now; refuse if somebody else changed one of these very configurations."""
        new = make_plan(self.hub, self._package, self._closed, plan.repo_id, self.options, self._folder())
        pairs, hint = zip(first.pushed, new.pushed, strict=True), ""
        changed = [one.name for one, now in pairs if now.there not in (one.there, one.digest)]
        if new.remote is None:
            what, hint = f"{plan.repo_id} was deleted or renamed meanwhile", "Push again to create it anew."
        elif first.private and not new.private:
            what = f"{plan.repo_id} is public now, and this push was to be private"
            hint = "Look at it on the Hub, then push again."
        elif changed and not self.options.force:
            what = f"Somebody else published another {changed[0]} in {plan.repo_id} meanwhile"
            hint = "Look at it on the Hub; --force puts yours in its place."
        if hint:
            raise RunError(f"{what}; nothing of yours was published.", hint=hint)
        return new

    def _pull_of(self, plan: PushPlan) -> tuple[str, str] | None:
        """Find the pull request that a lost answer was about: its ref and commit."""
        now = self.hub.look(plan.repo_id, "main", pulls=True)
        for ref in sorted(now.pulls - plan.existing.pulls) if now is not None else []:
            found = self.hub.look(plan.repo_id, ref)
            if found is not None and all(found.holds(one.manifest_path, one.manifest) for one in plan.pushed):
                return ref, found.head
        return None


def _of_size(run: RunDir, options: PushOptions) -> PushOptions:
    """Let one size of several stand for its configuration."""
    if run.whole == run:
        return options
    own = next(name for name, size in run.whole.sets().items() if size == run)
    if options.config not in (None, own):
        raise UsageError(f"{run.path} is the configuration {own}, not {options.config}.", hint="Leave --config out.")
    return replace(options, config=own)


def _read_back(hub: Hub, plan: PushPlan, revision: str, work: Path) -> dict[str, int]:
    """Download what was published as a stranger would, into a cache of its own, compare every hash, and load it.

    Gives the rows of every configuration that the push touched, as the library gives them that readers use. Whatever
    fails, the commit is there.
    """
    import datasets

    due = {one.name: one.facts.manifest.rows for one in plan.pushed}
    scored = any(one.facts.scores for one in plan.pushed)
    names = [*plan.files, *(["scores/*.parquet"] if scored else [])]
    try:
        folder = hub.snapshot(plan.repo_id, names, plan.files, revision=revision, cache=work / "hub")
    except FormatError as error:
        raise RunError(
            f"Published, but what the Hub serves is not what was sent: {error.message}",
            hint="Run the same command again; if it stays so, tell the Hub's support before anybody trains on it.",
        ) from error
    except (RunError, UsageError) as error:
        ours = type(error) if isinstance(error, RunError) else RunError  # the user did nothing wrong
        raise ours(f"Published, but not read back: {error.message}", hint=GO_ON) from error
    # `datasets` looks for the files of every configuration and reads those of the one that it is asked for: empty ones
    # stand in for the others.
    for path in plan.existing.files:
        place = folder / path
        if ".." not in Path(path).parts and not Path(path).is_absolute() and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()
    rows, shown = dict[str, int](), not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()  # thousands of small images load at once
    try:
        for config in [*due, *([SCORES_CONFIG] if scored else [])]:
            loaded = datasets.load_dataset(str(folder), config, split="train", cache_dir=str(work / "datasets"))
            rows[config] = loaded.num_rows
    except Exception as error:  # whatever a loader raises means the same here: others cannot load it either
        raise RunError(
            f'Published, but load_dataset("{plan.repo_id}", "{config}") fails: {type(error).__name__}: {error}',
            hint="Look at the card's front matter on the Hub, and report this with what `hmdc-hub env` prints.",
        ) from error
    finally:
        if shown:
            datasets.enable_progress_bars()
    for config, wanted in due.items():
        if (found := rows[config]) != wanted:
            raise RunError(f"Published, but {config} loads {found} rows instead of {wanted}.")
    return rows
