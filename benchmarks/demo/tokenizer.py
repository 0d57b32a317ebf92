"""Build the demo checkpoint's tokenizer: a small BPE with Gemma 4's special tokens.

The file has the form of Google's tokenizer.json (space becomes a low line, bytes as a last resort,
no pre-tokenizer that matters), so that the product's tokenizer code runs unchanged.  Digits never
merge: a number is read digit by digit.

    python -m benchmarks.demo.tokenizer build/demo/tokenizer.json
"""

import json
import random
import string
import sys
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from benchmarks.demo import words

VOCAB_SIZE = 1024
# Google's names; the first five also have Google's ids.
SPECIAL_TOKENS = [
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "<mask>",
    "<|tool>",
    "<tool|>",
    "<|tool_call>",
    "<tool_call|>",
    "<|tool_response>",
    "<tool_response|>",
    '<|"|>',
    "<|think|>",
    "<|channel>",
    "<channel|>",
    "<|turn>",
    "<turn|>",
    "<|image>",
    "<|audio>",
    "<|image|>",
    "<|audio|>",
    "<image|>",
    "<audio|>",
    "<|video|>",
]


def training_lines(seed: int = 0) -> list[str]:
    """Return lines with every word of the tasks, common ones often: each becomes a token."""
    rng = random.Random(seed)
    lines = ["user\n", "model\n", "thought\n", "system\n"] * 400
    for wordings in words.ASK.values():
        lines += [w.replace("{}", "").replace("{0}", "").replace("{1}", "") for w in wordings] * 40
    answers = [*words.SHAPES, *words.COLOURS, *words.COLUMNS, *words.ROWS, *words.DIRECTIONS]
    answers += ["above", "below", "yes", "no", "up", "down", "a", "an"]
    plain = [*words.WORDS, *words.CITIES, *words.SKIES]
    for word in plain + [w.upper() for w in words.WORDS]:
        lines += [f"x {word}", word] * 30
    for word in answers:
        lines += [f"x {word}", word] * 300
    lines += [s for ask, reply in words.CHAT for s in (*ask, reply)] * 15
    for city in words.CITIES:
        lines += [f"It is sunny and 18 degrees in {city}.", f"It is 12:30 in {city}."] * 5
    lines += [
        "call:get_weather{city:",
        "call:get_time{city:",
        "response:get_weather{sky: temperature:",
    ] * 40
    lines += ["response:get_time{time: value:", "declaration:get_weather{description:"] * 40
    lines += [
        "declaration:get_time{description:",
        ",parameters:{properties:{city:{description:",
    ] * 40
    lines += [",type:STRING}},required:[city],type:OBJECT}}", "Get the weather in a city."] * 40
    lines += ["Get the time in a city.", "The city.", "carry 1"] * 40
    rng.shuffle(lines)
    return lines


def build_tokenizer() -> Tokenizer:
    """Return the tokenizer; the same every time."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    # For training alone: merges stay inside words and never touch digits or punctuation.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[0-9]|[^\w\s\u2581]"), "isolated"),
            pre_tokenizers.Split("\u2581", "merged_with_next"),
        ]
    )
    byte_tokens = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[*SPECIAL_TOKENS, *byte_tokens],
        initial_alphabet=[*string.printable[:95], "\n", "\u2581"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_lines(), trainer)

    form = json.loads(tokenizer.to_str())
    # Byte tokens are ordinary vocabulary in Google's file, not added tokens.
    form["added_tokens"] = [t for t in form["added_tokens"] if t["content"] in SPECIAL_TOKENS]
    form["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"String": " "},
        "behavior": "MergedWithPrevious",
        "invert": False,
    }
    tokenizer = Tokenizer.from_str(json.dumps(form))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


def main() -> None:
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "build/demo/tokenizer.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    tokenizer.save(str(path))
    print(f"{path}: {tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    main()
