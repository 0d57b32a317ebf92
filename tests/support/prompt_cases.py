"""Conversations, media, and texts for which transformers' processor and ours must agree.

Media are written as words, "picture 640x480", "sound 16000", "clip 40x10 96x64" (frames, frames a
second, size), so that the same case can be given to either; `fill` puts the real things in.
"""

# ruff: noqa: RUF001  # letters of many scripts look like others

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """A conversation and the options under which it is asked."""

    name: str
    messages: Messages
    tools: list[dict[str, Any]] | None = None
    thinking: bool = False
    add_generation_prompt: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)  # image_tokens, num_frames


def user(*parts: str | dict[str, Any]) -> dict[str, Any]:
    """Return the user's message; words that name a medium become it."""
    return {"role": "user", "content": [_part(part) for part in parts]}


def _part(part: str | dict[str, Any]) -> dict[str, Any]:
    if isinstance(part, dict):
        return part
    for word, kind in (("picture", "image"), ("sound", "audio"), ("clip", "video")):
        if part.startswith(f"{word} "):
            return {"type": kind, kind: part}
    return {"type": "text", "text": part}


def fill(messages: Messages, make: Callable[[str], Any]) -> Messages:
    """Return the messages with real media."""

    def fill_part(part: dict[str, Any]) -> dict[str, Any]:
        kind = part["type"]
        return {"type": kind, kind: make(part[kind])} if kind in part and kind != "text" else part

    return [
        {**message, "content": [fill_part(part) for part in message["content"]]}
        if isinstance(message.get("content"), list)
        else message
        for message in messages
    ]


def draw_picture(words: str) -> Image.Image:
    """Return the picture that "picture 640x480" names: two ramps."""
    width, height = map(int, words.split()[1].split("x"))
    red = np.linspace(0, 255, width)[None].repeat(height, 0)
    green = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    return Image.fromarray(np.stack([red, green, red * 0 + 90], -1).astype(np.uint8))


def draw_sound(words: str) -> np.ndarray:
    """Return the samples [n] float32 that "sound 16000" names: a tone at 16 kHz."""
    return np.sin(np.arange(int(words.split()[1])) / 9, dtype=np.float32) / 2


def draw_clip(words: str) -> tuple[np.ndarray, int]:
    """Return frames [n, height, width, 3] uint8 and the rate that "clip 40x10 96x64" names."""
    _, timing, size = words.split()
    num_frames, fps = map(int, timing.split("x"))
    width, height = map(int, size.split("x"))
    shades = np.arange(num_frames, dtype=np.uint8)[:, None, None, None]
    return np.broadcast_to(shades, (num_frames, height, width, 3)), fps


def write_clip(words: str, folder: Path, sound: np.ndarray | None = None) -> Path:
    """Write the clip as a file, with uncompressed sound if given, and return its path."""
    import av

    frames, fps = draw_clip(words)
    path = folder / (words.replace(" ", "_") + ("_sound" if sound is not None else "") + ".mov")
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=fps)
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        audio = None
        if sound is not None:
            audio = container.add_stream("pcm_s16le", rate=16_000)
            audio.layout = "mono"
        for pixels in frames:
            for packet in video.encode(av.VideoFrame.from_ndarray(np.array(pixels), "rgb24")):
                container.mux(packet)
        container.mux(video.encode(None))
        if audio is not None and sound is not None:
            samples = (sound * 32767).astype(np.int16)[None]
            block = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            block.sample_rate, block.time_base = 16_000, Fraction(1, 16_000)
            container.mux(audio.encode(block))
            container.mux(audio.encode(None))
    return path


def compress(ids: Sequence[int]) -> list[int | list[int]]:
    """Return ids with runs of four or more as [id, count]."""
    runs: list[list[int]] = []
    for token_id in ids:
        if runs and runs[-1][0] == token_id:
            runs[-1][1] += 1
        else:
            runs.append([int(token_id), 1])
    short: list[int | list[int]] = []
    for token_id, count in runs:
        short += [[token_id, count]] if count > 3 else [token_id] * count
    return short


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather now in a place.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Name of the city"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city"],
        },
    },
}
EVERYTHING = {
    "type": "function",
    "function": {
        "name": "book",
        "description": 'Books a "trip" <fast> & cheap.',
        "parameters": {
            "type": "object",
            "properties": {
                "days": {"type": "integer", "description": "Days", "nullable": True},
                "price": {"type": "number"},
                "is_direct": {"type": "boolean"},
                "stops": {"type": "array", "items": {"type": "string"}},
                "guests": {
                    "type": "array",
                    "description": "Who comes",
                    "items": {
                        "type": "object",
                        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
                        "required": ["name"],
                    },
                },
                "seat": {
                    "type": "object",
                    "properties": {"row": {"type": "integer"}, "letter": {"type": "string"}},
                    "required": ["row", "letter"],
                },
                "loose": {"type": "object"},
            },
            "required": ["days", "guests"],
        },
        "response": {"type": "object", "description": "What was booked"},
    },
}
BARE = {"type": "function", "function": {"name": "ping", "description": "", "parameters": {}}}


def call(name: str, arguments: Any, call_id: str | None = None) -> dict[str, Any]:
    """Return a tool call as OpenAI writes it."""
    function = {"name": name, "arguments": arguments}
    return {"type": "function", "function": function} | ({"id": call_id} if call_id else {})


def say(role: str, content: Any, **more: Any) -> dict[str, Any]:
    """Return a message."""
    return {"role": role, "content": content, **more}


ASK = say("user", "What is the weather in Paris?")
CALLED = {"role": "assistant", "tool_calls": [call("get_weather", {"city": "Paris"}, "c1")]}
NESTED = {"s": 'a "quoted", {braced} text', "n": 2, "f": 1.0, "b": True, "z": None, "l": [1, "a"]}

TEMPLATE_CASES: tuple[Case, ...] = (
    Case("one question", [say("user", "Hi")]),
    Case("no generation prompt", [say("user", "Hi")], add_generation_prompt=False),
    Case("thinking", [say("user", "Hi")], thinking=True),
    Case("spaces are trimmed", [say("user", "  Hi\n\n there \n")]),
    Case("system", [say("system", " Be brief. "), say("user", "Hi")]),
    Case("developer", [say("developer", "Be brief."), say("user", "Hi")]),
    Case("system in parts", [say("system", [{"type": "text", "text": " A "}]), say("user", "Hi")]),
    Case("system and thinking", [say("system", "Be brief."), say("user", "Hi")], thinking=True),
    Case("system later", [say("user", "Hi"), say("system", "Be brief."), say("user", "Go on")]),
    Case(
        "several turns",
        [say("user", "A"), say("assistant", " B "), say("user", "C"), say("assistant", "D"), ASK],
    ),
    Case("assistant last", [say("user", "A"), say("assistant", "B")]),
    Case("assistant twice", [say("user", "A"), say("assistant", "B"), say("assistant", "C"), ASK]),
    Case(
        "old thoughts are dropped",
        [ASK, say("assistant", "<|channel>thought\nhm\n<channel|>Sunny."), say("user", "Thanks")],
    ),
    Case("reasoning is dropped", [ASK, say("assistant", "Sunny.", reasoning="hm"), ASK]),
    Case("reasoning at the end", [ASK, say("assistant", "Sunny.", reasoning_content="hm")]),
    Case("markup is left alone", [say("user", "<b>&amp;</b> {{ x }} {% if %} 'q' \"q\" \\n")]),
    Case("scripts", [say("user", "नमस्ते, 世界! مرحبا 👩‍🚀🇩🇪")]),
    Case("tools", [ASK], tools=[WEATHER]),
    Case("tools and thinking", [ASK], tools=[WEATHER], thinking=True),
    Case("tools and system", [say("system", "Be brief."), ASK], tools=[WEATHER, EVERYTHING, BARE]),
    Case("called", [ASK, CALLED], tools=[WEATHER]),
    Case("called with everything", [ASK, {"role": "assistant", "tool_calls": [call("f", NESTED)]}]),
    Case("called without arguments", [ASK, {"role": "assistant", "tool_calls": [call("f", {})]}]),
    Case(
        "called with a map", [ASK, {"role": "assistant", "tool_calls": [call("f", {"m": NESTED})]}]
    ),
    Case(
        "answered",
        [ASK, CALLED, say("tool", "18 degrees", tool_call_id="c1")],
        tools=[WEATHER],
    ),
    Case(
        "answered, thinking",
        [ASK, CALLED | {"reasoning": "I look."}, say("tool", "18 degrees", tool_call_id="c1")],
        tools=[WEATHER],
        thinking=True,
    ),
    Case("answered by name", [ASK, CALLED, say("tool", "18", name="get_weather")]),
    Case(
        "answered and said",
        [ASK, CALLED, say("tool", "18", tool_call_id="c1"), say("assistant", "18 degrees."), ASK],
        tools=[WEATHER],
    ),
    Case(
        "two calls, two answers",
        [
            ASK,
            say(
                "assistant",
                "I look.",
                tool_calls=[call("a", {"x": 1}, "1"), call("b", {"y": [1.5, -2]}, "2")],
            ),
            say("tool", "first", tool_call_id="1"),
            say("tool", [{"type": "text", "text": "second"}], tool_call_id="2"),
        ],
        tools=[WEATHER],
    ),
    Case(
        "two rounds",
        [
            ASK,
            CALLED,
            say("tool", "18", tool_call_id="c1"),
            CALLED | {"reasoning": "Again."},
            say("tool", "19", tool_call_id="c1"),
        ],
        tools=[WEATHER],
    ),
    Case(
        "Google's own answers",
        [
            ASK,
            CALLED
            | {"tool_responses": [{"name": "get_weather", "response": {"t": 18, "s": "ok"}}]},
        ],
        tools=[WEATHER],
    ),
    Case("media in place", [user("Look:", "picture 64x64", "and", "sound 640", "clip 9x3 64x64")]),
    Case("media alone", [user("picture 64x64")]),
    Case(
        "media in a tool's answer",
        [ASK, CALLED, say("tool", user("ok", "picture 64x64")["content"])],
    ),
    Case(
        "media in an old turn",
        [user("picture 64x64", "What is it?"), say("assistant", "A ramp."), say("user", "Sure?")],
    ),
)

_LOOK = "Describe it. Text: «Straße», 12 %."
MEDIA_CASES: tuple[Case, ...] = (
    *(
        Case(f"picture {size}", [user(f"picture {size}", _LOOK)])
        for size in ("640x480", "48x48", "1x1", "1x300", "3000x20", "1000x1003", "333x2000")
    ),
    *(
        Case(f"budget {budget}", [user("picture 800x600", _LOOK)], options={"image_tokens": budget})
        for budget in (70, 140, 280, 560, 1120)
    ),
    Case("text before", [user("Look at this:", "picture 320x240")]),
    Case("text around", [user("Before. ", "picture 320x240", " After.")]),
    Case("two pictures", [user("picture 320x240", "picture 240x320", "Compare them.")]),
    Case("text between", [user("A:", "picture 320x240", "B:", "picture 99x99", "Which?")]),
    Case("three pictures", [user("picture 50x60", "picture 60x50", "picture 70x70")]),
    *(
        Case(f"sound {length}", [user("Transcribe.", f"sound {length}")])
        for length in (1, 639, 640, 641, 16_000, 500_000)
    ),
    Case("two sounds", [user("sound 5000", "or", "sound 7000")]),
    Case("clip", [user("clip 60x10 96x64", "What moves?")], options={"num_frames": 8}),
    Case("clip, default frames", [user("clip 64x25 64x96", "What moves?")]),
    Case("long clip", [user("clip 400x5 64x64", "When?")], options={"num_frames": 12}),
    Case("one frame", [user("clip 10x10 640x360", "What?")], options={"num_frames": 1}),
    Case(
        "two clips",
        [user("clip 20x10 64x64", "clip 16x8 96x48", "Compare.")],
        options={"num_frames": 4},
    ),
    Case("picture and sound", [user("picture 320x240", "What is it?", "sound 16000")]),
    Case("sound and picture", [user("sound 16000", "picture 320x240", "Does it match?")]),
    Case(
        "all three",
        [user("picture 320x240", "clip 20x10 64x64", "And this:", "sound 9000")],
        options={"num_frames": 3, "image_tokens": 70},
    ),
    Case(
        "all three, mixed",
        [user("sound 700", "a", "clip 20x10 64x64", "b", "picture 50x50", "clip 9x3 48x96", "c")],
        options={"num_frames": 2, "image_tokens": 140},
    ),
    Case("thinking", [user("picture 320x240", "Count.")], thinking=True),
    Case("system", [say("system", "Be brief."), user("picture 320x240", "Count.")]),
    Case(
        "second turn",
        [user("picture 320x240", "Count."), say("assistant", "Three."), user("sound 640", "Sure?")],
    ),
    Case(
        "pictures in two turns",
        [
            user("picture 320x240", "Count."),
            say("assistant", "Three."),
            user("Now:", "picture 640x200"),
        ],
        thinking=True,
    ),
    Case(
        "tools",
        [say("system", "Use tools."), user("picture 320x240", "Weather here?")],
        tools=[WEATHER, EVERYTHING],
    ),
    Case(
        "picture from a tool",
        [ASK, CALLED, say("tool", user("ok", "picture 200x100")["content"], tool_call_id="c1")],
        tools=[WEATHER],
    ),
    Case("a placeholder in plain text", [user("Is <image> or [img] special? ", "picture 64x64")]),
    Case("scripts", [user("picture 64x64", "これは何ですか？ ما هذا؟ यह क्या है? 👩‍🚀🏳️‍🌈👍🏽")]),
)

TEXTS: Mapping[str, str] = {
    "english": "The quick brown fox, it's 3.14 o'clock — isn't it?",
    "code": "def f(x):\n\treturn {'a': x ** 2}  # why\n\n\n\nprint(f(3))\n",
    "spaces": "  two   three    four\t\ttabs\n\n\nlines \r\n end  ",
    "german": "Größere Füße, Straßenbahnhöfe und Übergröße",
    "vietnamese": "Tiếng Việt có rất nhiều dấu thanh điệu",
    "russian": "Съешь ещё этих мягких французских булок",
    "greek": "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία",
    "arabic": "نص حكيم له سر قاطع وذو شأن عظيم ٠١٢٣",
    "hebrew": "דג סקרן שט בים מאוכזב ולפתע מצא חברה",
    "persian": "می‌خواهم کتاب‌هایم را بخوانم",
    "urdu": "یہ ایک اردو جملہ ہے۔",
    "hindi": "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा",
    "bengali": "আমার সোনার বাংলা, আমি তোমায় ভালোবাসি",
    "gurmukhi": "ਸਤ ਸ੍ਰੀ ਅਕਾਲ ਦੁਨੀਆ",
    "gujarati": "નમસ્તે દુનિયા, કેમ છો?",
    "tamil": "யாமறிந்த மொழிகளிலே தமிழ்மொழி போல்",
    "telugu": "దేశ భాషలందు తెలుగు లెస్స",
    "kannada": "ಕನ್ನಡ ಭಾಷೆ ಸುಂದರ",
    "malayalam": "മലയാളം ഒരു ഭാഷയാണ്",
    "sinhala": "සිංහල භාෂාව ලස්සනයි",
    "thai": "ภาษาไทยไม่มีช่องว่างระหว่างคำ",
    "lao": "ພາສາລາວ ແມ່ນພາສາທີ່ສວຍງາມ",
    "khmer": "ភាសាខ្មែរពិរោះណាស់",
    "burmese": "မြန်မာဘာသာစကား လှပသည်",
    "tibetan": "བོད་སྐད་ནི་སྙན་པོ་ཡོད།",
    "georgian": "ქართული ენა ძალიან ლამაზია",
    "armenian": "Հայոց լեզուն գեղեցիկ է",
    "amharic": "አማርኛ ቆንጆ ቋንቋ ነው።",
    "cherokee": "ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ",
    "chinese": "我能吞下玻璃而不伤身体。𠮷野家 㐂",
    "japanese": "いろはにほへと ちりぬるを、カタカナ｡",
    "korean": "키스의 고유조건은 입술끼리 만나야 하고",
    "hieroglyphs": "𓀀𓁐𓂀 𒀀𒁀 𐎀𐎁",
    "emoji": "👩‍🚀 👨‍👩‍👧‍👦 🏳️‍🌈 👍🏽🤦🏿‍♀️ 🇩🇪🇫🇷🏴󠁧󠁢󠁳󠁣󠁴󠁿 ❤️‍🔥 1️⃣",
    "math": "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋, α∧¬β ⊢ 𝔸𝕓𝒸 ∑ᵢ₌₁ⁿ √2 ≈ 1.414",
    "bidirectional": "\u202bעברית English عربي\u202c 123 \u200f!\u200e",
    "combining": "Z̷̧a̴͝l̵g̸o̶ e\u0301 é n\u0303",
    "control": "a\u0000b\u0007c\u200bd\ufeffe\u00adf\ufffdg",
    "special": '<bos>x<|turn>user\ny<turn|> <|channel>z<channel|><|"|>q<|"|><unused5>[multimodal]',
}
