"""How good a checkpoint is beside another: next-token distributions over a set of prompts."""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlx_gemma4.config import Config
from mlx_gemma4.errors import CheckpointError, InputError, MemoryLimitError
from mlx_gemma4.evaluation.divergence import Divergence
from mlx_gemma4.evaluation.layers import ITEM_BYTES, FinalStates, LayerwiseRun
from mlx_gemma4.evaluation.prompts import EvaluationPrompt, ScoredPrompt, score_prompts
from mlx_gemma4.memory import format_bytes, machine_limit
from mlx_gemma4.processing.processor import Processor
from mlx_gemma4.processing.tokenizer import Tokenizer
from mlx_gemma4.weights import Checkpoint, expected_tensors, open_checkpoint

ALL = "all"
_KINDS = ("text", "image", "audio")  # first in reports, and in this order
_RARE = 0.999
# Rows of the head in float32 at a time, and positions for which their logits are made at a time.
_HEAD_BLOCK_BYTES = 32 << 20
_POSITION_BLOCK = 1024
# Beside layer and states: Python, a matrix while it is read, sums over one block of logits.
_WORK_BYTES = 600_000_000

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Quality:
    """Figures over the scored positions of some prompts; KL and perplexity are in nats and e^nats.

    Attributes:
        prompts: How many.
        positions: How many next-token distributions were compared.
        mean_kl: Of KL(reference || subject).
        kl_999: What 99.9 % of the positions stay below.
        max_kl: The largest.
        top1_agreement: Share of positions at which both find the same token most likely, 0 to 1.
        perplexity: Of the subject on the answers.
        reference_perplexity: Of the reference on the answers.
    """

    prompts: int
    positions: int
    mean_kl: float
    kl_999: float
    max_kl: float
    top1_agreement: float
    perplexity: float
    reference_perplexity: float


@dataclass(frozen=True)
class QualityReport:
    """A checkpoint beside its reference.

    Attributes:
        kinds: Figures of each kind of prompt, and of "all", which comes last.
        by_prompt: Figures of each prompt, by its name.
        notes: What was left out: one line each.
    """

    kinds: Mapping[str, Quality]
    by_prompt: Mapping[str, Quality]
    notes: tuple[str, ...] = ()

    def to_dict(self, *, with_prompts: bool = False) -> dict[str, Any]:
        """Return it as JSON has it; where checkpoints lie is no part of it."""
        document: dict[str, Any] = {
            "prompts": self.kinds[ALL].prompts,
            "kinds": {kind: asdict(quality) for kind, quality in self.kinds.items()},
            "notes": list(self.notes),
        }
        if with_prompts:
            document["by_prompt"] = {
                name: asdict(quality) for name, quality in self.by_prompt.items()
            }
        return document


def compare(
    subject: Path,
    reference: Path,
    prompts: Sequence[EvaluationPrompt],
    *,
    progress: Progress | None = None,
) -> QualityReport:
    """Compare the next-token distributions of two checkpoints with the same vocabulary.

    Both read the ids and media that the reference's processor makes of the prompts, and both go
    through memory layer by layer: see `LayerwiseRun` for what it takes.

    Args:
        subject: Folder of the checkpoint to judge.
        reference: Folder of what it is measured by, such as the checkpoint it was made from.
        prompts: From `bundled_prompts` or `read_prompts`.  Those with a medium that one of the two
            cannot take are left out, with a note.
        progress: Called with (pieces done, pieces in all).

    Raises:
        CheckpointError: One cannot be read, the vocabularies differ, or what a checkpoint computes
            is not finite.
        InputError: A prompt cannot be honoured, or none is left.
        MemoryLimitError: The prompts need more memory than there is.
    """
    checkpoints = [
        open_checkpoint(folder, Config.from_folder(folder)) for folder in (reference, subject)
    ]
    _check_vocabularies(*checkpoints)
    usable, notes = _leave_out(prompts, checkpoints)
    processor = Processor.from_folder(reference, checkpoints[0].config)
    context = min(c.config.text_config.max_position_embeddings for c in checkpoints)
    scored = score_prompts(usable, processor, context)
    _check_memory(scored, checkpoints)

    text = [checkpoint.config.text_config for checkpoint in checkpoints]
    block = max(1, _HEAD_BLOCK_BYTES // (ITEM_BYTES * max(t.hidden_size for t in text)))
    num_blocks = -(-text[0].vocab_size // block)
    total = num_blocks + len(scored) * sum(t.num_hidden_layers for t in text)
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total)

    states = [_run(checkpoint, scored, step) for checkpoint in checkpoints]
    divergence = Divergence(np.concatenate([prompt.targets for prompt in scored]))
    for start in range(0, text[0].vocab_size, block):
        _add_block(divergence, states, start, min(start + block, text[0].vocab_size))
        step()
    _check_finite(checkpoints, divergence)
    return _report(scored, divergence, notes)


def _check_vocabularies(reference: Checkpoint, subject: Checkpoint) -> None:
    """Refuse checkpoints in which an id is not the same token; tokenizer files need not be equal.

    Raises:
        CheckpointError: The vocabularies differ.
    """
    sizes = [c.config.text_config.vocab_size for c in (reference, subject)]
    advice = "only checkpoints with one vocabulary can be compared; name the one it was made from"
    if sizes[0] != sizes[1]:
        raise CheckpointError(
            f"{subject.folder} has a vocabulary of {sizes[1]:,} tokens, {reference.folder} one of "
            f"{sizes[0]:,}; {advice}"
        )
    ours, theirs = (Tokenizer.from_folder(c.folder) for c in (reference, subject))
    try:
        if ours.path.read_bytes() == theirs.path.read_bytes():
            return
    except OSError as error:
        raise CheckpointError(
            f"cannot read {error.filename}: {error.strerror}; check its permissions"
        ) from None
    for token_id in range(sizes[0]):
        tokens = ours.id_to_token(token_id), theirs.id_to_token(token_id)
        if tokens[0] != tokens[1]:
            raise CheckpointError(
                f"{theirs.path} has another vocabulary than {ours.path}: id {token_id} is "
                f"{tokens[1]!a:.60} and not {tokens[0]!a:.60}; {advice}"
            )


def _leave_out(
    prompts: Sequence[EvaluationPrompt], checkpoints: Sequence[Checkpoint]
) -> tuple[list[EvaluationPrompt], tuple[str, ...]]:
    """Return the prompts that both checkpoints, the reference first, can take; and notes."""
    notes: list[str] = []
    usable = list(prompts)
    for medium, media in (("vision", "images"), ("audio", "audio")):
        for name, checkpoint in zip(("reference", "judged"), checkpoints, strict=True):
            if getattr(checkpoint.config, f"{medium}_config") is not None:
                continue
            kept = [prompt for prompt in usable if not getattr(prompt, media)]
            if len(kept) < len(usable):
                notes.append(
                    f"{len(usable) - len(kept)} of {len(prompts)} prompts were left out, those "
                    f"with {media}: the {name} checkpoint has no {medium} front end"
                )
            usable = kept
    if not usable:
        why = f" ({'; '.join(notes)})" if notes else ""
        raise InputError(f"there is no prompt to compare with{why}; give some with text alone")
    return usable, tuple(notes)


def _check_memory(scored: Sequence[ScoredPrompt], checkpoints: Sequence[Checkpoint]) -> None:
    """Refuse prompts whose states do not fit.

    Raises:
        MemoryLimitError: The message has the sum, and what would help.
    """
    num_positions = sum(len(prompt.inputs) for prompt in scored)
    needed = 0
    for checkpoint in checkpoints:
        shapes = expected_tensors(checkpoint.config)
        layers: dict[str, int] = {}
        for name, shape in shapes.items():
            if name.startswith("language_model.layers."):
                layer = name.split(".")[2]
                layers[layer] = layers.get(layer, 0) + ITEM_BYTES * math.prod(shape)
        states = ITEM_BYTES * num_positions * checkpoint.config.text_config.hidden_size
        # Those of the scored positions are kept beside them, and those of the other checkpoint.
        needed = max(needed, max(layers.values()) + 3 * states + _WORK_BYTES)
    limit = machine_limit()
    if needed > limit.limit_bytes:
        raise MemoryLimitError(
            f"comparing needs {format_bytes(needed)} for a layer and {num_positions:,} positions; "
            f"{limit.source} {format_bytes(limit.limit_bytes)}; give fewer or shorter prompts"
        )


def _run(
    checkpoint: Checkpoint, scored: Sequence[ScoredPrompt], on_prompt: Callable[[], None]
) -> FinalStates:
    """Return the final states at the scored positions."""
    run = LayerwiseRun(checkpoint, [prompt.inputs for prompt in scored])
    deque(run.layers(on_prompt), maxlen=0)  # the states go through each layer as it is
    return run.finish([prompt.positions for prompt in scored])


def _add_block(
    divergence: Divergence, states: Sequence[FinalStates], start: int, stop: int
) -> None:
    """Add the logits of tokens start..stop at all positions."""
    rows = [of_one.rows(start, stop) for of_one in states]
    for first in range(0, states[0].hidden.shape[0], _POSITION_BLOCK):
        positions = slice(first, first + _POSITION_BLOCK)
        reference, subject = (
            np.array(of_one.logits(of_rows, positions))
            for of_one, of_rows in zip(states, rows, strict=True)
        )
        divergence.add(positions, start, reference, subject)


def _check_finite(checkpoints: Sequence[Checkpoint], divergence: Divergence) -> None:
    for checkpoint, loss in zip(
        checkpoints, (divergence.reference_loss, divergence.subject_loss), strict=True
    ):
        if not np.isfinite(loss).all():
            raise CheckpointError(
                f"{checkpoint.folder} computes values that are not finite at "
                f"{np.count_nonzero(~np.isfinite(loss)):,} of {len(loss):,} positions; its weights "
                "are damaged; download it again, or convert it anew"
            )


def _report(
    scored: Sequence[ScoredPrompt], divergence: Divergence, notes: tuple[str, ...]
) -> QualityReport:
    figures = (
        divergence.kl,
        divergence.is_same_top,
        divergence.subject_loss,
        divergence.reference_loss,
    )
    counts = np.array([len(prompt.positions) for prompt in scored])
    owners = np.repeat(np.arange(len(scored)), counts)

    def quality(numbers: Sequence[int]) -> Quality:
        is_of_them = np.isin(owners, numbers)
        kl, is_same_top, loss, reference_loss = (array[is_of_them] for array in figures)
        return Quality(
            prompts=len(numbers),
            positions=len(kl),
            mean_kl=float(kl.mean()),
            kl_999=float(np.quantile(kl, _RARE)),
            max_kl=float(kl.max()),
            top1_agreement=float(is_same_top.mean()),
            perplexity=float(np.exp(loss.mean())),
            reference_perplexity=float(np.exp(reference_loss.mean())),
        )

    found = dict.fromkeys(prompt.kind for prompt in scored)
    ordered = [kind for kind in _KINDS if kind in found]
    ordered += [kind for kind in found if kind not in _KINDS]
    kinds = {
        kind: quality([k for k, prompt in enumerate(scored) if prompt.kind == kind])
        for kind in ordered
    }
    kinds[ALL] = quality(range(len(scored)))
    by_prompt = {prompt.name: quality([k]) for k, prompt in enumerate(scored)}
    return QualityReport(kinds, by_prompt, notes)
