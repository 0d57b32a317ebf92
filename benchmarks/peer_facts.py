"""What a figure means nothing without: the machine, the versions, and the checkpoint."""

import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from mlx_gemma4.config import Config
from mlx_gemma4.weights import expected_tensors, open_checkpoint

HERE = Path(__file__).resolve().parent
PACKAGES = ("mlx-gemma4", "mlx", "mlx-lm", "mlx-vlm", "torch", "transformers")


def name_chip() -> str:
    """Return the processor's name, as the name of a folder."""
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        name = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    else:
        cpuinfo = Path("/proc/cpuinfo").read_text()
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
        name = found.group(1) if found else platform.machine()
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def name_commit() -> str:
    """Return the short hash of the commit, with a plus if the tree differs from it."""
    git = ["git", "-C", str(HERE)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    # Results of a run before this one change nothing that is measured.
    only = ["--untracked-files=no", "--", ":/", ":(exclude,top)benchmarks/results"]
    changes = subprocess.run([*git, "status", "--porcelain", *only], capture_output=True, text=True)
    return (head.stdout.strip() or "unknown") + ("+" if changes.stdout.strip() else "")


def list_versions(python: str) -> dict[str, str]:
    """Return the versions of the packages that matter in an environment."""
    code = (
        "import importlib.metadata as m, json, platform, sys\n"
        "found = {'python': platform.python_version()}\n"
        "for name in sys.argv[1:]:\n"
        "    try: found[name] = m.version(name)\n"
        "    except m.PackageNotFoundError: pass\n"
        "print(json.dumps(found))\n"
    )
    result = subprocess.run(
        [python, "-c", code, *PACKAGES], capture_output=True, text=True, check=True
    )
    return json.loads(result.stdout)


def name_command(script: str, arguments: list[str]) -> str:
    """Return a command line as it can be given elsewhere: of absolute paths, the names alone."""
    short = [re.sub(r"(^|=)/\S*/", r"\1", argument) for argument in arguments]
    return shlex.join([f"benchmarks/{Path(script).name}", *short])


def describe_machine() -> dict[str, Any]:
    """Return what a figure means nothing without."""
    return {
        "chip": name_chip(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.mac_ver()[0]}".strip(),
        "load_average": os.getloadavg()[0],
        # Of a path, the name alone matters: which BLAS, the same for all programs.
        "preloaded": " ".join(Path(p).name for p in os.environ.get("LD_PRELOAD", "").split()),
    }


def describe_checkpoint(folder: Path) -> dict[str, Any]:
    """Return the sizes of a checkpoint, its bits per weight, and its quality if that is known."""
    config = json.loads((folder / "config.json").read_text())
    checkpoint = open_checkpoint(folder, Config.from_folder(folder))
    shapes = expected_tensors(checkpoint.config).values()
    num_parameters = sum(map(math.prod, shapes))
    quality = folder / "quality.json"
    known = json.loads(quality.read_text())["kinds"]["all"] if quality.is_file() else {}
    return {
        "name": folder.name,
        "dtype": config.get("dtype"),
        "hidden_size": config["text_config"]["hidden_size"],
        "num_hidden_layers": config["text_config"]["num_hidden_layers"],
        "quantization": config.get("quantization"),
        "num_parameters": num_parameters,
        "bits_per_weight": 8 * checkpoint.disk_bytes / num_parameters,
        "quality": {key: known[key] for key in ("mean_kl", "top1_agreement") if key in known},
    }
