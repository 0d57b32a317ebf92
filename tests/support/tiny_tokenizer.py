"""A tokenizer of Gemma's construction with 26 letters, and a chat template of the same grammar."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from mlx_gemma4.processing.tokenizer import SPECIAL_TOKENS

TEMPLATE = """{{ bos_token }}
{%- if enable_thinking or tools or messages[0].role == 'system' -%}
<|turn>system
{% if enable_thinking %}<|think|>
{% endif %}
{%- if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}
{%- for tool in tools or [] %}<|tool>{{ tool.function.name }}<tool|>{% endfor %}<turn|>
{% endif -%}
{%- for message in messages if message.role != 'system' -%}
<|turn>{{ 'model' if message.role == 'assistant' else message.role }}
{% if message.content is string %}{{ message.content | trim }}
{%- else %}{% for part in message.content %}
{%- if part.type == 'text' %}{{ part.text | trim }}{% else %}<|{{ part.type }}|>{% endif %}
{%- endfor %}{% endif %}<turn|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|turn>model
{% if not enable_thinking %}<|channel>thought
<channel|>{% endif %}
{%- endif -%}
"""


def write_tiny_checkpoint(folder: Path, *, template: str | None = TEMPLATE) -> Path:
    """Write tokenizer.json, tokenizer_config.json and, unless None, the template; return folder."""
    tiny_backend().save(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {"bos_token": "<bos>", "eos_token": {"content": "<eos>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


def tiny_backend() -> Tokenizer:
    """Return the tokenizer: special tokens, 256 bytes, letters, and the words "thought", "hi"."""
    tokens = [*dict.fromkeys(SPECIAL_TOKENS.values())]
    tokens += [f"<0x{byte:02X}>" for byte in range(256)]
    tokens += [*"abcdefghijklmnopqrstuvwxyz", *"0123456789:{},[]\"'.", "▁", "\n", "é"]
    merges = [("h", "i")]
    word = "t"
    for letter in "hought":
        merges.append((word, letter))
        word += letter
    tokens += [left + right for left, right in merges]
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    backend = Tokenizer(BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    # As Google's base tokenizer does, and as its -it tokenizer does not.
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    backend.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS.values()]
    )
    return backend
