"""GenerationConfig: how a checkpoint wants its tokens sampled."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from mlx_gemma4.config.model import Config
from mlx_gemma4.config.section import Section, read_json


@dataclass(frozen=True)
class GenerationConfig:
    """How a checkpoint wants its tokens sampled; a missing value is Google's.

    Attributes:
        do_sample: False: always the most probable token.
        eos_token_ids: Ids that end an answer.
        suppress_tokens: Ids that are never generated, not even greedily.
    """

    temperature: float
    top_k: int
    top_p: float
    do_sample: bool
    eos_token_ids: tuple[int, ...]
    suppress_tokens: tuple[int, ...]

    @classmethod
    def from_folder(cls, folder: str | Path, config: Config) -> Self:
        """Read `folder`/generation_config.json, which need not exist.

        Raises:
            ConfigError: The file is no JSON, or has an impossible value.
        """
        path = Path(folder) / "generation_config.json"
        return cls.from_dict(read_json(path) if path.is_file() else {}, config)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], config: Config) -> Self:
        """Read a parsed generation_config.json; an empty one gives Google's values.

        Raises:
            ConfigError: A value is impossible.
        """
        section = Section(values, "", "generation_config.json")
        # Both end markers can win the argmax in plain text; Google suppresses them.
        suppressed = section.token_ids("suppress_tokens")
        if section.get("suppress_tokens") is None:
            suppressed = (config.eoa_token_index, config.eoi_token_id)
        return cls(
            temperature=section.number("temperature", 1.0, minimum=0.0),
            top_k=section.integer("top_k", 64, minimum=0),
            top_p=section.number("top_p", 0.95, minimum=0.0, maximum=1.0),
            do_sample=section.flag("do_sample", True),
            eos_token_ids=section.token_ids("eos_token_id") or config.eos_token_ids,
            suppress_tokens=suppressed,
        )
