"""Trains through a real vLLM server, checks what it answers, and writes vllm.json (default: benchmarks/).

    make vllm-test        # sets up .venv-vllm, in which the server runs, and calls this

A small Qwen3 model learns arithmetic by dvpo and by grpo. In every iteration the server's greedy answers must be those
of the built-in sampler, so that it has the new weights, and its log-probabilities those of a forward pass. Then the
server is killed in the middle of a run, which must end with a clear error and go on once the server is back. The server
stops with this script, whatever happens.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import torch
from transformers import PrinterCallback

from dvpo_lib.models.critic import CriticSettings
from dvpo_lib.models.policy import PolicySettings, build_policy, fit_language_model, token_logits, token_logprobs
from dvpo_lib.models.tokens import encode_completions
from dvpo_lib.rl.config import DVPOConfig
from dvpo_lib.rl.sampling.engines import EngineError, SamplingCuts
from dvpo_lib.rl.sampling.policy_weights import save_policy_weights
from dvpo_lib.rl.sampling.rollouts import Rollouts, sample_answers, sample_dialogues
from dvpo_lib.rl.trainer import DVPOTrainer
from dvpo_lib.tasks.chains import accuracy_reward
from dvpo_lib.tasks.families import TaskSettings, build_suites, build_tokenizer

MODEL = PolicySettings(hidden_size=128, num_attention_heads=4, steps=150, batch_size=64)  # vLLM needs heads of 32
ITERATIONS, LENGTH, LARGEST_GAP = 3, 32, 1e-3  # the last in nats, for float32
CUTS = SamplingCuts(top_p=0.9, top_k=20, min_p=0.01, repetition_penalty=1.2)
STARTED = 600  # seconds that a server may take to start on a busy machine


@contextmanager
def running_server(python: Path, model: Path, port: int, log: Path) -> Iterator[subprocess.Popen]:
    """A vLLM server on CPUs; it and all its children are gone afterwards.

    Args:
        python: Of the environment that has vLLM.
        model: Folder of the model that it starts with.
        port: On the local host.
        log: File of its output.
    """
    options = [
        *("--model", model, "--host", "127.0.0.1", "--port", port, "--dtype", "float32", "--enforce-eager"),
        *("--max-model-len", 128, "--max-num-seqs", 64, "--enable-scale-out"),
        *("--logprobs-mode", "processed_logprobs", "--hf-overrides", json.dumps({"tie_word_embeddings": False})),
    ]
    command = [python, "-m", "vllm.entrypoints.launchers.api_server.entry", *options]
    settings = {
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "TORCHDYNAMO_DISABLE": "1",
        "HF_HUB_OFFLINE": "1",
    }
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    with log.open("ab") as output:
        server = subprocess.Popen(
            [str(word) for word in command],
            env=clean | settings,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until_ready(server, port, log)
        yield server
    finally:
        stop_server(server)


def wait_until_ready(server: subprocess.Popen, port: int, log: Path) -> None:
    """Returns once the server answers.

    Raises:
        RuntimeError: If it ends or takes too long; the message has the end of its output.
    """
    until = time.monotonic() + STARTED
    while time.monotonic() < until and server.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=5, trust_env=False).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(1)
    raise RuntimeError(f"the server did not start: {log.read_text(encoding='utf-8', errors='replace')[-3000:]}")


def stop_server(server: subprocess.Popen) -> None:
    """Ends the server and all processes that it started."""
    try:
        family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    server.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=20)
    for process in alive:
        process.kill()
    server.wait()
    psutil.wait_procs(alive, timeout=20)


def trainer_of(method: str, policy, tokenizer, prompts, rewards, address: str, folder: Path, **changes) -> DVPOTrainer:
    """A trainer that samples by the server and saves when it breaks off."""
    critic = CriticSettings(kind="quantile", heads=2, quantiles=32, learning_rate=1e-3)
    args = DVPOConfig(
        str(folder),
        method=method,
        critic=critic if method == "dvpo" else None,
        per_device_train_batch_size=16,
        gradient_accumulation_steps=2,
        num_generations=4,
        max_steps=ITERATIONS,
        max_completion_length=LENGTH,
        learning_rate=2e-3,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        use_vllm=True,
        vllm_server_base_url=address,
        vllm_server_timeout=10,
        vllm_response_timeout=300,
        **changes,
    )
    found = DVPOTrainer(policy, rewards, args, prompts, processing_class=tokenizer)
    found.remove_callback(PrinterCallback)
    return found


def logprob_gaps(policy, rollouts: Rollouts, cuts: SamplingCuts | None = None) -> torch.Tensor:
    """Distances of log-probabilities from those of a forward pass, one for each token of the policy (nats)."""
    tokens = rollouts.tokens
    expected = token_logprobs(policy, tokens)[0] if cuts is None else cut_logprobs(policy, rollouts, cuts)
    return (rollouts.logprobs - expected).abs()[tokens.mask].detach()


@torch.no_grad()
def cut_logprobs(policy, rollouts: Rollouts, cuts: SamplingCuts) -> torch.Tensor:
    """(B, T) log-probabilities of completions under a cut distribution, from the logits of one forward pass."""
    tokens, processors = rollouts.tokens, cuts.processors()
    logits, start = token_logits(policy, tokens), tokens.input_ids.shape[1] - tokens.completion_length
    found = torch.zeros_like(rollouts.logprobs)
    for i, t in tokens.mask.nonzero().tolist():
        seen = tokens.input_ids[i, : start + t][tokens.attention_mask[i, : start + t].bool()]
        own = logits[i, t][None]
        for processor in processors:
            own = processor(seen[None], own)
        found[i, t] = own.log_softmax(-1)[0, tokens.input_ids[i, start + t]]
    return found


def train_and_check(method: str, policy, tokenizer, records, address: str, folder: Path) -> dict:
    """A run with checks in every iteration.

    Returns:
        Seconds, gaps and rewards, by iteration.

    Raises:
        AssertionError: If the server's greedy answers are not the built-in sampler's, or never change, or its
            log-probabilities are not those of a forward pass.
    """
    rows, greedy, asked = [], [], [record["prompt"] for record in records["test"][:16]]
    handing_over: list[float] = []

    def checked(prompts, completions, **columns):
        theirs, ours = (sample_answers(t.policy, tokenizer, asked, LENGTH, 0.0, engine=e) for e in (t.engine, None))
        assert theirs.completion_ids() == ours.completion_ids(), f"{method}: the server has other weights"
        greedy.append(theirs.completions)
        start = time.perf_counter()
        drawn = sample_answers(t.policy, tokenizer, asked * 4, LENGTH, seed=len(greedy), engine=t.engine)
        seconds, gaps = time.perf_counter() - start, logprob_gaps(t.policy, drawn)
        assert gaps.max() < LARGEST_GAP, f"{method}: log-probabilities are {gaps.max()} away from a forward's"
        rewards = accuracy_reward(prompts, completions, **columns)
        rows.append(
            {
                "reward": sum(rewards) / len(rewards),
                "logprob_gap_mean": gaps.mean().item(),
                "logprob_gap_max": gaps.max().item(),
                "tokens_per_second": len(gaps) / seconds,
                "weights_seconds": handing_over[-1],
            }
        )
        return rewards

    t = trainer_of(method, policy, tokenizer, records["train"], checked, address, folder)
    update = t.engine.update_weights

    def timed(*arguments):
        start = time.perf_counter()
        update(*arguments)
        handing_over.append(time.perf_counter() - start)

    t.engine.update_weights = timed
    t.train()
    changed = [sum(a != b for a, b in zip(one, other)) for one, other in zip(greedy, greedy[1:])]
    assert len(greedy) == ITERATIONS and all(changed), f"{method}: greedy answers did not change"
    return {"iterations": rows, "greedy_answers": len(asked), "greedy_answers_changed": changed}


def check_sampling(policy, tokenizer, records, engine) -> dict:
    """Largest gaps of dialogues, and of a cut distribution, which are only recorded.

    vLLM applies `min_p` before `top_k` and `top_p`, `transformers` after them: the sets of tokens left may differ, and
    so may their probabilities. Runs with cuts compute their log-probabilities anew (`old_logprobs`).
    """
    asked = [record["prompt"] for record in records["test"][:16]]
    cut = sample_answers(policy, tokenizer, asked, LENGTH, seed=1, engine=engine, cuts=CUTS)
    talks = sample_dialogues(
        policy,
        tokenizer,
        [{"prompt": prompt} for prompt in asked],
        lambda record, transcript: "?" if transcript.count("?") < 2 else None,
        3 * LENGTH,
        seed=2,
        engine=engine,
    )
    found = {"cuts": logprob_gaps(policy, cut, CUTS), "dialogues": logprob_gaps(policy, talks)}
    found = {f"{name}_logprob_gap_max": gaps.max().item() for name, gaps in found.items()}
    assert found["dialogues_logprob_gap_max"] < LARGEST_GAP, found
    assert (~talks.tokens.mask & talks.tokens.attention_mask[:, -talks.tokens.completion_length :].bool()).any()
    return found


def parameter_gap(one, other) -> float:
    """Largest distance between parameters of two networks."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.vllm_server",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--python", type=Path, default=Path(".venv-vllm/bin/python"), help="of vLLM's environment")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the results")
    chosen = parser.parse_args(arguments)
    version = "import vllm, torch; print(vllm.__version__, torch.__version__)"
    said = subprocess.run([chosen.python, "-c", version], capture_output=True, text=True, check=True).stdout
    torch.set_num_threads(1)

    tokenizer, records = build_tokenizer(TaskSettings()), build_suites(TaskSettings())["math"]
    base, shown = build_policy(tokenizer, MODEL, seed=0), list(records["demonstrations"])[:4000]
    tokens = encode_completions(tokenizer, *([record[name] for record in shown] for name in ("prompt", "completion")))
    fit_language_model(base, tokens, MODEL, seed=0)
    records = {split: list(records[split])[:256] for split in ("train", "test")}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"

    with tempfile.TemporaryDirectory() as scratch:
        folder, log = Path(scratch), Path(scratch) / "server.log"
        save_policy_weights(base, folder / "base")
        tokenizer.save_pretrained(folder / "base")

        def fresh():
            return type(base).from_pretrained(folder / "base")

        found: dict = {}
        start = time.perf_counter()
        with running_server(chosen.python, folder / "base", port, log) as server:
            found["server_start_seconds"] = time.perf_counter() - start
            for method in ("dvpo", "grpo"):
                found[method] = train_and_check(method, fresh(), tokenizer, records, address, folder / method)
                print(method, json.dumps(found[method]["iterations"][-1]))
            straight = trainer_of(
                "grpo", fresh(), tokenizer, records["train"], accuracy_reward, address, folder / "straight"
            )
            straight.train()
            straight.engine.update_weights(straight.policy, straight.state.global_step)
            found |= check_sampling(straight.policy, tokenizer, records, straight.engine)

            def killing(prompts, completions, **columns):
                if columns["trainer_state"].global_step == 1:
                    stop_server(server)
                return accuracy_reward(prompts, completions, **columns)

            t = trainer_of("grpo", fresh(), tokenizer, records["train"], killing, address, folder / "killed")
            try:
                t.train()
                raise AssertionError("the run went on without a server")
            except EngineError as error:
                found["error_of_a_dead_server"] = str(error).replace(address, "ADDRESS")
                print(error)
        with running_server(chosen.python, folder / "base", port, log):
            again = trainer_of(
                "grpo", fresh(), tokenizer, records["train"], accuracy_reward, address, folder / "killed"
            )
            again.train(resume_from_checkpoint=True)
        assert again.state.global_step == ITERATIONS
        found["parameter_gap_after_resuming"] = parameter_gap(straight.policy, again.policy)
        assert found["parameter_gap_after_resuming"] < 1e-5, found

    versions = dict(zip(("vllm", "torch_of_vllm"), said.split()[-2:]), torch=torch.__version__)
    settings = {"parameters": sum(p.numel() for p in base.parameters()), "dtype": "float32", "tokens": LENGTH}
    machine = {"cpu": platform.machine(), "cores": os.cpu_count()}
    report = {"machine": machine, "versions": versions, "model": settings, **rounded(found)}
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "vllm.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"written: {chosen.out / 'vllm.json'}")


def rounded(tree):
    """The tree with numbers of four digits."""
    if isinstance(tree, dict):
        return {name: rounded(value) for name, value in tree.items()}
    if isinstance(tree, list):
        return [rounded(value) for value in tree]
    return float(f"{tree:.4g}") if isinstance(tree, float) else tree


if __name__ == "__main__":
    main()
