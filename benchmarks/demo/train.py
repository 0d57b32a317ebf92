"""Train the demo checkpoint: two single-thread processes over shared memory, saved and resumable.

Every process draws its own samples (fresh ones without end), so what it reports as accuracy is
accuracy on samples never seen: whole answers, each token the likeliest one (which is what greedy
decoding gives).  The state folder holds everything needed to go on.

    python -m benchmarks.demo.train --minutes 240 --state build/demo
"""

import argparse
import json
import multiprocessing.connection
import os
import time
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch._inductor.config
import torch.multiprocessing
from torch import Tensor

from benchmarks.demo.export import read_checkpoint
from benchmarks.demo.model import DemoConfig, DemoModel, losses
from benchmarks.demo.tasks import GroupShape, Maker, Sequence, stack
from benchmarks.demo.tokenizer import build_tokenizer

# One compiled graph each: rows, positions, patches, frames, targets; of one process and one step.
GROUPS = {
    "picture": GroupShape(24, 136, 66, 0, 24),
    "sound": GroupShape(12, 80, 0, 54, 14),
    "text": GroupShape(16, 56, 0, 0, 32),
    "tools": GroupShape(3, 168, 0, 0, 28),
    "clip": GroupShape(2, 328, 4 * 63, 0, 12),
    "long clip": GroupShape(1, 616, 8 * 63, 0, 12),
}
# Share of the loss, and in which steps the group takes part (every n-th).
LOSS_SHARE = {
    "picture": 0.45,
    "sound": 0.2,
    "text": 0.25,
    "tools": 0.1,
    "clip": 0.2,
    "long clip": 0.2,
}
EVERY = {"picture": 1, "sound": 4, "text": 1, "tools": 4, "clip": 4, "long clip": 4}
AUX_WEIGHT = 0.15  # of the sum over heads
DECAY_SHARE = 0.38  # the last part of the time, in which the rates fall to zero
WARMUP_STEPS = 50
MUON_RATE, ADAM_RATE = 0.006, 0.003
# The steps of these matrices are smaller: their inputs are strongly correlated.
MUON_SCALE = {"patch_dense.weight": 0.05, "audio_projection.weight": 0.3}
SAVE_SECONDS = 600


def make_sequence(maker: Maker, group: str) -> Sequence:
    """One sequence that fits the group's shape."""
    shape = GROUPS[group]
    while True:
        if group == "picture":
            sequence = maker.make_picture(shape.positions)
        elif group == "sound":
            sequence = maker.make_sound(shape.positions)
        elif group in ("clip", "long clip"):
            frames = 8 if group == "long clip" else maker.rng.choice((3, 4, 4))
            sequence = maker.make_clip(shape.positions, frames)
        else:
            sequence = maker.make_text()
            is_tool = bool(sequence.tasks) and sequence.tasks[0].startswith("tool")
            if is_tool != (group == "tools"):
                continue
        frames = 0 if sequence.frames is None else len(sequence.frames)
        fits = len(sequence.ids) <= shape.positions and len(sequence.targets) <= shape.targets
        if fits and frames <= shape.frames:
            return sequence


class SharedState:
    """Weights, gradients and optimizer moments as flat arrays that both processes see."""

    def __init__(self, size: int, processes: int) -> None:
        self.weights = torch.zeros(size).share_memory_()
        self.gradients = torch.zeros(processes, size).share_memory_()
        self.first = torch.zeros(size).share_memory_()
        self.second = torch.zeros(size).share_memory_()


def bind(model: DemoModel, shared: SharedState, rank: int) -> dict[str, slice]:
    """Make every parameter and gradient a view of the flat arrays; returns where each lies."""
    places, start = {}, 0
    for name, parameter in model.named_parameters():
        place = slice(start, start + parameter.numel())
        if rank == 0:
            shared.weights[place] = parameter.data.flatten()
        parameter.data = shared.weights[place].view_as(parameter)
        parameter.grad = shared.gradients[rank, place].view_as(parameter)
        places[name] = place
        start = place.stop
    return places


def orthogonalize(update: Tensor) -> Tensor:
    """Newton-Schulz steps towards the nearest orthogonal matrix, over the last two axes (Muon)."""
    tall = update.shape[-2] > update.shape[-1]
    x = update.mT if tall else update
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-12)).bfloat16()
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    x = x.float()
    return x.mT if tall else x


class Optimizer:
    """Muon for matrices, Adam for the rest; each process updates its part of the shared weights."""

    def __init__(
        self,
        model: DemoModel,
        places: dict[str, slice],
        shared: SharedState,
        rank: int,
        processes: int,
    ):
        self.shared = shared
        shapes = {name: p.shape for name, p in model.named_parameters()}
        matrices = [
            n
            for n in places
            if n.endswith("_proj.weight") or n in (*MUON_SCALE, "vision_projection.weight")
        ]
        others = [n for n in places if n not in matrices]
        # The largest first, dealt to the process with the least work so far.
        load = [0.0] * processes
        self.matrices: list[tuple[str, slice, torch.Size]] = []
        for name in sorted(matrices, key=lambda n: -shapes[n].numel() * min(shapes[n])):
            owner = load.index(min(load))
            load[owner] += shapes[name].numel() * min(shapes[name])
            if owner == rank:
                self.matrices.append((name, places[name], shapes[name]))
        self.others = [places[name] for k, name in enumerate(others) if k % processes == rank]

    @torch.no_grad()
    def step(self, number: int, factor: float) -> None:
        shared = self.shared
        for name, place, shape in self.matrices:
            gradient = shared.gradients[:, place].mean(0)
            momentum = shared.first[place].mul_(0.95).add_(gradient, alpha=0.05)
            update = gradient.mul(0.05).add_(momentum, alpha=0.95).view(shape)
            rate = (
                MUON_RATE
                * factor
                * MUON_SCALE.get(name, 1.0)
                * max(1.0, shape[0] / shape[1]) ** 0.5
            )
            shared.weights[place].view(shape).add_(orthogonalize(update), alpha=-rate)
        correction = (1 - 0.98**number) ** 0.5 / (1 - 0.9**number)
        for place in self.others:
            gradient = shared.gradients[:, place].mean(0)
            first = shared.first[place].mul_(0.9).add_(gradient, alpha=0.1)
            second = shared.second[place].mul_(0.98).addcmul_(gradient, gradient, value=0.02)
            update = first * correction / (second.sqrt() + 1e-9)
            shared.weights[place].add_(update, alpha=-ADAM_RATE * factor)


def rate_factor(step: int, share: float) -> float:
    """Warm up by steps, hold, fall to zero by the share of the time that has passed."""
    return min(1.0, (step + 1) / WARMUP_STEPS) * min(1.0, max(0.0, (1 - share) / DECAY_SHARE))


def save_atomically(value: Any, path: Path) -> None:
    part = path.with_suffix(".part")
    torch.save(value, part)
    os.replace(part, path)


def save_state(
    folder: Path, shared: SharedState, places: dict[str, slice], progress: dict[str, Any]
) -> None:
    """Write weights, moments and progress as one file that is never half there."""
    state = {
        "config": asdict(DemoConfig()),
        "places": {name: (place.start, place.stop) for name, place in places.items()},
        "weights": shared.weights.clone(),
        "first": shared.first.clone(),
        "second": shared.second.clone(),
        "progress": progress,
    }
    save_atomically(state, folder / "state.pt")


def load_state(
    path: Path, shared: SharedState, places: dict[str, slice], moments: bool
) -> dict[str, Any]:
    state = torch.load(path, weights_only=True)
    for name, place in places.items():
        start, stop = state["places"][name]
        shared.weights[place] = state["weights"][start:stop]
        if moments:
            shared.first[place] = state["first"][start:stop]
            shared.second[place] = state["second"][start:stop]
    return state["progress"]


class Meter:
    """Running shares of right answers by task, halved in weight about every 200 samples."""

    def __init__(self) -> None:
        self.right: dict[str, float] = defaultdict(float)
        self.total: dict[str, float] = defaultdict(float)
        self.seen: dict[str, int] = defaultdict(int)

    def add(self, batch: dict[str, Tensor], correct: Tensor, tasks: list[list[str]]) -> None:
        for row, names in enumerate(tasks):
            for answer, name in enumerate(names):
                mine = batch["target_answers"][row] == answer
                self.total[name] = self.total[name] * 0.997 + 1
                self.right[name] = self.right[name] * 0.997 + float(correct[row][mine].all())
                self.seen[name] += 1

    def shares(self) -> dict[str, float]:
        return {name: round(self.right[name] / self.total[name], 3) for name in sorted(self.total)}


def train_process(
    rank: int, options: argparse.Namespace, shared: SharedState, barrier: Any, run: dict[str, Any]
) -> None:
    torch.set_num_threads(1)
    folder = Path(options.state)
    model = DemoModel(DemoConfig(), seed=options.seed)
    places = bind(model, shared, rank)
    optimizer = Optimizer(model, places, shared, rank, options.processes)
    meter = Meter()
    barrier.wait()
    progress = {"step": 0, "seconds": 0.0, "samples": 0, "tokens": 0}
    if rank == 0:
        if (folder / "state.pt").exists():
            progress = load_state(folder / "state.pt", shared, places, moments=True)
        elif options.continue_from and Path(options.continue_from).is_dir():
            read_checkpoint(model, Path(options.continue_from))
        elif options.continue_from:
            load_state(Path(options.continue_from), shared, places, moments=False)
        run["step"].value = progress["step"]
        run["share"].value = progress["seconds"] / (options.minutes * 60)
    barrier.wait()
    progress["step"] = run["step"].value
    # A resumed run draws other samples than the run before it.
    maker = Maker(build_tokenizer(), seed=options.seed * 1_000_003 + progress["step"] * 10 + rank)

    def measure(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits, aux = model(batch)
        return losses(logits, aux, batch)

    if not options.eager:
        # Layer by layer: the five sliding layers share one graph a shape, and its compile time.
        torch._dynamo.config.recompile_limit = 64
        # With 512-bit vectors torch 2.13 compiles gradients that are NaN on CPUs with AVX512-FP16.
        torch._inductor.config.cpp.simdlen = 256
        for layer in model.layers:
            layer.compile(dynamic=False)
        model.embed_patches = torch.compile(model.embed_patches, dynamic=False)
    total_seconds = options.minutes * 60
    step, spent_before, last_log, last_save = (
        progress["step"],
        progress["seconds"],
        time.time(),
        time.time(),
    )
    aux_weight = AUX_WEIGHT
    # The clock starts after every graph has been compiled once.
    for group in GROUPS:
        arrays, _ = stack(
            [make_sequence(maker, group) for _ in range(GROUPS[group].rows)], GROUPS[group]
        )
        answer, aux, _ = measure({k: torch.from_numpy(v) for k, v in arrays.items()})
        (answer + aux).backward()
        if rank == 0:
            print(f"compiled {group}", flush=True)
    began = time.time()
    sums = {"answer": 0.0, "aux": 0.0, "steps": 0}
    while True:
        shared.gradients[rank].zero_()
        share = run["share"].value
        if share >= 1:
            break
        for group, shape in GROUPS.items():
            if step % EVERY[group] != (1 if group == "tools" and EVERY[group] > 1 else 0):
                continue
            arrays, tasks = stack([make_sequence(maker, group) for _ in range(shape.rows)], shape)
            batch = {k: torch.from_numpy(v) for k, v in arrays.items()}
            answer, aux, correct = measure(batch)
            (LOSS_SHARE[group] * (answer + aux_weight * aux)).backward()
            meter.add(batch, correct, tasks)
            progress["samples"] += shape.rows * options.processes
            progress["tokens"] += int((batch["branches"] >= 0).sum()) * options.processes
            if group == "picture":
                sums["answer"] += float(answer.detach())
                sums["aux"] += float(aux.detach())
        if not shared.gradients[rank].isfinite().all():
            raise SystemExit(f"step {step}: a gradient is not finite; the saved state is as it was")
        barrier.wait()
        optimizer.step(step + 1, options.peak_rate * rate_factor(step, share))
        step += 1
        sums["steps"] += 1
        if rank == 0:
            progress["step"], progress["seconds"] = step, spent_before + time.time() - began
            run["share"].value = progress["seconds"] / total_seconds
        barrier.wait()
        if rank == 0:
            now = time.time()
            if now - last_log > 60:
                report = {
                    "step": step,
                    "minutes": round(progress["seconds"] / 60, 1),
                    "rate": round(options.peak_rate * rate_factor(step, share), 3),
                    "seconds_per_step": round((now - last_log) / sums["steps"], 3),
                    "answer_loss": round(sums["answer"] / sums["steps"], 4),
                    "aux_loss": round(sums["aux"] / sums["steps"], 4),
                    "samples": progress["samples"],
                    "tokens": progress["tokens"],
                    "right": meter.shares(),
                }
                with (folder / "log.jsonl").open("a") as log:
                    log.write(json.dumps(report) + "\n")
                print(json.dumps(report), flush=True)
                sums = {"answer": 0.0, "aux": 0.0, "steps": 0}
                last_log = now
            if now - last_save > SAVE_SECONDS or (folder / "save-now").exists():
                (folder / "save-now").unlink(missing_ok=True)
                save_state(folder, shared, places, progress)
                last_save = now
    if rank == 0:
        save_state(folder, shared, places, progress)
        print("done", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--minutes", type=float, default=240, help="training time, all runs together"
    )
    parser.add_argument(
        "--state", default="build/demo", help="folder of state.pt and log.jsonl; goes on from it"
    )
    parser.add_argument(
        "--continue-from",
        help="a state.pt or an exported checkpoint: a new run starts from its weights alone",
    )
    parser.add_argument(
        "--peak-rate", type=float, default=1.0, help="factor on the rates of a run from nothing"
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--eager", action="store_true", help="without torch.compile: starts at once, slower"
    )
    options = parser.parse_args()
    folder = Path(options.state)
    folder.mkdir(parents=True, exist_ok=True)
    size = sum(p.numel() for p in DemoModel(DemoConfig()).parameters())
    shared = SharedState(size, options.processes)
    context = torch.multiprocessing.get_context("spawn")
    run = {"step": context.Value("q", 0), "share": context.Value("d", 0.0)}
    barrier = context.Barrier(options.processes)
    workers = [
        context.Process(target=train_process, args=(rank, options, shared, barrier, run))
        for rank in range(options.processes)
    ]
    for worker in workers:
        worker.start()
    # The first that ends tells how it went: if it failed, the others wait for it at the barrier.
    multiprocessing.connection.wait([worker.sentinel for worker in workers])
    if any(worker.exitcode for worker in workers):
        for worker in workers:
            worker.terminate()
        raise SystemExit(1)
    for worker in workers:
        worker.join()


if __name__ == "__main__":
    main()
