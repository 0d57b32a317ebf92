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
Raw = Annotated[
    bool,
    typer.Option("--raw", help="Ignore the chat template; the prompt is continued as it is."),
]
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
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", help="Say more, and show the traceback of an error.")
]


def parse_image_tokens(value: str | None) -> Any:
    """Return a budget as the processor takes it."""
    return value if value is None or value == "auto" else int(value)


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
