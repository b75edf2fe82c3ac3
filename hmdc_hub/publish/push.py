"""One push: plan, commit everything at once, tag, read back.

Nothing on the Hub changes but by one commit on top of exactly the state that the plan was made for. Whatever fails, and
wherever this process is killed, the repository is as before or as planned, and the next push goes on from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from hmdc_hub.errors import FormatError, NetworkError, RunError, UsageError
from hmdc_hub.events import Listener, Note, Stage, silent
from hmdc_hub.publish import readback
from hmdc_hub.publish.build import package
from hmdc_hub.publish.facts import read_facts
from hmdc_hub.publish.hub import Hub
from hmdc_hub.publish.hub_errors import AGAIN, ConflictError, UnsureError, scrubbed
from hmdc_hub.publish.ownership import repository_id
from hmdc_hub.publish.plan import Plan, Wishes, make_plan
from hmdc_hub.publish.scan import refuse_secrets
from hmdc_hub.publish.staging import Staged
from hmdc_hub.store import RunDir, sha256_file
from hmdc_hub.temporary import TemporaryFolder

ROUNDS = 6
"""How often a push is planned anew because the Hub failed or somebody else was quicker."""


@dataclass(frozen=True)
class Published:
    """What a push came to.

    Attributes:
        commit: What the Hub serves now; of a pull request, its own commit.
        changed: False: it was all there already.
        tags: Tags at content like this.
        url: Of the dataset, or of the pull request.
        revision: What a reader names to get exactly this: a tag, or the ref of the pull request.
        loads: Configurations that were read back and loaded, with their numbers of rows.
    """

    repo_id: str
    commit: str
    changed: bool
    tags: tuple[str, ...]
    url: str
    revision: str
    loads: Mapping[str, int]


def publish(
    run: RunDir, wishes: Wishes | None = None, *, hub: Hub | None = None, listener: Listener = silent
) -> Published:
    """Push a run without asking anybody: plan it and carry the plan out; arguments and errors as those of `Push`.

    Example:
        >>> published = publish(RunDir(Path("runs/digits_ipc1")))
        >>> load_dataset(published.repo_id, revision=published.revision)
    """
    with Push(run, wishes or Wishes(), hub=hub, listener=listener) as pushing:
        return pushing.carry_out(pushing.plan())


@dataclass(frozen=True)
class _Commit:
    """A commit that holds what was planned; `pull` is the ref of its pull request or empty."""

    plan: Plan
    oid: str
    changed: bool
    pull: str = ""


class Push:
    """A push of one run, with temporary files that live as long as the `with` block.

    Args:
        run: Complete; it is packaged anew, which gives the same bytes.
        wishes: How to publish it.
        hub: The Hub; None: the one that huggingface_hub is set up for.
        listener: Told about every stage.

    Example:
        >>> with Push(RunDir(Path("runs/digits_ipc1")), Wishes()) as push:
        ...     plan = push.plan()
        ...     push.carry_out(plan)
    """

    def __init__(self, run: RunDir, wishes: Wishes, *, hub: Hub | None = None, listener: Listener = silent) -> None:
        if wishes.create_pr and wishes.branch != "main":
            raise UsageError(
                f"--create-pr proposes a change to main, not to {wishes.branch}.", hint="Leave --revision out."
            )
        if wishes.create_pr and wishes.tag is not None:
            raise UsageError("--tag: a pull request is not tagged.", hint="Push with --tag once it is merged.")
        self.run, self.wishes, self.hub, self.listener = run, wishes, hub or Hub(), listener
        self._temporary = TemporaryFolder()
        self._folders = 0
        self._package, self._closed = Path(), ""

    def __enter__(self) -> Push:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._temporary.cleanup()

    def plan(self) -> Plan:
        """Package the run, look at the Hub and say what is to be done; changes nothing there.

        Raises:
            AccessError: Not logged in, or no write access.
            UsageError: What was asked for does not go with the run or the repository.
            FormatError: A file of the run or on the Hub is damaged, or of a newer format version.
            NetworkError: The Hub failed.
        """
        self.listener(Stage("package", str(self.run.package)))
        self._package = package(self.run, config=self.wishes.config)
        (local,) = read_facts(self._package)
        account = self.hub.account()
        repo_id = repository_id(self.wishes.repo_id, account.name, local.recipe.publish.name)
        self.listener(Stage("plan", f"looking at {repo_id}"))
        source = local.info.source
        if source.kind == "hub":
            recorded = "private" if source.private else "gated" if source.gated else ""
            self._closed = recorded or self.hub.closed_to_strangers(source.id)
        plan = self._plan(repo_id)
        if plan.remote is None:
            account.refuse_unless_writer(repo_id.split("/")[0])
        elif not plan.create_pr:
            self.hub.check_write(repo_id)
        return plan

    def carry_out(self, plan: Plan) -> Published:
        """Do what a plan says, planning anew whenever the Hub is no longer as it was.

        Raises:
            AccessError: The token may not, or no longer.
            RunError: This configuration was changed on the Hub meanwhile, or reading back found other bytes.
            NetworkError: The Hub failed; running the push again goes on.
        """
        done = self._commit(plan)
        plan = done.plan
        if not done.pull:
            for tag in plan.tags:
                self._tag(plan, tag, done.oid)
        self.listener(Stage("read back", f"{plan.repo_id} at {done.oid[:12]}"))
        loads = readback.check(self.hub, plan, done.pull or done.oid, self._folder())
        url = f"{scrubbed(self.hub.api.endpoint)}/datasets/{plan.repo_id}"
        return Published(
            repo_id=plan.repo_id,
            commit=done.oid,
            changed=done.changed,
            tags=() if done.pull else plan.tags,
            url=f"{url}/discussions/{done.pull.rpartition('/')[2]}" if done.pull else url,
            revision=done.pull or (plan.tags[0] if plan.tags else plan.branch),
            loads=loads,
        )

    def _plan(self, repo_id: str) -> Plan:
        return make_plan(self.hub, self._package, self._closed, repo_id, self.wishes, self._folder())

    def _folder(self) -> Path:
        self._folders += 1
        folder = self._temporary.path / str(self._folders)
        folder.mkdir()
        return folder

    def _commit(self, first: Plan) -> _Commit:
        """Get a commit that holds what was planned."""
        plan, failure = first, NetworkError("")
        for tried in range(1, ROUNDS + 1):
            plan = self._prepared(plan, first)
            if not plan.changes:
                return _Commit(plan, plan.existing.head, changed=tried > 1)
            _refuse_changed(plan.staged)
            self.listener(Stage("upload", f"{len(plan.staged.uploads)} files to {plan.repo_id}"))
            try:
                info = self.hub.commit(
                    plan.existing,
                    plan.staged.uploads,
                    plan.staged.deletes,
                    plan.title,
                    plan.text,
                    create_pr=plan.create_pr,
                )
                return _Commit(plan, str(info.oid), True, str(info.pr_revision or ""))
            except ConflictError:
                self.listener(Note("somebody else pushed meanwhile: planning again"))
                failure = NetworkError(f"{plan.repo_id} changes faster than this push can follow.", hint=AGAIN)
            except UnsureError as error:
                self.listener(Note(f"{error.reason.message} Looking whether the commit is there."))
                failure = NetworkError(error.reason.message, hint=AGAIN)
                if plan.create_pr and (pull := self._pull_of(plan)):
                    return _Commit(plan, pull[1], True, pull[0])
                if tried < ROUNDS:
                    self.hub.rest(error, tried)
            plan = self._again(plan, first)
        if not plan.changes:
            return _Commit(plan, plan.existing.head, changed=True)
        raise failure

    def _prepared(self, plan: Plan, first: Plan) -> Plan:
        """Create the repository and the branch where they are missing, and plan again on what came to be."""
        if plan.remote is None:
            self.listener(Stage("create", f"{plan.repo_id}, {'private' if plan.private else 'public'}"))
            self.hub.create(plan.repo_id, private=plan.private)
            plan = self._again(plan, first)
        if not plan.existing.branch_exists and not plan.create_pr:
            self.hub.create_branch(plan.existing)
            plan = self._again(plan, first)
        return plan

    def _again(self, plan: Plan, first: Plan) -> Plan:
        """Plan anew on what the Hub holds now; refuse if somebody else changed this very configuration."""
        new = self._plan(plan.repo_id)
        if new.remote is None:
            raise RunError(
                f"{plan.repo_id} was deleted or renamed meanwhile; nothing was published.",
                hint="Push again to create it anew.",
            )
        if first.private and not new.private:
            raise RunError(
                f"{plan.repo_id} is public now, and this push was to be private; nothing was published.",
                hint="Look at it on the Hub, then push again.",
            )
        ours = first.staged.files[f"{first.staged.config}/manifest.json"]
        if new.there not in (first.there, ours) and not self.wishes.content.force:
            raise RunError(
                f"Somebody else published another {first.staged.config} in {plan.repo_id} meanwhile; yours was not "
                "published.",
                hint="Look at it on the Hub; --force puts yours in its place.",
            )
        return new

    def _pull_of(self, plan: Plan) -> tuple[str, str] | None:
        """Find the pull request that a lost answer was about: its ref and commit."""
        now = self.hub.look(plan.repo_id, "main", pulls=True)
        manifest = f"{plan.staged.config}/manifest.json"
        for ref in sorted(now.pulls - plan.existing.pulls) if now is not None else []:
            found = self.hub.look(plan.repo_id, ref)
            if found is not None and manifest in found.files and found.files[manifest].holds(plan.staged.manifest):
                return ref, found.head
        return None

    def _tag(self, plan: Plan, tag: str, commit: str) -> None:
        """Tag a commit, or find the tag at content like this: it never moves."""
        if self.hub.tag(plan.repo_id, tag, commit):
            return
        if tag == plan.staged.tag:
            there = self.hub.file_at(plan.repo_id, f"{plan.staged.config}/manifest.json", tag)
            same = there is not None and there.holds(plan.staged.manifest)
        else:
            now = self.hub.look(plan.repo_id, plan.branch)
            same = now is not None and now.tags.get(tag) == commit
        if not same:
            raise RunError(
                f"{plan.repo_id} has a tag {tag} at other content, and a tag never moves. The commit itself is there.",
                hint="Delete that tag on the Hub, or push again with another --tag.",
            )


def _refuse_changed(staged: Staged) -> None:
    """Check every file that is about to be sent once more: its hash, that it is a file, that it holds no secret."""
    for path, content in staged.uploads.items():
        if isinstance(content, Path) and (
            content.is_symlink() or not content.is_file() or sha256_file(content) != staged.files[path]
        ):
            raise FormatError(f"{content} was changed while it was being published.", hint="Push again.")
    refuse_secrets(staged.uploads)
