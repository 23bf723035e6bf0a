"""Brings the real data from its public sources and checks it byte by byte.

openai/grade-school-math and sierra-research/tau-bench, both under the MIT licence.
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

from dvpo_lib.experiments.real.data import SOLUTIONS, TEST, TRAIN, read_solutions, read_worked, sha256
from dvpo_lib.experiments.real.trajectories import find, read_trajectories

SOURCE = "https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data"
SHA256 = {  # of the files as published
    "gsm8k/train.jsonl": "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
    "gsm8k/test.jsonl": "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
    "gsm8k/example_model_solutions.jsonl": "4bc62db838f8418365d51c627bd66294cbdca9fb7f01519cb13f0dce8c51580b",
}
CONVERSATIONS = (
    "https://raw.githubusercontent.com/sierra-research/tau-bench/"
    "7362a1708d720a4d697d042f21fd8637ea144c3b/historical_trajectories"
)
CONVERSATIONS_SHA256 = {
    "taubench/gpt-4o-airline.json": "e9e6c0297660c537f83d4fd9c476ce7a9a86ecd2784874b7bfc13be598e37bfa"
}
TIMEOUT = 30  # seconds without an answer


class DownloadError(RuntimeError):
    """A file that could not be brought; the message is all that the user needs."""


def download(
    folder: str | Path, source: str = SOURCE, hashes: Mapping[str, str] = SHA256, progress: bool = True
) -> dict[str, str]:
    """Brings every file that is not there yet; one that is there with the right hash is left alone.

    A file appears under its name only when it is whole and right, so the same command goes on after an interruption.

    Args:
        folder: where the files go, under the names in `hashes`.
        source: address of the folder that holds them, each under the last part of its name.
        hashes: {name: SHA-256}.

    Returns:
        {name: "downloaded" or "present"}.

    Raises:
        DownloadError: an address that cannot be read, or a file other than the published one.
    """
    done = {}
    for name, expected in hashes.items():
        target = Path(folder) / name
        if target.is_file() and sha256(target) == expected:
            done[name] = "present"
            continue
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _bring(f"{source.rstrip('/')}/{target.name}", target, expected, name if progress else None)
        except OSError as error:  # of the disk: those of the network are DownloadErrors by now
            raise DownloadError(f"{name}: cannot be written to {folder}: {error.strerror or error}") from None
        done[name] = "downloaded"
    return done


def _bring(address: str, target: Path, expected: str, label: str | None) -> None:
    """Fetches beside the target and renames: what is interrupted or wrong leaves nothing."""
    part = target.with_name(f"{target.name}.part")
    try:
        found = fetch(address, part, label)
        if found != expected:
            raise DownloadError(
                f"{address}: this is another file than the published one: its SHA-256 is {found}, not "
                f"{expected}; nothing was kept"
            )
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def fetch(address: str, path: Path, label: str | None) -> str:
    """Writes what an address serves to `path` and returns its SHA-256; DownloadError where it cannot be read whole."""
    digest = hashlib.sha256()
    try:
        answer = urllib.request.urlopen(address, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        raise DownloadError(f"{address}: the server says {error.code} {error.reason}") from None
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        raise DownloadError(f"{address}: cannot be reached: {getattr(error, 'reason', None) or error}") from None
    size = int(answer.headers.get("Content-Length") or 0)
    bar = tqdm(total=size or None, desc=label, unit="B", unit_scale=True, disable=label is None)
    with answer, open(path, "wb") as file, bar:
        while chunk := _read(answer, address):
            file.write(chunk)
            digest.update(chunk)
            bar.update(len(chunk))
        received = file.tell()
    if size and received != size:
        raise DownloadError(f"{address}: the connection broke off after {received} of {size} bytes")
    return digest.hexdigest()


def _read(answer, address: str) -> bytes:
    try:
        return answer.read(1 << 16)
    except (http.client.HTTPException, OSError) as error:
        raise DownloadError(f"{address}: the connection broke off: {error}") from None


def describe(folder: Path) -> None:
    """Prints what is in the files; ValueError where one cannot be used."""
    for name in (TRAIN, TEST):
        print(f"{name}: {len(read_worked(folder / name, name))} problems with a worked solution")
    solutions = read_solutions(folder / SOLUTIONS)
    print(f"{SOLUTIONS}: {solutions['problem'].nunique()} problems, each solved by:")
    for generator, share in solutions.groupby("generator", sort=False)["correct"].mean().items():
        print(f"  {generator}: {100 * share:.1f} % correct")
    path = find(folder)
    if path is not None:  # optional
        table = read_trajectories(path)
        print(
            f"{path.relative_to(folder).as_posix()}: {len(table)} conversations on {table['task'].nunique()} tasks, "
            f"{100 * table['correct'].mean():.1f} % successful"
        )
