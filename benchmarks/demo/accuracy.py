"""Ask the demo checkpoint, through the product, about samples that its training never saw.

Whole answers only: an answer counts when its text (or its tool call) is exactly the expected one.
Pictures, sounds, and clips come from another stream of random numbers than those of training;
texts and sums are kept apart by a hash of what is asked.  The table has failures too: dark and
noisy pictures, which are no part of the training.

    python -m benchmarks.demo.accuracy --samples 200 --card
"""

import argparse
import json
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx

from benchmarks.demo import clips, pictures, sounds, text, words
from benchmarks.demo.samples import clip_bytes
from benchmarks.demo.tasks import Answered, name_place, relate
from mlx_gemma4.api import generate_result, load
from mlx_gemma4.hub import find_checkpoint

SIZE = (192, 144)
MAX_TOKENS = 48
MARKERS = ("<!-- accuracy: begin -->", "<!-- accuracy: end -->")


@dataclass
class Asked:
    """One prompt of the table and the answer that counts."""

    prompt: Any
    answer: str
    options: dict[str, Any] = field(default_factory=dict)
    call: tuple[str, dict[str, Any]] | None = None


@dataclass(frozen=True)
class Row:
    """A line of the table: `mark` is the share wanted, None where nothing is promised."""

    group: str
    name: str
    make: Callable[[random.Random], Asked]
    mark: float | None = None


def ask(rng: random.Random, question: str, *slots: object) -> str:
    return rng.choice(words.ASK[question]).format(*slots)


def about(picture: pictures.Picture, asked: Answered) -> Asked:
    return Asked(asked.question, asked.answer, {"images": [picture.pixels]})


# Pictures.


def ask_single(
    question: str,
    radius: tuple[float, float],
    spoil: Callable[[random.Random, pictures.Picture], pictures.Picture] | None = None,
) -> Callable[[random.Random], Asked]:
    def make(rng: random.Random) -> Asked:
        picture = pictures.draw_single(rng, SIZE, radius)
        item = picture.items[0]
        answer = {"shape": item.shape, "colour": item.colour, "shape and colour": item.name}[
            question
        ]
        if spoil:
            picture = spoil(rng, picture)
        return about(picture, Answered(question, ask(rng, question), answer))

    return make


def ask_count(low: int, high: int, radius: tuple[float, float]) -> Callable[[random.Random], Asked]:
    def make(rng: random.Random) -> Asked:
        picture = pictures.draw_count(rng, SIZE, rng.randint(low, high), radius)
        return about(picture, Answered("count", ask(rng, "count"), str(len(picture.items))))

    return make


def ask_place(count: int) -> Callable[[random.Random], Asked]:
    def make(rng: random.Random) -> Asked:
        picture = pictures.draw_scene(rng, SIZE, count)
        item = picture.items[0]
        return about(
            picture, Answered("place", ask(rng, "place", item.name), name_place(item, SIZE))
        )

    return make


def ask_relation(count: int) -> Callable[[random.Random], Asked]:
    def make(rng: random.Random) -> Asked:
        while True:
            picture = pictures.draw_scene(rng, SIZE, count)
            a, b = picture.items[:2]
            answer = relate(a, b)
            if answer:
                return about(picture, Answered("", ask(rng, "relation", a.name, b.name), answer))

    return make


def ask_side(rng: random.Random) -> Asked:
    while True:
        picture = pictures.draw_scene(rng, SIZE, 3)
        a, b = picture.items[:2]
        side = rng.choice(("left of", "right of", "above", "below"))
        lead = b.x - a.x if side == "left of" else a.x - b.x
        if side in ("above", "below"):
            lead = b.y - a.y if side == "above" else a.y - b.y
        if abs(lead) > 18:
            answer = "yes" if lead > 0 else "no"
            return about(picture, Answered("", ask(rng, side, a.name, b.name), answer))


def ask_detail(question: str) -> Callable[[random.Random], Asked]:
    def make(rng: random.Random) -> Asked:
        picture = pictures.draw_scene(rng, SIZE, 3)
        item = picture.items[0]
        if question == "colour of":
            return about(picture, Answered("", ask(rng, question, item.shape), item.colour))
        return about(picture, Answered("", ask(rng, question, item.colour), item.shape))

    return make


def ask_number(
    digits: tuple[int, int],
    height: tuple[float, float],
    spoil: Callable[[random.Random, pictures.Picture], pictures.Picture] | None = None,
) -> Callable[[random.Random], Asked]:
    def make(rng: random.Random) -> Asked:
        number = "".join(rng.choices("0123456789", k=rng.randint(*digits)))
        picture = pictures.draw_number(rng, SIZE, number, height)
        if spoil:
            picture = spoil(rng, picture)
        return about(picture, Answered("number", ask(rng, "number"), number))

    return make


def make_dark(_: random.Random, picture: pictures.Picture) -> pictures.Picture:
    return pictures.darken(picture)


def make_noisy(rng: random.Random, picture: pictures.Picture) -> pictures.Picture:
    return pictures.add_noise(picture, rng)


# Sounds and clips.


def ask_keys(count: int) -> Callable[[random.Random], Asked]:
    def make(rng: random.Random) -> Asked:
        sound = sounds.play_keys(rng, "".join(rng.choices(words.KEYS, k=count)))
        return Asked(ask(rng, "keys"), sound.answer, {"audio": [sound.samples]})

    return make


def ask_melody(rng: random.Random) -> Asked:
    sound = sounds.play_melody(rng)
    return Asked(ask(rng, "melody"), sound.answer, {"audio": [sound.samples]})


def ask_clip(question: str, num_frames: int = 8) -> Callable[[random.Random], Asked]:
    def make(rng: random.Random) -> Asked:
        clip = clips.draw_clip(rng, num_frames)
        answer = clip.direction if question == "motion" else clip.items[0].name
        # Whole frames a second: 8 frames take 1 to 4 seconds.
        video = clip_bytes(clip.frames, frames_per_second=rng.choice((2, 4, 8)))
        return Asked(ask(rng, question), answer, {"videos": [video]})

    return make


# Texts.


def ask_text(write: Callable[[random.Random], text.TextTask]) -> Callable[[random.Random], Asked]:
    def make(rng: random.Random) -> Asked:
        task = write(rng)
        answer = task.reply.split("<channel|>")[-1]
        options: dict[str, Any] = {"thinking": task.thinking}
        if task.tools:
            options["tools"] = [words.TOOLS[name] for name in task.tools]
        call = re.match(r'<\|tool_call>call:(\w+)\{city:<\|"\|>(.*)<\|"\|>\}', task.reply)
        if call:
            return Asked(task.question, "", options, (call[1], {"city": call[2]}))
        prompt: Any = task.question
        if task.call:
            prompt = answered_call(task)
        return Asked(prompt, answer, options)

    return make


def answered_call(task: text.TextTask) -> list[dict[str, Any]]:
    """The conversation up to the tool's answer."""
    assert task.call
    tool, city = task.call
    function = {"name": tool, "arguments": {"city": city}}
    call = {"type": "function", "function": function}
    given = {"name": tool, "response": task.response}
    return [
        {"role": "user", "content": task.question},
        {"role": "assistant", "tool_calls": [call], "tool_responses": [given]},
    ]


def write_until(wanted: str) -> Callable[[random.Random], text.TextTask]:
    def write(rng: random.Random) -> text.TextTask:
        while True:
            task = text.write_call(rng, held_out=True)
            if task.task == wanted:
                return task

    return write


def word_task(name: str) -> Callable[[random.Random], Asked]:
    return ask_text(lambda rng: text.write_words(rng, name, held_out=True))


ROWS = (
    Row("shape and colour", "shape, radius 28-46 px", ask_single("shape", (28, 46)), 0.98),
    Row("shape and colour", "shape, radius 16-28 px", ask_single("shape", (16, 28)), 0.98),
    Row("shape and colour", "colour", ask_single("colour", (16, 46)), 0.98),
    Row("shape and colour", "both in one answer", ask_single("shape and colour", (16, 46)), 0.98),
    Row("counting", "1-3 objects, radius 9-18 px", ask_count(1, 3, (9, 18)), 0.95),
    Row("counting", "4-6 objects, radius 13-18 px", ask_count(4, 6, (13, 18)), 0.95),
    Row("counting", "4-6 objects, radius 9-13 px", ask_count(4, 6, (9, 13)), 0.95),
    Row("position", "where one of 2 is", ask_place(2), 0.95),
    Row("position", "where one of 3 is", ask_place(3), 0.95),
    Row("position", "where one of 4 is", ask_place(4), 0.95),
    Row("relative position", "left, right, above, below; 2 objects", ask_relation(2), 0.95),
    Row("relative position", "left, right, above, below; 4 objects", ask_relation(4), 0.95),
    Row("relative position", "yes or no; 3 objects", ask_side, 0.95),
    Row("details", "colour of one of 3", ask_detail("colour of")),
    Row("details", "shape of one of 3", ask_detail("shape of")),
    Row("numbers", "1 digit, 24-44 px", ask_number((1, 1), (24, 44)), 0.95),
    Row("numbers", "2 digits, 24-44 px", ask_number((2, 2), (24, 44)), 0.95),
    Row("numbers", "3 digits, 24-44 px", ask_number((3, 3), (24, 44)), 0.95),
    Row("numbers", "4 digits, 24-44 px", ask_number((4, 4), (24, 44)), 0.95),
    Row("numbers", "1-4 digits, 18-24 px", ask_number((1, 4), (18, 24))),
    Row("sounds", "1 key", ask_keys(1), 0.97),
    Row("sounds", "2 keys", ask_keys(2), 0.97),
    Row("sounds", "3 keys", ask_keys(3), 0.97),
    Row("sounds", "4 keys", ask_keys(4), 0.97),
    Row("sounds", "5 keys", ask_keys(5), 0.97),
    Row("sounds", "melody up or down", ask_melody, 0.97),
    Row("clips", "direction of 8", ask_clip("motion"), 0.97),
    Row("clips", "what moves", ask_clip("mover")),
    Row("text", "copying", word_task("copy"), 0.98),
    Row("text", "reversing", word_task("reverse"), 0.98),
    Row("text", "upper case", word_task("upper"), 0.98),
    Row("text", "adding with a thought", ask_text(lambda r: text.write_sum(r, True, True)), 0.98),
    Row("text", "adding without", ask_text(lambda r: text.write_sum(r, True, False)), 0.98),
    Row("text", "tool call", ask_text(write_until("tool call")), 0.98),
    Row("text", "sentence from a tool's answer", ask_text(write_until("tool answer"))),
    Row("never trained", "shape, dark picture", ask_single("shape", (28, 46), make_dark)),
    Row("never trained", "shape, noisy picture", ask_single("shape", (28, 46), make_noisy)),
    Row("never trained", "number, dark picture", ask_number((1, 2), (24, 44), make_dark)),
    Row("never trained", "number, noisy picture", ask_number((1, 2), (24, 44), make_noisy)),
    Row("never trained", "counting 7-8 objects", ask_count(7, 8, (9, 13))),
    Row("never trained", "6 keys", ask_keys(6)),
)


def measure_row(model: Any, processor: Any, row: Row, samples: int) -> dict[str, Any]:
    """Ask `samples` questions; returns the share of right answers and the first wrong ones."""
    rng = random.Random(f"accuracy {row.group} {row.name}")
    right, wrong = 0, []
    for _ in range(samples):
        asked = row.make(rng)
        result = generate_result(
            model, processor, asked.prompt, max_tokens=MAX_TOKENS, temp=0.0, **asked.options
        )
        if asked.call:
            given = [(call.name, dict(call.arguments)) for call in result.tool_calls]
            is_right = given == [asked.call]
        else:
            is_right = result.text.strip() == asked.answer
        right += is_right
        if not is_right and len(wrong) < 5:
            wrong.append({"expected": asked.answer or str(asked.call), "said": result.text.strip()})
    return {
        "group": row.group,
        "name": row.name,
        "samples": samples,
        "right": right / samples,
        "mark": row.mark,
        "wrong": wrong,
    }


def write_table(records: list[dict[str, Any]]) -> str:
    """The card's table in Markdown."""
    lines = ["| task | | right | mark | samples |", "|---|---|---|---|---|"]
    for record in records:
        mark = "" if record["mark"] is None else f"{record['mark']:.0%}"
        if record["mark"] is not None and record["right"] < record["mark"]:
            mark += " (missed)"
        share = f"{record['right']:.1%}"
        lines.append(
            f"| {record['group']} | {record['name']} | {share} | {mark} | {record['samples']} |"
        )
    return "\n".join(lines)


def update_card(model: str, records: list[dict[str, Any]]) -> None:
    """Put the table between the markers of the checkpoint's README.md."""
    card = find_checkpoint(model) / "README.md"
    head, rest = card.read_text(encoding="utf-8").split(MARKERS[0])
    tail = rest.split(MARKERS[1])[1]
    table = f"{MARKERS[0]}\n{write_table(records)}\n{MARKERS[1]}"
    card.write_text(head + table + tail, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo", help="a checkpoint folder, or the bundled one")
    parser.add_argument("--samples", type=int, default=200, help="of each row")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/demo/accuracy.json"))
    parser.add_argument(
        "--card", action="store_true", help="write the table into the model's README.md"
    )
    parser.add_argument("--stored", action="store_true", help="ask nothing: the card from --output")
    parser.add_argument("--only", default="", help="groups to measure, comma-separated")
    options = parser.parse_args()
    if options.stored:
        update_card(options.model, json.loads(options.output.read_text(encoding="utf-8"))["rows"])
        return
    model, processor = load(options.model)
    records, start = [], time.perf_counter()
    for row in ROWS:
        if options.only and row.group not in options.only.split(","):
            continue
        record = measure_row(model, processor, row, options.samples)
        records.append(record)
        print(f"{record['right']:6.1%}  {row.group}: {row.name}", flush=True)
    document = {
        "device": str(mx.default_device()),
        "seconds": round(time.perf_counter() - start, 1),
        "rows": records,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if options.card:
        update_card(options.model, records)


if __name__ == "__main__":
    main()
