"""Writing checkpoints while a run goes on, all ranks at once.

Five actions, each started when every rank has finished the one before:

    create    rank 0: a directory of another name, the files at full size
    write     every rank: its parts of every tensor
    digest    every rank: fsync, and the checksums of its share of the files, read back
    commit    rank 0: the manifest, fsync of the directory, and its right name
    prune     rank 0: old checkpoints go; whatever becomes of it, the new one is complete

In the background a thread does these, with a copy of what is to be written, and the ranks ask each other
between steps whether all have finished. No thread communicates.
"""

import platform
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import numpy as np

from minitrain.arrays.types import Array
from minitrain.checkpoint.catalogue import LATEST, MANIFEST, STATE, checkpoint_name, keep_newest
from minitrain.checkpoint.digests import digest_own_chunks, to_hex
from minitrain.checkpoint.huggingface import HFWriter, create_hf
from minitrain.checkpoint.manifest import (
    FILES,
    FORMAT,
    VERSION,
    DataSeen,
    Manifest,
    ScaleSeen,
    StoredFile,
    to_text,
)
from minitrain.checkpoint.parts import parts_to_write
from minitrain.checkpoint.safetensors_file import create, open_tensors
from minitrain.checkpoint.state import Snapshot, n_numbers, state_tensors, write_state
from minitrain.comm.agree import agree, broadcast_text, together
from minitrain.comm.interface import Comm
from minitrain.config import Config
from minitrain.config_text import repeatable
from minitrain.durable import flush, make_directory, write_text
from minitrain.errors import CheckpointError, InternalError, MinitrainError, Problem
from minitrain.precision import PRECISIONS
from minitrain.step import Trainer

MOST_FAILURES = 3  # one after another, until the run ends

Action = Callable[[], None]


class Saver:
    """The checkpoints of one run. Every rank calls the same methods at the same steps."""

    def __init__(
        self,
        config: Config,
        trainer: Trainer,
        directory: Path,
        data: DataSeen,
        tokenizer: str,
        saved: int = 0,
    ) -> None:
        """`saved`: the step of the checkpoint that the run goes on from, if there is one."""
        self._config, self._trainer, self._world = config, trainer, trainer.grid.world
        self._directory, self._data, self._tokenizer = directory, data, tokenizer
        self._begun = self._complete = saved  # the steps of the last one begun, and of the last one complete
        self._failures = 0
        self._job = broadcast_text(self._world, secrets.token_hex(4) if self._world.rank == 0 else None)
        self._software = _software()
        self._pending: _Pending | None = None

    @property
    def pending(self) -> bool:
        """Whether a checkpoint is being written in the background: the same on all ranks."""
        return self._pending is not None

    @property
    def busy(self) -> bool:
        """Whether this rank's thread is still at work on it."""
        return self._pending is not None and self._pending.busy

    def save(self, step: int, tokens: int, background: bool = False, last: bool = False) -> list[str]:
        """Writes a checkpoint, or starts to. Collective. Returns warnings, of one that could not be written.

        Raises CheckpointError the third time in a row, or at once if it is the last.
        """
        warnings = self.finish()
        if step == self._begun:
            return warnings
        self._begun = step
        self._pending = _Pending(step, self._actions(step, tokens, background))
        if background:
            self._pending.start()
            return warnings
        return warnings + self._to_its_end(last)

    def advance(self) -> list[str]:
        """When no rank is busy: the next action of the one in the background. Collective."""
        assert self._pending
        try:
            agree(self._world, self._pending.outcome())
            if not self._pending.start():
                self._pending, self._failures = None, 0
        except MinitrainError as error:
            return self._failed(error, last=False)
        return []

    def finish(self) -> list[str]:
        """Waits for the one in the background. Collective."""
        return self._to_its_end(last=False)

    def _to_its_end(self, last: bool) -> list[str]:
        if self._pending is None:
            return []
        try:
            agree(self._world, self._pending.outcome())
            for action in self._pending.actions:
                together(self._world, action)
        except MinitrainError as error:
            return self._failed(error, last)
        self._pending, self._failures = None, 0
        return []

    def _failed(self, error: MinitrainError, last: bool) -> list[str]:
        """All ranks come here with the same error."""
        assert self._pending
        step, self._pending = self._pending.step, None
        if step == self._complete:
            self._failures = 0
            return [f"warning: {error.problems[0]}"]
        self._begun, self._failures = 0, self._failures + 1
        if self._world.rank == 0:
            shutil.rmtree(self._partial(step), ignore_errors=True)
        if last or self._failures == MOST_FAILURES or error.exit_code != CheckpointError.exit_code:
            self._world.barrier()  # it is removed before anybody leaves
            raise error
        return [f"warning: no checkpoint of step {step}: {error.problems[0]}"]

    def _actions(self, step: int, tokens: int, background: bool) -> Iterator[Action]:
        """The five actions. Between them the ranks add up how much they wrote, and put checksums together."""
        snapshot = Snapshot.of(self._trainer.stage, copied=background)
        manifest = self._manifest(step, tokens)
        directory = self._directory / checkpoint_name(step)
        partial, rank_0 = self._partial(step), self._world.rank == 0
        words: dict[str, Array] = {}
        written = np.zeros(1, np.int64)
        yield lambda: self._create(partial) if rank_0 else None
        yield lambda: self._write(partial, snapshot, written)
        self._world.all_reduce(written)
        self._require_all(int(written[0]), step)
        yield lambda: words.update(_flush_and_digest(partial, self._world))
        for name in words:
            self._world.all_reduce(words[name])
        yield lambda: _commit(partial, directory, manifest, words) if rank_0 else None
        self._complete = step
        yield lambda: _prune(self._directory, self._config.run.keep) if rank_0 else None

    def _partial(self, step: int) -> Path:
        """Its name until it is complete: of this job alone, lest a rank that outlived another write to it."""
        return self._directory / f"{checkpoint_name(step)}.{self._job}.partial"

    def _require_all(self, written: int, step: int) -> None:
        """Files begin as zeros: what no rank wrote would have right checksums."""
        expected = n_numbers(self._config, self._trainer.updater.optimizer)
        if written != expected:
            what = f"{written} of {expected} weights and moments were written"
            problem = Problem(what, f"checkpoint of step {step}", "this is a defect of minitrain")
            raise InternalError.everywhere([problem], InternalError.exit_code)

    def _manifest(self, step: int, tokens: int) -> Manifest:
        """All but its files."""
        kept, scales = self._trainer.judge.kept(), self._trainer.stage.precision.scales_loss
        return Manifest(
            format=FORMAT,
            version=VERSION,
            step=step,
            updates=kept.updates,
            tokens=tokens,
            loss_scale=ScaleSeen(kept.scale, kept.good_steps, kept.tolerated) if scales else None,
            data=self._data,
            config=repeatable(self._config),
            software=self._software,
            written=datetime.now(UTC).isoformat(timespec="seconds"),
            files={},
        )

    def _create(self, partial: Path) -> None:
        config, trainer = self._config, self._trainer
        with _writing(partial):
            shutil.rmtree(partial, ignore_errors=True)
            make_directory(partial.parent)
            partial.mkdir()
            create_hf(partial, config.model, PRECISIONS[config.precision].master, self._tokenizer)
            create(partial / STATE, state_tensors(config, trainer.updater.optimizer))

    def _write(self, partial: Path, snapshot: Snapshot, written: Array) -> None:
        trainer = self._trainer
        writer = HFWriter(partial, self._config.model)
        with _writing(partial):
            for unit, master in zip(trainer.stage.units, snapshot.masters, strict=True):
                for part in parts_to_write(unit, trainer.grid):
                    writer.write(part.held.spec, part.box, master[part.where].reshape(part.shape))
                    written += part.elements.stop - part.elements.start
            written += write_state(open_tensors(partial / STATE), trainer, snapshot)


class _Pending:
    """A checkpoint that is being written: what is left to do, and the thread that does what is next."""

    def __init__(self, step: int, actions: Iterator[Action]) -> None:
        self.step, self.actions = step, actions
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> bool:
        """Begins the next action; False if there is none left."""
        action = next(self.actions, None)
        if action is None:
            return False
        self._thread = threading.Thread(target=self._run, args=(action,), name="checkpoint", daemon=True)
        self._thread.start()
        return True

    def outcome(self) -> MinitrainError | None:
        """Waits for the action that was begun; what went wrong with it. Raises what nobody foresaw."""
        if self._thread is not None:
            self._thread.join()
        if self._error is not None and not isinstance(self._error, MinitrainError):
            raise self._error
        return self._error

    def _run(self, action: Action) -> None:
        try:
            action()
        except BaseException as error:  # of whatever kind: the main thread raises it
            self._error = error


def _flush_and_digest(partial: Path, comm: Comm) -> dict[str, Array]:
    """The checksums of this rank's chunks, computed while the disk is at work."""
    with _writing(partial), ThreadPoolExecutor(1) as other_thread:
        flushed = [other_thread.submit(flush, partial / name) for name in FILES]
        sizes = {name: (partial / name).stat().st_size for name in FILES}
        words = {name: digest_own_chunks(partial / name, size, comm) for name, size in sizes.items()}
        for each in flushed:
            each.result()
    return words


def _commit(partial: Path, directory: Path, manifest: Manifest, words: dict[str, Array]) -> None:
    with _writing(partial):
        sizes = {name: (partial / name).stat().st_size for name in FILES}
        files = {name: StoredFile(sizes[name], to_hex(words[name])) for name in FILES}
        write_text(partial / MANIFEST, to_text(replace(manifest, files=files)))
        partial.rename(directory)


def _prune(directory: Path, keep: int) -> None:
    """What fails from here on does not make the new checkpoint incomplete."""
    try:
        flush(directory)
        keep_newest(directory, keep)
    except OSError as problem:
        what = "the newest checkpoint is complete, but the directory cannot be flushed, "
        what += f"an old one removed, or {LATEST} written ({problem.strerror or problem})"
        raise CheckpointError(what, str(directory), "free space there, or check its permissions") from None


def _software() -> dict[str, str]:
    packages = {}
    for name in ("minitrain", "numpy", "mpi4py"):
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # run from its source
            packages[name] = "not installed"
    return packages | {"python": platform.python_version(), "machine": platform.machine()}


@contextmanager
def _writing(partial: Path) -> Iterator[None]:
    """An OSError within becomes a CheckpointError."""
    try:
        yield
    except OSError as problem:
        what = f"the checkpoint cannot be written ({problem.strerror or problem})"
        raise CheckpointError(what, str(partial), "free space there, or check its permissions") from None
