"""What each Ray Train worker runs: the steps of a stage inside DeepSpeed.

Every worker holds the whole model and takes its share of each batch; DeepSpeed averages gradients
and splits the optimizer over the workers (ZeRO). Whatever a worker does is decided by the recipe
and the step, so after a failure the newest checkpoint leads to the weights that the undisturbed run
would have had, on however many workers it goes on; but for the order in which other numbers of
workers, and a GPU's kernels, add.

A failure that may pass (a worker or node lost, object storage away) is raised, and Ray Train starts
the workers again. One that would only come again is noted on the board first: workers that find
such a note return at once, and the driver stops with it.
"""

from __future__ import annotations

import socket
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
import torch.distributed
from torch import Tensor

from infra import storage
from infra.corpus import Corpus
from infra.scratch import scratch_folder
from model import build_save, saved
from training import checkpoint, models
from training.accounts import Accounts, matrix_peak
from training.batch import Batch
from training.checkpoint import Progress
from training.checkpoint_store import CheckpointStore
from training.engine import start_engine, take_batch
from training.failures import Hopeless
from training.few_shot import training_samples
from training.prefetch import batches
from training.profiling import profiled
from training.progress import SECONDS_LEFT, Board, File, Started
from training.recipe import TrainConfig
from training.running_mean import RunningMean
from training.step import Learner, set_learning_rate
from training.validation import validate

OUT_OF_MEMORY = (
    "raise accumulate or workers.count, set workers.activation_checkpointing, or raise "
    "workers.zero_stage"
)
# What is waited at most for the checkpoint before, to write one that has no score.
PATIENCE_SECONDS = 5.0


def train(settings: dict[str, Any]) -> None:
    """Train one stage.

    Args:
        settings: its ``config``, the ``digest`` of what is learned, ``checkpoints`` (the URI of
            their folder), a ``mark`` that the driver has left there, and the ``board`` to post to.

    Raises:
        ValueError: the loss is no longer a number, or the checkpoints are another stage's.
    """
    board: Board = settings["board"]
    if board.given_up():
        return
    try:
        _Run(settings, board).go()
    except ValueError as error:
        # Ray takes the group from workers that are still in a step before it starts them again.
        if not torch.distributed.is_initialized():
            raise
        # Of input, configuration or data, by the convention of all rooms: it would only come again.
        board.give_up(reason := (str(error).strip() or repr(error)).splitlines()[-1])
        raise Hopeless(reason) from error
    except torch.OutOfMemoryError as error:
        # With fewer workers than asked for it may go better when more have come.
        if ray.train.get_context().get_world_size() >= settings["config"].workers.count:
            reason = f"a worker ran out of memory ({error}): {OUT_OF_MEMORY}"
            board.give_up(reason)
            raise Hopeless(reason) from None
        raise


def build_learner(config: TrainConfig, *, classes: int) -> Learner:
    """The model and losses of a stage; the same seed gives the same weights on every rank."""
    torch.manual_seed(config.seed)
    model = config.model
    save = build_save(
        model.name,
        image_size=model.image_size,
        sam_checkpoint=models.local_file(model.sam_checkpoint),
        vggish_checkpoint=models.local_file(model.vggish_checkpoint),
        adapter_init=model.adapter_init,
        spatial=model.spatial,
        audio_adapter=model.audio_adapter,
    )
    return Learner(save, classes=classes, class_weight=config.class_weight)


class _Run:
    """A worker's part in a stage, from its newest checkpoint to its end."""

    def __init__(self, settings: dict[str, Any], board: Board) -> None:
        self.config: TrainConfig = settings["config"]
        self.board = board
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self._look_for(settings["mark"])
        self.corpus = Corpus.open(self.config.corpus, verify=self.config.verify)
        self.samples = training_samples(self.config, self.corpus)
        self.steps = self.config.total_steps(len(self.samples))
        self.store = CheckpointStore(settings["checkpoints"], keep=self.config.keep, say=board.post)
        self.learner = build_learner(self.config, classes=len(self.samples.classes))
        self.progress = Progress(digest=settings["digest"])
        self.engine, self.mean = self._start()
        peak = matrix_peak(self.device, self.config.precision)
        self.accounts = Accounts(self.device, batch=self.config.batch, peak=peak)
        self.seconds_before = self.progress.training_seconds
        self.history = list(self.progress.history)
        self.norms: list[Tensor | float] = []
        self.noticed: set[str] = set()
        self.stale = self._without_better()

    def _look_for(self, mark: str) -> None:
        """Refuse a folder that only the driver sees: checkpoints would lie where nobody looks."""
        if not storage.exists(mark):
            raise Hopeless(
                f"a worker on {socket.gethostname()} does not see {mark}: give --output a place "
                "that every node sees, on s3:// or on a disk that all share"
            )

    def _start(self) -> tuple[Any, RunningMean | None]:
        """The engine and the running mean, from the newest checkpoint or from the parent."""
        config, learner = self.config, self.learner
        with scratch_folder("checkpoint") as own:
            folder = self._fetch_newest(own)
            if folder is not None:
                self.progress = self._its_own(checkpoint.read_progress(folder))
                saved.load_weights(learner.save, folder)
            elif config.parent is not None:
                models.load_weights(learner.save, config.parent)
            engine = start_engine(config, learner, self.device)
            start = None if folder is None else checkpoint.restore(folder, engine, learner)
            # Others on this node read from the same folder.
            torch.distributed.barrier()
        if config.ema is None:
            return engine, None
        return engine, RunningMean(learner, decay=config.ema, start=start)

    def _its_own(self, found: Progress) -> Progress:
        if found.digest != self.progress.digest:
            raise Hopeless(
                f"{self.store.uri} holds checkpoints of another configuration or corpus: give this "
                "one another stage or output, or remove that folder"
            )
        return found

    def _fetch_newest(self, own: Path) -> Path | None:
        """The newest sound checkpoint, in a folder of the first rank of each node, or None.

        Rank 0 finds it, so that all ranks take the same.
        """
        step = torch.tensor(-1, device=self.device)
        if self.rank == 0:
            found = self.store.fetch_newest(own)
            step.fill_(-1 if found is None else found)
        torch.distributed.broadcast(step, src=0)
        if step < 0:
            return None
        context = ray.train.get_context()
        is_first = context.get_local_rank() == 0
        if is_first and self.rank != 0:
            self.store.fetch_step(int(step), own)
        places: list[Any] = [None] * self.world
        place = (context.get_node_rank(), own if is_first else None)
        torch.distributed.all_gather_object(places, place)
        return next(path for node, path in places if node == place[0] and path is not None)

    def go(self) -> None:
        """Train from where the run stands to the end of the stage."""
        config, first = self.config, self.progress.step
        if self.rank == 0:
            self.board.post(Started(self._start_text(), first, self.steps))
        loader = batches(
            self.samples,
            batch=config.batch,
            first=first,
            last=self.steps,
            rank=self.rank,
            world=self.world,
            workers=config.workers.decoders,
        )
        pending: list[dict[str, Tensor]] = []
        for step, batch in enumerate(self.accounts.waiting_for(loader), start=first):
            if config.patience is not None and self.stale >= config.patience:
                self._say(f"no better M_J in {config.patience} validations: ended at step {step}")
                break
            done = step + 1
            with self._profile(done), self.accounts.counted():
                pending.append(self._step(step, batch.to(self.device)))
            validating, saving = self._is_due(done)
            if done % config.log_every == 0 or saving:
                self._log(done, pending)
                pending = []
                saving = self._take_notice() or saving
            if validating:
                self._validate(done)
            elif saving:
                self._save(done)
        self.store.wait()

    def _is_due(self, done: int) -> tuple[bool, bool]:
        """Whether to validate after so many steps, and whether to write a checkpoint."""
        config, last = self.config, done == self.steps
        every = config.validate_every or config.steps_per_epoch(len(self.samples))
        validating = last or done % every == 0
        between = config.checkpoint_every
        return validating, validating or (between is not None and done % between == 0)

    def _without_better(self) -> int:
        """Validations since the best one."""
        scores = [point["val_m_j"] for point in self.history if "val_m_j" in point]
        return len(scores) - 1 - scores.index(max(scores)) if scores else 0

    def _step(self, step: int, batch: Batch) -> dict[str, Tensor]:
        """One optimisation step; of each part of the loss this rank's share of the mean."""
        # Whatever is drawn is drawn anew after a resume.
        torch.manual_seed(self.config.seed * 1_000_003 + step)
        set_learning_rate(self.engine.optimizer, self.config.optimizer.rate(step, self.steps))
        try:
            told, norm = take_batch(
                self.engine,
                self.learner,
                batch,
                total=self.config.batch,
                accumulate=self.config.parts(self.world),
            )
        except Exception as error:
            # DeepSpeed has no class of its own for it.
            if "loss scale already at minimum" not in str(error):
                raise
            raise Hopeless(
                f"fp16 overflows at step {step + 1} however little the loss is scaled: give "
                "precision bf16 or fp32, as another --stage"
            ) from None
        self.norms.append(norm)
        if self.mean is not None:
            self.mean.update(step + 1)
        return told

    def _log(self, done: int, pending: list[dict[str, Tensor]]) -> None:
        """A point of the curves, of the mean over the steps since the last one."""
        norms = np.array([float(norm) for norm in self.norms])
        self.norms.clear()
        is_sound = np.isfinite(norms)
        # In fp16 it is usual that some are not: these steps are skipped, and the loss scaled less.
        is_skipped = ~is_sound & (self.config.precision == "fp16")
        if not is_skipped.all():
            pending = [told for told, skip in zip(pending, is_skipped, strict=True) if not skip]
        names = list(pending[0])
        values = torch.stack([torch.stack([told[name] for name in names]) for told in pending])
        means = values.mean(0)
        torch.distributed.all_reduce(means)
        point = {"step": float(done)}
        if not is_skipped.all():
            point |= dict(zip(names, means.tolist(), strict=True))
        point["learning_rate"] = self.config.optimizer.rate(done - 1, self.steps)
        if is_sound.any():
            point["grad_norm"] = float(norms[is_sound].mean())
        if scale := checkpoint.optimizer_state(self.engine)[1]:
            point["loss_scale"] = scale["cur_scale"]
        is_finite = bool(np.isfinite(point.get("loss", 0.0)))
        if not is_finite or not (is_sound | is_skipped).all():
            what = "gradient" if is_finite else "loss"
            raise Hopeless(
                f"the {what} is no finite number at step {done}: lower optimizer.learning_rate or "
                "raise optimizer.warmup_steps, as another --stage; its --parent can be the newest "
                f"checkpoint in {self.store.uri}, which is from before"
            )
        pace = self._of_the_slowest(self.accounts.take(len(norms)))
        point |= pace
        self.history.append(point)
        if self.rank == 0:
            left = (self.steps - done) * self.config.batch / pace["samples_per_second"]
            self.board.post({**point, SECONDS_LEFT: left})

    def _of_the_slowest(self, pace: dict[str, float]) -> dict[str, float]:
        """With the longest wait and the largest memory of all workers: the others wait for it."""
        names = ("data_wait", "memory_gib")
        most = torch.tensor([pace[name] for name in names], device=self.device)
        torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX)
        return pace | dict(zip(names, most.tolist(), strict=True))

    def _take_notice(self) -> bool:
        """Whether a node is about to be taken away that was not before."""
        # All ranks ask, and Ray gives all of them the same answer.
        notice = ray.train.get_preemption_info()
        named = set(notice.preempted_node_ids) if notice is not None else set()
        if not named - self.noticed:
            return False
        self._say(f"the nodes {', '.join(sorted(named - self.noticed))} will be taken away")
        self.noticed |= named
        return True

    def _validate(self, done: int) -> None:
        config = self.config
        folder = f"overlays/step-{done:08d}"
        with self.accounts.paused():
            with self.mean.in_place() if self.mean is not None else nullcontext():
                scores = validate(
                    self.learner.save,
                    self.corpus,
                    config.val_split,
                    overlays=config.overlays,
                    show=lambda key, jpeg: self.board.post(File(f"{folder}/{key}.jpg", jpeg)),
                )
            point = {"step": float(done), "val_m_j": scores.m_j, "val_m_f": scores.m_f}
            self.history.append(point)
            self.stale = self._without_better()
            if self.rank == 0:
                self.board.post(point)
            self._save(done, scores.m_j)

    def _save(self, done: int, m_j: float | None = None) -> None:
        if m_j is None and not self.noticed and self._is_busy():
            self._say(f"no checkpoint at step {done}: the one before is still being written")
            return
        # Before there are two of them in memory.
        self._settle()
        gathered = checkpoint.gather(self.engine, self.learner)
        steps, scale = checkpoint.optimizer_state(self.engine)
        self.progress = replace(
            self.progress,
            step=done,
            training_seconds=self.seconds_before + self.accounts.spent(),
            optimizer_steps=steps,
            loss_scale=scale,
            history=self.history,
        )
        taken = None
        with checkpoint.whole(self.learner):
            if self.rank == 0:
                taken = checkpoint.snapshot(
                    self.learner,
                    gathered=gathered,
                    mean=None if self.mean is None else self.mean.on_cpu(),
                    progress=self.progress,
                )
        if taken is not None:
            self.store.save(taken.write, done, m_j)
        if self.noticed:
            self._settle()

    def _settle(self) -> None:
        """Wait until rank 0 has written the checkpoint before."""
        self.store.settle()
        # DeepSpeed's own group waits for rank 0 for ten minutes at most.
        torch.distributed.barrier()

    def _is_busy(self) -> bool:
        """Whether rank 0 is still writing a checkpoint, and will be for a while."""
        busy = torch.tensor(float(self.store.stays_busy(PATIENCE_SECONDS)), device=self.device)
        torch.distributed.broadcast(busy, src=0)
        return bool(busy)

    def _profile(self, done: int) -> AbstractContextManager[None]:
        if self.rank != 0 or done not in self.config.profile:
            return nullcontext()
        name = f"profile/step-{done:08d}.json.gz"
        return profiled(self.device, lambda trace: self.board.post(File(name, trace)))

    def _say(self, text: str) -> None:
        if self.rank == 0:
            self.board.post(text)

    def _start_text(self) -> str:
        config, step = self.config, self.progress.step
        trained = sum(_size(parameter) for _, parameter in self.learner.trainable()) / 1e6
        return (
            f"{f'resuming after step {step}' if step else 'starting'}, {self.steps} steps of "
            f"{config.batch} of {len(self.samples)} samples; {config.model.name}, {trained:.2f} M "
            f"parameters trained, {self.world} workers on {self.device.type}"
        )


def _size(parameter: Any) -> int:
    """Numbers in a parameter, all of them where ZeRO 3 has split it."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))
