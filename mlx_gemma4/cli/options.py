"""Options that several commands share."""

from typing import Annotated, Any, Literal

import typer

from mlx_gemma4.errors import OptionError

MODEL_VARIABLE = "MLX_GEMMA4_MODEL"

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        envvar=MODEL_VARIABLE,
        metavar="NAME",
        help="A name on the Hugging Face Hub, a folder, or demo: the small one in this package.",
    ),
]
Prompt = Annotated[
    str | None,
    typer.Argument(
        metavar="PROMPT", help="What to say; - reads it from standard input.", show_default=False
    ),
]
Images = Annotated[
    list[str] | None,
    typer.Option("--image", metavar="FILE", help="A picture; may be repeated."),
]
Audio = Annotated[
    list[str] | None,
    typer.Option("--audio", metavar="FILE", help="A sound; may be repeated."),
]
Videos = Annotated[
    list[str] | None,
    typer.Option("--video", metavar="FILE", help="A clip; may be repeated."),
]
ImageTokens = Annotated[
    Literal["70", "140", "280", "560", "1120", "auto"] | None,
    typer.Option(
        "--image-tokens",
        help="Soft tokens a picture may take; auto goes by its size. Default: the checkpoint's.",
    ),
]
NumFrames = Annotated[
    int | None,
    typer.Option(
        "--num-frames",
        metavar="N",
        min=1,
        help="Frames to show of a clip. Default: the checkpoint's.",
    ),
]
VideoSound = Annotated[
    bool, typer.Option("--video-sound", help="Let the model hear the sound of clips too.")
]
System = Annotated[str | None, typer.Option("--system", metavar="TEXT", help="The system prompt.")]
Messages = Annotated[
    str | None,
    typer.Option(
        "--messages",
        metavar="FILE",
        help="A conversation to go on with: a JSON list of messages with role and content.",
    ),
]
Tools = Annotated[
    str | None,
    typer.Option(
        "--tools", metavar="FILE", help="Functions the model may call: a JSON list of schemas."
    ),
]
Thinking = Annotated[
    bool, typer.Option("--thinking", help="Ask the model to think before it answers.")
]
PromptCache = Annotated[
    str | None,
    typer.Option(
        "--prompt-cache",
        metavar="PATH",
        help="Remember what was read in this file, or in this folder of many prompts.",
    ),
]
Raw = Annotated[
    bool,
    typer.Option("--raw", help="Ignore the chat template; the prompt is continued as it is."),
]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        "--max-tokens",
        metavar="N",
        min=0,
        help="Tokens of the answer at most. Default: up to the end of the context.",
    ),
]
Temp = Annotated[
    float | None,
    typer.Option(
        "--temp",
        metavar="X",
        help="Temperature; 0 takes the likeliest token. Default of this and the next two: "
        "the checkpoint's.",
    ),
]
TopP = Annotated[
    float | None,
    typer.Option("--top-p", metavar="X", help="Keep the likeliest tokens up to this share."),
]
TopK = Annotated[
    int | None,
    typer.Option("--top-k", metavar="N", help="Keep this many of the likeliest tokens."),
]
MinP = Annotated[
    float,
    typer.Option(
        "--min-p", metavar="X", help="Keep tokens this fraction as likely as the likeliest."
    ),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(
        "--repetition-penalty", metavar="X", help="Above 1: recent tokens are less likely."
    ),
]
Seed = Annotated[
    int | None, typer.Option("--seed", metavar="N", help="Makes the answer repeatable.")
]
Stop = Annotated[
    list[str] | None,
    typer.Option("--stop", metavar="TEXT", help="End the answer before this; may be repeated."),
]
NoTune = Annotated[
    bool,
    typer.Option("--no-tune", help="On the first start with a GPU, time no kernels."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No notes and no statistics on stderr.")]
Quantize = Annotated[
    Literal["4", "8"] | None,
    typer.Option("--quantize", help="Quantize to this many bits while loading."),
]
Dtype = Annotated[
    Literal["bfloat16", "float16", "float32"] | None,
    typer.Option(
        "--dtype",
        help="Of activations. Default: the checkpoint's on a GPU, float32 on a CPU.",
    ),
]
ImageAttention = Annotated[
    Literal["sliding", "all"],
    typer.Option(
        "--image-attention",
        help="Layers on which the tokens of a picture see each other in both directions.",
    ),
]
Speculate = Annotated[
    Literal["lookup", "off"],
    typer.Option(
        "--speculate",
        help="lookup: draft what stood in the prompt or the answer before; quicker where an "
        "answer quotes or edits its prompt.",
    ),
]
NumDraftTokens = Annotated[
    int,
    typer.Option(
        "--num-draft-tokens",
        metavar="N",
        help="Drafted tokens that are verified at a time at most: 2 to 15.",
    ),
]
PrefillStepSize = Annotated[
    int | None,
    typer.Option(
        "--prefill-step-size",
        metavar="N",
        min=1,
        help="Tokens read at a time. Default: as many as 512 MiB of temporary memory allow.",
    ),
]
KVBits = Annotated[
    Literal["auto", "16", "8"],
    typer.Option(
        "--kv-bits",
        help="Bits of the cache in global layers: 8 is int8, half the memory of a long context. "
        "auto: 16, or 8 where a prompt and its answer fit in no other way; a --prompt-cache keeps "
        "16.",
    ),
]
FixedKVBits = Annotated[
    Literal["16", "8"],
    typer.Option(
        "--kv-bits",
        help="Bits of the cache in global layers: 8 is int8, half the memory of a long context. "
        "The same for all prompts: they are not chosen by what memory there is.",
    ),
]
KVRows = Annotated[
    Literal["shared", "value"],
    typer.Option(
        "--kv-rows",
        help="What global layers keep: value makes keys anew, a fifth less memory, and exact.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", help="Say more, and show the traceback of an error.")
]


def parse_image_tokens(value: str | None) -> Any:
    """Return a budget as the processor takes it."""
    return value if value is None or value == "auto" else int(value)


def parse_kv_bits(value: str) -> int | None:
    """Return bits as loading takes them."""
    return None if value == "auto" else int(value)


def require_model(name: str | None) -> str:
    """Return the name of the model.

    Raises:
        OptionError: There is none.
    """
    if name:
        return name
    raise OptionError(
        "no model was named; give --model a name on the Hugging Face Hub "
        "(google/gemma-4-12B-it), a folder (./my-4bit), or demo (the small checkpoint in this "
        f"package); or set {MODEL_VARIABLE} to one of them"
    )
