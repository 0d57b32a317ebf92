"""Turn drawings into training sequences: prompts as the template renders them, answers, labels.

One picture answers several questions: the prefix (up to the end of the picture) is shared, each
question is a branch that sees the prefix and itself alone, with the positions it would have if it
were the only one.  So a branch is exactly an independent prompt, at the price of its own tokens.
"""

import random
from dataclasses import dataclass, field

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from benchmarks.demo import clips, pictures, sounds, text, words
from benchmarks.demo.pictures import Item, Picture
from mlx_gemma4.processing.image import fit_size, pack_patches, resize

SOFT_TOKEN_BUDGET = 70
PATCH = 48
FRAME = 640
MAX_PATCHES = 66  # of SIZES at the budget
PAD, EOS, BOS = 0, 1, 2
IGNORE = -1

# Auxiliary labels of training: name and number of classes, 0 is "none" where that can be.
AUX_HEADS = {
    "shape": 7,
    "colour": 8,
    "digit": 11,
    "digit ordinal": 5,
    "count": 10,
    "digit 1": 11,
    "digit 2": 11,
    "digit 3": 11,
    "digit 4": 11,
    "cell x": 9,
    "cell y": 9,
    "key": 13,
    "ordinal": 7,  # of the tone in a frame; in a patch, 1 where the centre of an object lies
    "pitch": 16,
    "direction": 10,
}
AUX_INDEX = {name: k for k, name in enumerate(AUX_HEADS)}

ASK_MODEL = "<turn|>\n<|turn>model\n"
EMPTY_THOUGHT = "<|channel>thought\n<channel|>"
THINK_TURN = "<|turn>system\n<|think|>\n<turn|>\n"


@dataclass
class Answered:
    """A question, its answer and the row of the accuracy table that it counts for."""

    task: str
    question: str
    answer: str
    named: list[tuple[str, Item]] = field(default_factory=list)  # the words for an object


@dataclass
class Sequence:
    """One row of a batch before padding; lists run over positions."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    branches: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    soft: list[int] = field(default_factory=list)
    labels: list[tuple[int, int, int]] = field(default_factory=list)  # position, head, class
    targets: list[tuple[int, int, int]] = field(default_factory=list)  # position, next id, branch
    tasks: list[str] = field(default_factory=list)
    patches: list[np.ndarray] = field(default_factory=list)
    patch_positions: list[np.ndarray] = field(default_factory=list)
    frames: np.ndarray | None = None

    def append(
        self, ids: list[int], branch: int = 0, soft_from: int | None = None, block: int = -1
    ) -> int:
        """Append tokens to the prefix (branch 0) or to a branch; returns the first one's index."""
        start = len(self.ids)
        same = [p for p, b in zip(self.positions, self.branches, strict=True) if b in (0, branch)]
        position = same[-1] + 1 if same else 0
        self.ids += ids
        self.positions += range(position, position + len(ids))
        self.branches += [branch] * len(ids)
        self.blocks += [block] * len(ids)
        self.soft += (
            [-1] * len(ids) if soft_from is None else list(range(soft_from, soft_from + len(ids)))
        )
        return start


def cut_patches(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Return patches [P, 6912] uint8, positions [P, 2] (x, y) and grid, as the processor does."""
    height, width = pixels.shape[:2]
    fitted = fit_size(width, height, SOFT_TOKEN_BUDGET)
    patches, positions = pack_patches(resize(Image.fromarray(pixels), fitted))
    grid = (fitted[0] // PATCH, fitted[1] // PATCH)
    return np.rint(patches * 255).astype(np.uint8), positions, grid


def label_patches(
    items: list[Item], size: tuple[int, int], grid: tuple[int, int]
) -> dict[str, np.ndarray]:
    """Return per patch what lies in it: shape, colour, digit, digit ordinal (0 where nothing)."""
    columns, rows = grid
    cell_width, cell_height = size[0] / columns, size[1] / rows
    y, x = np.divmod(np.arange(rows * columns), columns)
    x, y = (x + 0.5) * cell_width, (y + 0.5) * cell_height
    nearest = np.full(rows * columns, 1e9)
    names = ("shape", "colour", "digit", "digit ordinal", "ordinal")
    labels = {name: np.zeros(rows * columns, int) for name in names}
    for item in items:
        dx, dy = np.abs(x - item.x), np.abs(y - item.y)
        inside = (dx < item.half_width + cell_width * 0.4) & (
            dy < item.half_height + cell_height * 0.4
        )
        distance = dx**2 + dy**2
        mine = inside & (distance < nearest)
        nearest = np.where(mine, distance, nearest)
        if item.shape:
            column, row = int(item.x / cell_width), int(item.y / cell_height)
            labels["ordinal"][row * columns + column] = 1
            labels["shape"][mine] = words.SHAPES.index(item.shape) + 1
            labels["colour"][mine] = list(words.COLOURS).index(item.colour) + 1
        if item.digit >= 0:
            labels["digit"][mine] = item.digit + 1
            labels["digit ordinal"][mine] = item.ordinal
    return labels


def name_place(item: Item, size: tuple[int, int]) -> str:
    """Column and row words: "top left", "center", "bottom" ..."""
    column = min(2, int(item.x / size[0] * 3))
    row = min(2, int(item.y / size[1] * 3))
    if row == 1:
        return words.COLUMNS[column]
    return words.ROWS[row] if column == 1 else f"{words.ROWS[row]} {words.COLUMNS[column]}"


def relate(a: Item, b: Item) -> str | None:
    """Where a lies relative to b, or None where it is not clear."""
    dx, dy = a.x - b.x, a.y - b.y
    if abs(dx) > 1.4 * abs(dy) and abs(dx) > 18:
        return "left" if dx < 0 else "right"
    if abs(dy) > 1.4 * abs(dx) and abs(dy) > 18:
        return "above" if dy < 0 else "below"
    return None


class Maker:
    """Makes training sequences; one for each process, with its own random numbers."""

    def __init__(self, tokenizer: Tokenizer, seed: int, held_out: bool = False) -> None:
        self.tokenizer = tokenizer
        self.rng = random.Random(f"{seed} {'held out' if held_out else 'train'}")
        self.held_out = held_out
        self.cache: dict[str, list[int]] = {}
        names = ("<|image|>", "<|audio|>", "<|video|>")
        self.image_id, self.audio_id, self.video_id = (self.encode(name)[0] for name in names)

    def encode(self, piece: str) -> list[int]:
        """Token ids; pieces end and begin at special tokens, so they encode as in the whole."""
        if piece not in self.cache:
            if len(self.cache) > 50_000:
                self.cache.clear()
            self.cache[piece] = self.tokenizer.encode(piece, add_special_tokens=False).ids
        return self.cache[piece]

    def ask(self, question: str, *slots: object) -> str:
        return self.rng.choice(words.ASK[question]).format(*slots)

    # What is asked about a drawing, the main question first.

    def ask_single(self, picture: Picture) -> list[Answered]:
        item = picture.items[0]
        asked = [
            Answered("shape", self.ask("shape"), item.shape),
            Answered("colour", self.ask("colour"), item.colour),
            Answered("shape and colour", self.ask("shape and colour"), item.name),
        ]
        self.rng.shuffle(asked)
        return asked

    def ask_scene(self, picture: Picture, size: tuple[int, int]) -> list[Answered]:
        rng, items = self.rng, picture.items
        for item in items:
            item.place = (item.x / size[0], item.y / size[1])

        def name(item: Item) -> tuple[str, Item]:
            return (item.name if rng.random() < 0.7 else item.shape), item

        def ask(task: str, wording: str, answer: str, *named: tuple[str, Item]) -> Answered:
            return Answered(task, self.ask(wording, *(n for n, _ in named)), answer, [*named])

        main: list[Answered] = []
        pairs = [(a, b) for a in items for b in items if a is not b]
        rng.shuffle(pairs)
        for a, b in pairs:
            answer = relate(a, b)
            if answer:
                main.append(ask("relation", "relation", answer, name(a), name(b)))
                break
        a, b = rng.choice(pairs)
        side = rng.choice(("left of", "right of", "above", "below"))
        lead = {
            "left of": b.x - a.x,
            "right of": a.x - b.x,
            "above": b.y - a.y,
            "below": a.y - b.y,
        }[side]
        if abs(lead) > 18:
            yes_no = "yes" if lead > 0 else "no"
            main.append(ask("side, yes or no", side, yes_no, name(a), name(b)))
        places = [ask("place", "place", name_place(i, size), name(i)) for i in rng.sample(items, 2)]
        item = rng.choice(items)
        details = [
            ask("colour of one", "colour of", item.colour, (item.shape, item)),
            ask("shape of one", "shape of", item.shape, (item.colour, item)),
        ]
        rest = [
            *main[1:],
            *places[1:],
            *details,
            Answered("count", self.ask("count"), str(len(items))),
        ]
        rng.shuffle(rest)
        first = [places[0], *main[:1]]
        rng.shuffle(first)
        asked = first + rest
        yes_no = [a for a in asked if a.task == "side, yes or no"]
        if yes_no and rng.random() < 0.6:  # the hardest of them: asked first, it always fits
            asked.remove(yes_no[0])
            asked.insert(0, yes_no[0])
        return asked

    def ask_count(self, picture: Picture) -> list[Answered]:
        items = picture.items
        asked = [Answered("count", self.ask("count"), str(len(items)))]
        if len({i.shape for i in items}) == 1:
            shape = items[0].shape
            wording = self.ask("count kind", shape).replace("crosss", "crosses")
            asked.append(Answered("count", wording, str(len(items))))
            self.rng.shuffle(asked)
        return asked

    def ask_number(self, picture: Picture) -> list[Answered]:
        digits = "".join(str(i.digit) for i in picture.items)
        parts = [
            Answered("first digit", self.ask("first digit"), digits[0]),
            Answered("last digit", self.ask("last digit"), digits[-1]),
            Answered("number of digits", self.ask("digits"), str(len(digits))),
        ]
        self.rng.shuffle(parts)
        return [Answered("number", self.ask("number"), digits), *parts]

    # Sequences.

    def add_branches(
        self, sequence: Sequence, asked: list[Answered], tail: str, room: int, most: int
    ) -> None:
        """Append each question and answer as a branch, as many as fit into `room` positions."""
        for branch, item in enumerate(asked[:most], start=1):
            prompt = self.encode(item.question + tail)
            reply = self.encode(item.answer + "<turn|>")
            if len(sequence.ids) + len(prompt) + len(reply) > room:
                if branch == 1:
                    raise ValueError(f"question does not fit: {len(prompt)} + {len(reply)} tokens")
                return
            start = sequence.append(prompt, branch)
            for name, named in item.named:
                self.label_name(sequence, start, item.question, name, named)
            self.add_reply(sequence, reply, branch, item.task)

    def label_name(
        self, sequence: Sequence, start: int, question: str, name: str, item: Item
    ) -> None:
        """Label the last token of an object's name with what and where it is.

        Without these labels, looking an object up is hardly ever found.  `start` is the index of
        the question's first token.
        """
        end = question.index(name) + len(name)
        position = start + len(self.encode(question[:end])) - 1
        x, y = item.place
        for head, value in (
            ("shape", words.SHAPES.index(item.shape) + 1),
            ("colour", list(words.COLOURS).index(item.colour) + 1),
            ("cell x", min(8, int(x * 9))),
            ("cell y", min(8, int(y * 9))),
        ):
            sequence.labels.append((position, AUX_INDEX[head], value))

    def add_reply(self, sequence: Sequence, reply: list[int], branch: int, task: str) -> None:
        start = sequence.append(reply, branch)
        sequence.targets += [
            (start - 1 + k, token, len(sequence.tasks)) for k, token in enumerate(reply)
        ]
        sequence.tasks.append(task)

    def add_picture(
        self, sequence: Sequence, pixels: np.ndarray, items: list[Item], token_id: int
    ) -> int:
        """Append one picture or frame with its labels; returns the index of its end token."""
        patches, patch_positions, grid = cut_patches(pixels)
        size = (pixels.shape[1], pixels.shape[0])
        soft_from = sum(len(p) for p in sequence.patches)
        start = sequence.append(
            [token_id] * len(patches), soft_from=soft_from, block=len(sequence.patches)
        )
        sequence.patches.append(patches)
        sequence.patch_positions.append(patch_positions)
        for name, values in label_patches(items, size, grid).items():
            head = AUX_INDEX[name]
            sequence.labels += [(start + k, head, int(v)) for k, v in enumerate(values)]
        end = sequence.append(self.encode("<image|>"))
        if len(items) == 1 and items[0].shape:
            sequence.labels.append(
                (end, AUX_INDEX["cell x"], min(8, int(items[0].x / size[0] * 9)))
            )
            sequence.labels.append(
                (end, AUX_INDEX["cell y"], min(8, int(items[0].y / size[1] * 9)))
            )
        return end

    def make_picture(self, room: int) -> Sequence:
        """A picture with two to five questions; in one of eight, one question before it."""
        rng = self.rng
        size = pictures.random_size(rng)
        kind = rng.choices(("number", "single", "scene", "count"), (0.3, 0.08, 0.34, 0.28))[0]
        if kind == "number":
            digits = "".join(
                rng.choices("0123456789", k=rng.choices((1, 2, 3, 4), (1, 1.2, 1.4, 1.6))[0])
            )
            picture = pictures.draw_number(rng, size, digits)
            asked = self.ask_number(picture)
        elif kind == "single":
            picture = pictures.draw_single(rng, size)
            asked = self.ask_single(picture)
        elif kind == "scene":
            picture = pictures.draw_scene(rng, size, rng.randint(2, 4))
            asked = self.ask_scene(picture, size)
        else:
            count = rng.choices(range(1, 7), (1, 1, 1, 2, 2, 2))[0]
            # Small objects are the last to be counted rightly: half of the pictures have them.
            picture = pictures.draw_count(rng, size, count, rng.choice(((9, 13), (9, 18))))
            asked = self.ask_count(picture)

        sequence = Sequence()
        text_first = rng.random() < 0.125
        opening = "<bos><|turn>user\n"
        sequence.append(
            self.encode(opening + (asked[0].question if text_first else "") + "<|image>")
        )
        end = self.add_picture(sequence, picture.pixels, picture.items, self.image_id)
        if kind == "number":
            for k in range(4):
                label = picture.items[k].digit + 1 if k < len(picture.items) else 0
                sequence.labels.append((end, AUX_INDEX[f"digit {k + 1}"], label))
        sequence.labels.append((end, AUX_INDEX["count"], len(picture.items)))
        tail = ASK_MODEL + EMPTY_THOUGHT
        if text_first:
            sequence.append(self.encode(tail))
            self.add_reply(sequence, self.encode(asked[0].answer + "<turn|>"), 0, asked[0].task)
            return sequence
        if len(asked) > 1 and rng.random() < 0.1:
            # A second turn: the first question and answer are history, without the empty thought.
            history = asked.pop()
            turn = f"{history.question}{ASK_MODEL}{history.answer}<turn|>\n<|turn>user\n"
            sequence.append(self.encode(turn))
        self.add_branches(sequence, asked, tail, room, most=5)
        return sequence

    def make_clip(self, room: int, num_frames: int) -> Sequence:
        rng = self.rng
        clip = clips.draw_clip(rng, num_frames)
        sequence = Sequence()
        opening = "<bos><|turn>user\n"
        for k, (frame, time_s, item) in enumerate(
            zip(clip.frames, clip.times_s, clip.items, strict=True)
        ):
            stamp = f"{int(time_s // 60):02d}:{int(time_s % 60):02d} <|image>"
            sequence.append(self.encode((opening if k == 0 else " ") + stamp))
            end = self.add_picture(sequence, frame, [item], self.video_id)
            if k:
                direction = list(words.DIRECTIONS).index(clip.direction)
                sequence.labels.append((end, AUX_INDEX["direction"], direction))
        asked = [
            Answered(f"clip of {num_frames} frames", self.ask("motion"), clip.direction),
            Answered("what moves", self.ask("mover"), clip.items[0].name),
        ]
        self.add_branches(sequence, asked, ASK_MODEL + EMPTY_THOUGHT, room, most=2)
        return sequence

    def make_sound(self, room: int) -> Sequence:
        rng = self.rng
        melody = rng.random() < 0.35
        sound = sounds.play_melody(rng) if melody else sounds.play_keys(rng)
        main = "melody" if melody else "keys"
        task = main if melody else f"keys, {len(sound.answer)}"
        asked = [
            Answered(task, self.ask(main), sound.answer),
            Answered("number of tones", self.ask("tones"), str(len(sound.tones))),
        ]
        num_frames = -(-len(sound.samples) // FRAME)
        frames = np.zeros(num_frames * FRAME, np.float32)
        frames[: len(sound.samples)] = sound.samples
        sequence = Sequence(frames=frames.reshape(num_frames, FRAME))
        text_first = rng.random() < 0.5
        opening = "<bos><|turn>user\n" + (asked[0].question if text_first else "") + "<|audio>"
        sequence.append(self.encode(opening))
        start = sequence.append([self.audio_id] * num_frames, soft_from=0)
        for name, head in (("key", AUX_INDEX["key"]), ("ordinal", AUX_INDEX["ordinal"])):
            if name == "key" and melody:
                continue
            labels = np.zeros(num_frames, int)
            for ordinal, tone in enumerate(sound.tones, start=1):
                first, last = (
                    (tone.start + FRAME // 2) // FRAME,
                    max(1, (tone.end + FRAME // 2) // FRAME),
                )
                labels[first:last] = words.KEYS.index(tone.key) + 1 if name == "key" else ordinal
            sequence.labels += [(start + k, head, int(v)) for k, v in enumerate(labels)]
        if melody:
            for tone in sound.tones:
                pitch = min(15, max(0, int(np.log2(tone.pitch_hz / 220) * 12 / 2.5)))
                for k in range(
                    (tone.start + FRAME // 2) // FRAME, (tone.end + FRAME // 2) // FRAME
                ):
                    if k < num_frames:
                        sequence.labels.append((start + k, AUX_INDEX["pitch"], pitch))
        end = sequence.append(self.encode("<audio|>"))
        sequence.labels.append((end, AUX_INDEX["count"], len(sound.tones)))
        if melody:
            sequence.labels.append((end, AUX_INDEX["direction"], 8 + (sound.answer == "up")))
        tail = ASK_MODEL + EMPTY_THOUGHT
        if text_first:
            sequence.append(self.encode(tail))
            self.add_reply(sequence, self.encode(asked[0].answer + "<turn|>"), 0, task)
        else:
            self.add_branches(sequence, asked, tail, room, most=2)
        return sequence

    def make_text(self) -> Sequence:
        item = text.write_text(self.rng, self.held_out)
        sequence = Sequence()
        thinking, reply = item.thinking, item.reply
        if not thinking and not item.tools and self.rng.random() < 0.08:
            # Thinking on where nothing needs a thought: an empty one.
            thinking, reply = True, EMPTY_THOUGHT + reply
        prompt = render_text(item, thinking)
        end = "" if item.task == "tool call" else "<turn|>"
        sequence.append(self.encode(prompt))
        self.add_reply(sequence, self.encode(reply + end), 0, item.task)
        return sequence


def render_tool(name: str) -> str:
    function = words.TOOLS[name]["function"]
    quote = '<|"|>'
    properties = ",".join(
        f"{key}:{{description:{quote}{value['description']}{quote},type:{quote}{value['type'].upper()}{quote}}}"
        for key, value in sorted(function["parameters"]["properties"].items())
    )
    required = ",".join(f"{quote}{key}{quote}" for key in function["parameters"]["required"])
    return (
        f"<|tool>declaration:{name}{{description:{quote}{function['description']}{quote},parameters:{{"
        f"properties:{{{properties}}},required:[{required}],type:{quote}OBJECT{quote}}}}}<tool|>"
    )


def render_text(item: text.TextTask, thinking: bool) -> str:
    """The prompt as the chat template renders it (tests hold the two together)."""
    prompt = "<bos>"
    if thinking or item.tools:
        prompt += "<|turn>system\n" + ("<|think|>\n" if thinking else "")
        prompt += "".join(render_tool(name) for name in item.tools) + "<turn|>\n"
    prompt += f"<|turn>user\n{item.question}{ASK_MODEL}"
    if item.call:
        tool, city = item.call
        response = item.response if isinstance(item.response, dict) else {"value": item.response}
        parts = (
            f"{k}:" + (f'<|"|>{v}<|"|>' if isinstance(v, str) else str(v))
            for k, v in sorted(response.items())
        )
        prompt += f'<|tool_call>call:{tool}{{city:<|"|>{city}<|"|>}}<tool_call|>'
        return prompt + f"<|tool_response>response:{tool}{{{','.join(parts)}}}<tool_response|>"
    return prompt if thinking else prompt + EMPTY_THOUGHT


@dataclass(frozen=True)
class GroupShape:
    """Fixed sizes of one group of a batch: one compiled graph each."""

    rows: int
    positions: int
    patches: int
    frames: int
    targets: int


def stack(
    sequences: list[Sequence], shape: GroupShape
) -> tuple[dict[str, np.ndarray], list[list[str]]]:
    """Pad sequences at the right and stack them; returns arrays and the task names of each row."""
    B, L, K = shape.rows, shape.positions, shape.targets
    batch = {
        "ids": np.zeros((B, L), np.int64),
        "positions": np.zeros((B, L), np.int64),
        "branches": np.full((B, L), -1, np.int64),
        "blocks": np.full((B, L), -1, np.int64),
        "soft": np.full((B, L), -1, np.int64),
        "labels": np.full((B, L, len(AUX_HEADS)), IGNORE, np.int64),
        "target_positions": np.zeros((B, K), np.int64),
        "target_ids": np.full((B, K), IGNORE, np.int64),
        "target_answers": np.full((B, K), -1, np.int64),
    }
    if shape.patches:
        batch["patches"] = np.zeros((B, shape.patches, 3 * PATCH**2), np.uint8)
        batch["patch_positions"] = np.zeros((B, shape.patches, 2), np.int64)
    if shape.frames:
        batch["frames"] = np.zeros((B, shape.frames, FRAME), np.float32)
    for row, sequence in enumerate(sequences):
        length = len(sequence.ids)
        for name in ("ids", "positions", "branches", "blocks", "soft"):
            batch[name][row, :length] = getattr(sequence, name)
        for position, head, value in sequence.labels:
            batch["labels"][row, position, head] = value
        for k, (position, token, answer) in enumerate(sequence.targets):
            batch["target_positions"][row, k] = position
            batch["target_ids"][row, k] = token
            batch["target_answers"][row, k] = answer
        start = 0
        for patches, positions in zip(sequence.patches, sequence.patch_positions, strict=True):
            batch["patches"][row, start : start + len(patches)] = patches
            batch["patch_positions"][row, start : start + len(patches)] = positions
            start += len(patches)
        if sequence.frames is not None:
            batch["frames"][row, : len(sequence.frames)] = sequence.frames
    return batch, [s.tasks for s in sequences]
