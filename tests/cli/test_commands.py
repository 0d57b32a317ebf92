import json
import subprocess
import sys

import pytest

from mlx_gemma4.cli import main
from mlx_gemma4.cli.prompt import PromptRequest
from mlx_gemma4.messages import MediaPart


@pytest.fixture
def requests(monkeypatch):
    """Return what `PromptRequest.read` was called with; the command goes no further."""
    calls = []

    def read(prompt, media, **options):
        calls.append((prompt, media, options))
        raise KeyboardInterrupt

    monkeypatch.setattr(PromptRequest, "read", read)
    return calls


def test_media_keep_the_order_of_the_command_line(requests):
    media = ["--video", "v", "--image", "a", "--audio", "s", "--image", "b", "--video", "w"]
    assert main(["generate", "--model", "demo", *media[:6], "hi", *media[6:]]) == 130
    prompt, parts, _ = requests[0]
    assert prompt == "hi"
    assert parts == (
        MediaPart("video", "v"),
        MediaPart("image", "a"),
        MediaPart("audio", "s"),
        MediaPart("image", "b"),
        MediaPart("video", "w"),
    )


def test_options_have_their_types(requests):
    arguments = ["--image-tokens", "560", "--num-frames=3", "--show-thinking", "--raw", "-"]
    assert main(["generate", "--model", "demo", *arguments]) == 130
    assert requests[0][2]["settings"] == {
        "thinking": True,
        "image_tokens": 560,
        "num_frames": 3,
        "video_sound": False,
        "ignore_chat_template": True,
    }


def test_model_may_come_from_the_environment(requests, monkeypatch):
    monkeypatch.setenv("MLX_GEMMA4_MODEL", "demo")
    assert main(["generate", "hi"]) == 130
    assert len(requests) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--max-tokens", "x"], "--max-tokens is 'x'; allowed is a whole number, 0 or more"),
        (["--num-frames", "0"], "--num-frames is '0'; allowed is a whole number, 1 or more"),
        (["--temp", "hot"], "--temp is 'hot'; allowed is a number"),
        (["--dtype", "float8"], "--dtype is 'float8'; allowed are bfloat16, float16, float32"),
        (["--model"], "requires an argument"),
    ],
)
def test_wrong_values_name_what_is_allowed(arguments, says, capsys):
    assert main(["generate", "hi", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_no_command_prints_help(capsys):
    assert main([]) == 2
    assert "generate" in capsys.readouterr().out


def test_version(capsys):
    from mlx_gemma4 import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mlx-gemma4 {__version__}\n"


@pytest.mark.parametrize(
    ("words", "found"),
    [("mlx-gemma4 in", {"inspect"}), ("mlx-gemma4 generate --image-t", {"--image-tokens"})],
)
def test_shell_completion(words, found, monkeypatch, capsys):
    monkeypatch.setenv("_MLX_GEMMA4_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    with pytest.raises(SystemExit):
        main([])
    assert set(capsys.readouterr().out.split()) == found


def test_a_parsed_command_line_has_not_imported_pydantic(tmp_path):
    code = (
        "import sys, json\nfrom mlx_gemma4.cli import main\n"
        "main('generate --model /nowhere --max-tokens 3 --dtype float32 hi'.split())\n"
        "print(json.dumps([name for name in ('pydantic', 'rich') if name in sys.modules]))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert json.loads(result.stdout) == []
