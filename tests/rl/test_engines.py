"""Sampling engines: equal tokens and log-probabilities, weights that arrive after each update, servers that fail."""

import copy
import re

import pytest
import torch
from fake_vllm import fake_server
from test_trainer import PROMPTS, Watcher, arm, config, quiet_trainer, records_of
from tiny_models import tiny_model

from dvpo_lib.models.policy import PolicySettings, build_policy, token_logprobs
from dvpo_lib.models.tokens import Tokens, pad_rows
from dvpo_lib.rl.methods import resolve_settings
from dvpo_lib.rl.sampling.engines import EngineError, Sampling, SamplingCuts
from dvpo_lib.rl.sampling.policy_weights import save_policy_weights
from dvpo_lib.rl.sampling.rollouts import sample_answers, sample_dialogues
from dvpo_lib.rl.sampling.token_sampling import BuiltinSampler
from dvpo_lib.rl.sampling.transformers_samplers import ContinuousSampler, GenerateSampler
from dvpo_lib.rl.sampling.vllm_sampler import VllmSampler
from dvpo_lib.tasks.families import TaskSettings, build_tokenizer

PAD, ENDS = 0, (2, *range(30, 40))
IDS = [(7, 8, 9), (7, 8, 9), (10, 11, 12, 13, 14), (20,)]
CUT = SamplingCuts(top_p=0.9, top_k=20, min_p=0.01, repetition_penalty=1.3)


def sharp_model(name):
    """A tiny model of this architecture whose next tokens are not all equally likely."""
    model = tiny_model(name)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= 5
    return model


def forward_logprobs(model, found, temperature=1.0):
    """Log-probabilities of completions by the forward that updates use."""
    left, seen = pad_rows(IDS, PAD, left=True)
    right, real = pad_rows(found.ids, PAD)
    tokens = Tokens(torch.cat([left, right], 1), torch.cat([seen, real], 1), real.bool())
    with torch.no_grad():
        logprobs = token_logprobs(model, tokens, temperature)[0]
    return [row[mask] for row, mask in zip(logprobs, tokens.mask)]


@pytest.mark.parametrize("name", ["Llama", "Gemma 3", "GPT-2", "Mamba2"])
def test_generate_draws_the_tokens_of_the_builtin_sampler(name):
    model, rows = sharp_model(name).train(), dict(seed=3, rows=[4, 5, 6, 7])
    settings = [Sampling(12, 0.0), Sampling(12, 1.0, **rows), Sampling(12, 0.7, **rows, cuts=CUT)]
    for how in settings:
        ours, theirs = (engine.complete(model, PAD, ENDS, IDS, how, [0, 1, 0, 3]) for engine in ENGINES)
        assert theirs.ids == ours.ids
        for a, b in zip(ours.logprobs, theirs.logprobs, strict=True):
            torch.testing.assert_close(torch.tensor(b), torch.tensor(a), atol=1e-4, rtol=1e-4)
    assert model.training and model.generation_config.max_new_tokens is None
    found = ENGINES[1].complete(model, PAD, ENDS, IDS, settings[1], [0] * 4)
    assert len({len(ids) for ids in found.ids}) > 1  # some have ended
    for logprobs, expected in zip(found.logprobs, forward_logprobs(model.eval(), found), strict=True):
        torch.testing.assert_close(torch.tensor(logprobs), expected, atol=1e-4, rtol=1e-4)


ENGINES = (BuiltinSampler(), GenerateSampler())


def test_continuous_batching_is_greedy_and_random_as_the_policy():
    model = sharp_model("Llama").train()
    engine = ContinuousSampler({"num_blocks": 8, "max_batch_tokens": 64, "page_size": 32})
    before = torch.get_rng_state()
    greedy = engine.complete(model, PAD, ENDS, IDS, Sampling(12, 0.0), [0] * 4)
    assert greedy.ids == BuiltinSampler().complete(model, PAD, ENDS, IDS, Sampling(12, 0.0), [0] * 4).ids
    first, again = (engine.complete(model, PAD, ENDS, IDS, Sampling(12, 0.8, 1), [0] * 4) for _ in range(2))
    assert first == again and first.ids[0] != first.ids[1]
    for logprobs, expected in zip(first.logprobs, forward_logprobs(model.eval(), first, 0.8), strict=True):
        torch.testing.assert_close(torch.tensor(logprobs), expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ValueError, match="min_p, repetition_penalty"):
        engine.complete(model, PAD, ENDS, IDS, Sampling(12, 1.0, cuts=CUT), [0] * 4)


def test_settings_name_one_engine():
    assert config().sampling_engine == "builtin"
    assert resolve_settings(config(old_logprobs=None)).old_logprobs == "sampler"
    for engine in (dict(use_vllm=True), dict(use_transformers_continuous_batching=True)):
        assert resolve_settings(config(old_logprobs=None, **engine)).old_logprobs == "truncated"
        assert resolve_settings(config(old_logprobs=None, top_p=0.9, **engine)).old_logprobs == "recompute"
    with pytest.raises(ValueError, match="use_vllm and cache_implementation"):
        resolve_settings(config(use_vllm=True, cache_implementation="dynamic"))
    with pytest.raises(ValueError, match="built-in sampler"):
        resolve_settings(config("cql", use_vllm=True))


# ---- a server ----


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(TaskSettings())


@pytest.fixture
def server():
    with fake_server() as running:
        yield running


def vllm_trainer(tokenizer, server, folder, rewards=arm, policy=None, **changes):
    policy = policy or build_policy(tokenizer, PolicySettings(hidden_size=32, num_hidden_layers=1), seed=0)
    own = dict(max_steps=2, generation_batch_size=16, old_logprobs=None)
    own |= dict(use_vllm=True, vllm_server_base_url=server.address)
    saved = dict(output_dir=str(folder), save_strategy="steps", save_steps=80, vllm_server_timeout=0.3)
    args = config("grpo", **own | saved | dict(vllm_response_timeout=20.0) | changes)
    return quiet_trainer(policy, rewards, args, tokenizer)


def test_new_weights_arrive_after_each_update_and_no_more_often(tokenizer, server, tmp_path):
    greedy = []

    def compare(prompts, completions, **columns):
        how, ids = Sampling(4, 0.0), [tuple(tokenizer(prompt).input_ids) for prompt in prompts[:2]]
        theirs, ours = (e.complete(t.policy, 0, t.ends, ids, how, [0, 0]) for e in (t.engine, BuiltinSampler()))
        assert theirs.ids == ours.ids
        torch.testing.assert_close(torch.tensor(theirs.logprobs), torch.tensor(ours.logprobs), atol=1e-5, rtol=1e-5)
        greedy.append(theirs.logprobs)
        return arm(prompts, completions, **columns)

    t = vllm_trainer(tokenizer, server, tmp_path, compare, max_steps=3)
    t.train()
    assert server.loads == len(greedy) == 3 and greedy[0] != greedy[1] != greedy[2]
    assert not list((tmp_path / "vllm_weights").iterdir())
    assert max(logs["sampling/logprob_gap"] for logs in records_of(t)) < 1e-5
    seeds = [body["sampling_params"]["seed"] for body in server.requests if body["sampling_params"]["temperature"]]
    assert len(set(seeds)) == len(seeds) == 3 * 16


@pytest.mark.parametrize("failure, message", [("dies", "cannot be reached"), ("hangs", "not answered .* in 0.3 s")])
def test_a_run_goes_on_once_its_server_is_back(tokenizer, server, tmp_path, failure, message, straight):
    """In the second iteration the server fails; the run ends with a clear error, and goes on from there bit for bit."""
    server.fails, server.fails_after = failure, 1
    t = vllm_trainer(tokenizer, server, tmp_path)
    if failure == "hangs":
        t.add_callback(Watcher(on_step_end=lambda state: setattr(t.engine, "response_timeout", 0.3)))
    with pytest.raises(EngineError, match=f"{re.escape(server.address)}.*{message}") as error:
        t.train()
    assert "train(resume_from_checkpoint=True)" in str(error.value)
    server.fails = None
    again = vllm_trainer(tokenizer, server, tmp_path)
    begun = []
    again.add_callback(Watcher(on_train_begin=lambda state: begun.append(state.global_step)))
    again.train(resume_from_checkpoint=True)
    assert begun == [4]
    for a, b in zip(straight.policy.parameters(), again.policy.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.fixture(scope="module")
def straight(tokenizer, tmp_path_factory):
    """A run whose server is slow, and no more than that."""
    with fake_server() as slow:
        slow.fails = "is slow"
        t = vllm_trainer(tokenizer, slow, tmp_path_factory.mktemp("straight"))
        t.train()
    return t


@pytest.mark.parametrize(
    "failure, message",
    {
        "was restarted": "answered by weights default, not by [0-9a-f]{8}-0",
        "forgets log-probabilities": "answered with no completion but",
        "loses a token": "do not fit together",
        "has few positions": "gave 1 tokens of 4: start it with a larger --max-model-len",
        "has another reason": "the finish reason 'abort'",
        "says no JSON": "no JSON but '<html>'",
        "refuses": "status 400: .*too long",
    }.items(),
)
def test_answers_that_are_no_completions_are_errors(server, tmp_path, failure, message):
    engine, model = VllmSampler(server.address, tmp_path), tiny_model("Llama")
    engine.update_weights(model, 0)
    server.fails = failure
    with pytest.raises(EngineError, match=f"{re.escape(server.address)}.*{message}"):
        engine.complete(model, PAD, ENDS, IDS, Sampling(4), [0] * 4)


def test_a_server_that_is_not_there_or_started_otherwise_is_named(tokenizer, server, tmp_path):
    policy = build_policy(tokenizer, PolicySettings(hidden_size=32, num_hidden_layers=1), seed=0)
    server.mode = "raw_logprobs"
    with pytest.raises(EngineError, match="kind 'raw_logprobs'; start it by .*--logprobs-mode processed_logprobs"):
        VllmSampler(server.address, tmp_path, 0.0).update_weights(policy, 0)
    with pytest.raises(EngineError, match="http://127.0.0.1:9 cannot be reached"):
        VllmSampler("http://127.0.0.1:9/", tmp_path, 0.1).update_weights(policy, 0)


def test_dialogues_cuts_and_ends_by_a_server(tokenizer, server, tmp_path):
    policy = build_policy(tokenizer, PolicySettings(hidden_size=32, num_hidden_layers=1), seed=1)
    engine, prompts = VllmSampler(server.address, tmp_path), [record["prompt"] for record in PROMPTS]
    engine.update_weights(policy, 0)
    found = sample_answers(policy, tokenizer, prompts, 6, 0.8, 5, engine, cuts=CUT)
    assert found.tokens.mask.sum(1).min() > 0 and (found.logprobs[found.tokens.mask] > -10).all()
    assert server.requests[0]["sampling_params"]["stop_token_ids"] == [tokenizer.eos_token_id]
    replies = iter(range(1000))

    def reply(record, transcript):
        return "?" if next(replies) % 3 else None

    spoken = sample_dialogues(policy, tokenizer, PROMPTS, reply, 40, 1.0, 5, engine)
    mine, theirs = spoken.tokens.mask, ~spoken.tokens.mask
    assert (spoken.logprobs[mine] < 0).all() and (spoken.logprobs[theirs] == 0).all()
    expected = token_logprobs(policy, spoken.tokens)[0]
    torch.testing.assert_close(spoken.logprobs[mine], expected[mine], atol=1e-4, rtol=1e-4)


def test_adapters_are_merged_for_a_server_and_stay_as_they_were(tmp_path):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head"])
    model = peft.get_peft_model(tiny_model("Llama"), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    before = copy.deepcopy(model.state_dict())
    save_policy_weights(model, tmp_path / "merged")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    ids = torch.tensor(IDS[2:3])
    torch.testing.assert_close(read(ids).logits, model.eval()(ids).logits, atol=1e-4, rtol=1e-4)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
