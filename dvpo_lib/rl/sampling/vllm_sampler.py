"""Sampling by a vLLM server: prompts and new weights go to it by HTTP and a shared folder.

The server runs in an environment of its own, of any machine that sees the folder:

    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --enable-scale-out --logprobs-mode processed_logprobs

Each answer names the version of the weights that gave it.
"""

from __future__ import annotations

import asyncio
import shutil
import time
import uuid
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from dvpo_lib.common.seeds import seed_for
from dvpo_lib.rl.sampling.engines import Completions, EngineError, Sampling, SamplingEngine
from dvpo_lib.rl.sampling.policy_weights import save_policy_weights

COMPLETE = "/inference/v1/generate"
CONNECT_SECONDS = 30.0
START = "VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --enable-scale-out --logprobs-mode processed_logprobs"


class VllmSampler(SamplingEngine):
    """Samples by a vLLM server. In a run of several processes each sends its own rows; the main one sends weights.

    Args:
        address: Of the server, such as http://localhost:8000.
        folder: For weights; the server sees it under the same path.
        startup_timeout: Seconds to wait for a server that is starting.
        response_timeout: Seconds for all completions of a batch, and for new weights.
        dtype: Of the weights that are sent; None: the policy's own.

    Attributes:
        version: Name of the weights that the server has; None if they are not this run's.
    """

    def __init__(
        self,
        address: str,
        folder: str | Path,
        startup_timeout: float = 240.0,
        response_timeout: float = 1800.0,
        dtype: torch.dtype | None = None,
    ):
        self.address, self.folder, self.dtype = address.rstrip("/"), Path(folder).absolute(), dtype
        self.startup_timeout, self.response_timeout = startup_timeout, response_timeout
        self.run: str = broadcast_object_list([uuid.uuid4().hex[:8]])[0]  # the same in all processes
        self.version: str | None = None

    # ---- weights ----

    def update_weights(self, policy, version: int) -> None:
        """Hands the policy's weights over unless the server has this version.

        Raises:
            EngineError: If the server is not there, is not started as it should be, or does not take the weights.
        """
        name = f"{self.run}-{version}"
        if self.version == name:
            return
        place, main, problem = self.folder / name, PartialState().is_main_process, None
        try:
            if main:
                self._wait_for_server()
        except EngineError as error:  # raised once all processes have given their shards
            problem = error
        save_policy_weights(policy, place, self.dtype)
        try:
            if problem is not None:
                raise problem
            if main:
                _run(self._load(place, name))
        finally:
            if main:
                shutil.rmtree(place)
        self.version = name

    def forget_weights(self) -> None:
        """As of `SamplingEngine`."""
        self.version = None

    async def _load(self, place: Path, name: str) -> None:
        async with self._client() as client:
            await self._ask(client, "POST", "/pause?mode=wait")  # and clears what was computed by the old weights
            weights = {"method": "reload_weights", "kwargs": {"weights_path": str(place)}}
            await self._ask(client, "POST", "/collective_rpc", weights)
            await self._ask(client, "POST", "/update_weight_version", {"new_version": name})
            await self._ask(client, "POST", "/resume")

    def _wait_for_server(self) -> None:
        """Returns once the server is there and started as it should be."""
        until = time.monotonic() + self.startup_timeout
        while True:
            try:
                info = _run(self._server_info())
                break
            except EngineError as error:
                if not isinstance(error.__cause__, httpx.TransportError) or time.monotonic() > until:
                    raise
            time.sleep(min(2.0, max(0.0, until - time.monotonic())))
        mode = _entry(info, "vllm_config", "model_config", "logprobs_mode")
        if mode != "processed_logprobs":
            raise self._error(f"gives log-probabilities of kind {mode!r}; start it by {START}")

    async def _server_info(self) -> Any:
        async with self._client() as client:
            return await self._ask(
                client, "GET", "/server_info?config_format=json", timeout=max(1.0, self.startup_timeout)
            )

    # ---- completions ----

    def complete(
        self,
        policy,
        pad: int,
        ends: Sequence[int],
        prompts: Sequence[tuple[int, ...]],
        how: Sampling,
        starts: Sequence[int],
    ) -> Completions:
        """As of `SamplingEngine`.

        Raises:
            EngineError: If the server dies, does not answer in time, or answers with something else than completions
                by the weights that it was sent.
        """
        common = dict(
            temperature=how.temperature,
            top_p=how.cuts.top_p,
            top_k=how.cuts.top_k or 0,
            min_p=how.cuts.min_p or 0.0,
            repetition_penalty=how.cuts.repetition_penalty,
            stop_token_ids=list(ends),
            ignore_eos=True,  # the ends are those above
            logprobs=0,  # of the sampled token alone
            detokenize=False,
        )
        limits, requests = [how.max_completion_length - start for start in starts], []
        for ids, stream, start, limit in zip(prompts, how.streams(len(prompts)), starts, limits, strict=True):
            own = {"seed": seed_for(how.seed, stream, start), "max_tokens": limit}
            requests.append({"token_ids": list(ids), "sampling_params": {**common, **own}})
        answers = _run(self._complete_all(requests))
        found = [self._completion(answer, ends, limit) for answer, limit in zip(answers, limits, strict=True)]
        return Completions([ids for ids, _ in found], [logprobs for _, logprobs in found])

    async def _complete_all(self, requests: list[dict]) -> list[Any]:
        async with self._client() as client:
            return await asyncio.gather(*(self._ask(client, "POST", COMPLETE, request) for request in requests))

    def _completion(self, answer: Any, ends: Sequence[int], limit: int) -> tuple[list[int], list[float]]:
        """Token ids and log-probabilities of an answer, checked."""
        try:
            (choice,) = answer["choices"]
            ids = [int(i) for i in choice["token_ids"]]
            entries = choice["logprobs"]["content"]
            logprobs = [float(entry["logprob"]) for entry in entries]
            versions = {span["version"] for span in choice["weight_versions"]}
            reason, same = choice["finish_reason"], [entry["token_id"] for entry in entries] == ids
        except (KeyError, TypeError, ValueError) as error:
            raise self._error(f"answered with no completion but {str(answer)[:200]!r}") from error
        if versions != {self.version}:
            raise self._error(
                f"answered by weights {', '.join(sorted(versions))}, not by {self.version}, which it was sent: it was "
                "restarted, or another run uses it"
            )
        ended = bool(ids) and ids[-1] in ends
        if not same or not 0 < len(ids) <= limit or reason != ("stop" if ended else "length"):
            raise self._error(
                f"answered with {len(ids)} tokens, {len(logprobs)} log-probabilities and the finish reason {reason!r}, "
                f"which do not fit together or to {limit} tokens at most: {str(answer)[:200]}"
            )
        if not ended and len(ids) < limit:
            raise self._error(f"gave {len(ids)} tokens of {limit}: start it with a larger --max-model-len")
        return ids, logprobs

    # ---- HTTP ----

    def _client(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)  # `_ask` has one for the rest
        return httpx.AsyncClient(base_url=self.address, limits=limits, timeout=timeout, trust_env=False)

    async def _ask(self, client, method: str, path: str, body: dict | None = None, timeout: float | None = None) -> Any:
        """The server's answer to one request; `timeout` is the response timeout by default."""
        timeout = self.response_timeout if timeout is None else timeout
        try:
            async with asyncio.timeout(timeout):
                response = await client.request(method, path, json=body)
        except TimeoutError as error:
            hint = "raise vllm_response_timeout if it is merely slow"
            raise self._error(f"has not answered {path.partition('?')[0]} in {timeout:g} s; {hint}") from error
        except httpx.TransportError as error:
            raise self._error(f"cannot be reached ({error!r}); start it by {START}") from error
        if response.status_code == httpx.codes.NOT_FOUND:
            raise self._error(f"does not know {path}; start it by {START}")
        if response.is_error:
            raise self._error(f"refused {path} with status {response.status_code}: {response.text[:500]}")
        try:
            return response.json() if response.content else None
        except ValueError as error:
            raise self._error(f"answered {path} with no JSON but {response.text[:200]!r}") from error

    def _error(self, problem: str) -> EngineError:
        return EngineError(
            f"the vLLM server at {self.address} {problem}. Once it is back, train(resume_from_checkpoint=True) goes on "
            "where the run ended"
        )


def _entry(tree: Any, *names: str) -> Any:
    for name in names:
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


def _run(task: Coroutine) -> Any:
    """The result of a coroutine, in a thread of its own if this one has a running loop, as notebooks have."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(task)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, task).result()
