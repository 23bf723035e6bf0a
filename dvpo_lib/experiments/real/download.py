"""Downloads the real data from its public sources and checks every byte.

Sources: openai/grade-school-math and sierra-research/tau-bench, both under the MIT licence, and
google-research-datasets/dstc8-schema-guided-dialogue (SGD), under CC BY-SA 4.0.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from tqdm.auto import tqdm

from dvpo_lib.experiments.real.files import SOLUTIONS_FILE, TEST_FILE, TRAIN_FILE, sha256_of
from dvpo_lib.experiments.real.solutions.data import read_solutions, read_worked_problems
from dvpo_lib.experiments.real.trajectories.data import find_trajectories, read_trajectories
from dvpo_lib.tasks.published.files import read_source_file

GSM8K_SOURCE = "https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data"
GSM8K_SHA256 = {  # of the published files
    "gsm8k/train.jsonl": "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
    "gsm8k/test.jsonl": "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
    "gsm8k/example_model_solutions.jsonl": "4bc62db838f8418365d51c627bd66294cbdca9fb7f01519cb13f0dce8c51580b",
}
TAUBENCH_SOURCE = (
    "https://raw.githubusercontent.com/sierra-research/tau-bench/"
    "7362a1708d720a4d697d042f21fd8637ea144c3b/historical_trajectories"
)
TAUBENCH_SHA256 = {"taubench/gpt-4o-airline.json": "e9e6c0297660c537f83d4fd9c476ce7a9a86ecd2784874b7bfc13be598e37bfa"}
SGD_SOURCE = (
    "https://raw.githubusercontent.com/google-research-datasets/dstc8-schema-guided-dialogue/"
    "e852981ae34990f4358979625854259302feaa78"
)
SGD_SHA256 = {  # the files with dialogues of the services that profile `real` names
    "sgd/dev/dialogues_001.json": "fe3a8ed9e160c15e20e7cfd16d03734b4473df0d3864f2ad687ea9eeee5eea52",
    "sgd/dev/dialogues_002.json": "fcbc8ba411ed8b3e0b06dff31819dc366f6bc6d228e021053920365e11004b03",
    "sgd/dev/dialogues_003.json": "5915cea36b77de920fbd66569333db2395626ec465ba23e2f0caa77fba2e5dae",
    "sgd/dev/dialogues_004.json": "d379a5149a86304a22162531e122ff9a7b8e9e46178789a5170e0a7091dd2bbf",
    "sgd/dev/dialogues_005.json": "107d8bc1ce21b06453f33cc8dfc19172e0956646b47d9c1db7bdcd978a323d73",
    "sgd/dev/dialogues_006.json": "20140828f25496461003140b67a5987d954109d9e14e12e472ed565ed2843bc3",
    "sgd/train/dialogues_028.json": "225af9eebcb34f90ab1c9634c5771c9e6179019fdb903884ff70a5833b77620c",
    "sgd/train/dialogues_029.json": "87b61fd3495d851df7fa66ce43084431a7cd19154c1de32c0d6949bf6c74bae9",
    "sgd/train/dialogues_032.json": "70a0916baba1e2fbeaef8bc8c2086cd3f31555a8eaec6d0eed80e483ed2b9a59",
    "sgd/test/dialogues_008.json": "e4ecce8acdd5b3657de7a7660b9bcd339d88a629147711ad2545b695666279c5",
}
SOURCES_OF_FILES = (  # (address of a folder, {name: SHA-256})
    (GSM8K_SOURCE, GSM8K_SHA256),
    (TAUBENCH_SOURCE, TAUBENCH_SHA256),
    *(
        (f"{SGD_SOURCE}/{part}", {name: digest for name, digest in SGD_SHA256.items() if f"/{part}/" in name})
        for part in ("dev", "train", "test")
    ),
)
READ_TIMEOUT = 30  # seconds without an answer


class DownloadError(RuntimeError):
    """A file that cannot be downloaded. The message is meant for the user."""


def download_files(
    folder: str | Path, source: str = GSM8K_SOURCE, hashes: Mapping[str, str] = GSM8K_SHA256, progress: bool = True
) -> dict[str, str]:
    """Downloads files, except those that are present with the right hash.

    A file gets its name only after its hash is checked, so an interrupted download can be repeated.

    Args:
        folder: Target folder. Files get the names in `hashes`.
        source: Address of the folder that serves each file under the last part of its name.
        hashes: {name: SHA-256}.
        progress: Whether to show progress bars.

    Returns:
        {name: "downloaded" or "present"}.

    Raises:
        DownloadError: If an address cannot be read, a file differs from the published one, or the disk fails.
    """
    done = {}
    for name, expected in hashes.items():
        target = Path(folder) / name
        if target.is_file() and sha256_of(target) == expected:
            done[name] = "present"
            continue
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _download_one(f"{source.rstrip('/')}/{target.name}", target, expected, name if progress else None)
        except OSError as error:  # of the disk; network errors are DownloadErrors already
            raise DownloadError(f"{name}: cannot be written to {folder}: {error.strerror or error}") from None
        done[name] = "downloaded"
    return done


def _download_one(address: str, target: Path, expected: str, label: str | None) -> None:
    """Downloads next to the target, then renames, so that an interrupted or wrong file leaves nothing behind."""
    part = target.with_name(f"{target.name}.part")
    try:
        found = fetch_address(address, part, label)
        if found != expected:
            raise DownloadError(
                f"{address}: this is another file than the published one: its SHA-256 is {found}, not "
                f"{expected}; nothing was kept"
            )
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def fetch_address(address: str, path: Path, label: str | None) -> str:
    """Writes the content of an address to a file.

    Args:
        address: Address to read.
        path: File to write.
        label: Label of the progress bar. No bar if None.

    Returns:
        SHA-256 of the content.

    Raises:
        DownloadError: If the address cannot be read to its end.
    """
    digest = hashlib.sha256()
    try:
        answer = urllib.request.urlopen(address, timeout=READ_TIMEOUT)
    except urllib.error.HTTPError as error:
        raise DownloadError(f"{address}: the server says {error.code} {error.reason}") from None
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        raise DownloadError(f"{address}: cannot be reached: {getattr(error, 'reason', None) or error}") from None
    size = int(answer.headers.get("Content-Length") or 0)
    bar = tqdm(total=size or None, desc=label, unit="B", unit_scale=True, disable=label is None)
    with answer, open(path, "wb") as file, bar:
        while chunk := _read_chunk(answer, address):
            file.write(chunk)
            digest.update(chunk)
            bar.update(len(chunk))
        received = file.tell()
    if size and received != size:
        raise DownloadError(f"{address}: the connection broke off after {received} of {size} bytes")
    return digest.hexdigest()


def _read_chunk(answer, address: str) -> bytes:
    """The next bytes of an answer, empty at its end."""
    try:
        return answer.read(1 << 16)
    except (http.client.HTTPException, OSError) as error:
        raise DownloadError(f"{address}: the connection broke off: {error}") from None


def describe_files(folder: Path) -> None:
    """Prints the number of records and the share of right ones in each file.

    Raises:
        ValueError: If a file is missing or malformed.
    """
    for name in (TRAIN_FILE, TEST_FILE):
        print(f"{name}: {len(read_worked_problems(folder / name, name))} problems with a worked solution")
    solutions = read_solutions(folder / SOLUTIONS_FILE)
    print(f"{SOLUTIONS_FILE}: {solutions['problem'].nunique()} problems, each solved by:")
    for generator, share in solutions.groupby("generator", sort=False)["correct"].mean().items():
        print(f"  {generator}: {100 * share:.1f} % correct")
    path = find_trajectories(folder)
    if path is not None:  # the conversations are optional
        table = read_trajectories(path)
        print(
            f"{path.relative_to(folder).as_posix()}: {len(table)} conversations on {table['task'].nunique()} tasks, "
            f"{100 * table['correct'].mean():.1f} % successful"
        )
    dialogues = [len(read_source_file(file)) for file in sorted((folder / "sgd").rglob("*.json*"))]
    if dialogues:  # these, too
        print(f"sgd: {sum(dialogues)} dialogues in {len(dialogues)} files")
