"""TRL's contract: reward functions, conversations, models by name, evaluation, adapters, logs."""

import asyncio
import copy
import time

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import run_settings
from datasets import Dataset
from test_trainer import PROMPTS, arm, quiet_trainer, records_of, trainer
from transformers import PrinterCallback

from dvpo_lib.models.policy import PolicySettings, build_policy
from dvpo_lib.rl.config import DVPOConfig
from dvpo_lib.rl.methods import METHODS
from dvpo_lib.rl.rewards import RewardError, Scores
from dvpo_lib.rl.trainer import DVPOTrainer
from dvpo_lib.tasks.families import TaskSettings, build_tokenizer

TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
CHATS = [{"prompt": [{"role": "user", "content": record["prompt"]}], "answer": record["answer"]} for record in PROMPTS]


@pytest.fixture
def tokenizer():
    made = build_tokenizer(TaskSettings())
    made.chat_template = TEMPLATE
    return made


def small_policy(tokenizer, **changes):
    return build_policy(tokenizer, PolicySettings(hidden_size=32, num_hidden_layers=1, **changes), seed=0)


def chat_trainer(tokenizer, rewards, method="grpo", data=CHATS, **changes):
    args = run_settings(
        method=method, generation_batch_size=8, num_generations=4, max_completion_length=4, max_steps=1, **changes
    )
    t = DVPOTrainer(small_policy(tokenizer), rewards, args, data, processing_class=tokenizer)
    t.remove_callback(PrinterCallback)
    return t


def test_conversations_reach_reward_functions_as_messages(tokenizer):
    seen = {}

    def keep(prompts, completions, completion_ids, terminated, trainer_state, answer, **others):
        seen.update(prompts=prompts, completions=completions, ids=completion_ids, ended=terminated)
        assert trainer_state.global_step == 0 and len(answer) == 8
        return [0.0] * 8

    chat_trainer(tokenizer, keep).train()
    assert seen["prompts"][0][0]["role"] == "user" and len(seen["completions"]) == 8
    for completion, ids, ended in zip(seen["completions"], seen["ids"], seen["ended"]):
        assert [message["role"] for message in completion] == ["assistant"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == completion[0]["content"]
        assert ended == (ids[-1] == tokenizer.eos_token_id)


def test_rewards_may_be_any_kind_of_number_list_or_awaitable(tokenizer):
    """Async functions wait side by side; tensors, arrays and numpy numbers count; None is left out; weights apply."""

    async def slow(completions, **others):
        await asyncio.sleep(0.3)
        return torch.ones(len(completions), dtype=torch.bfloat16)

    async def slow_too(completions, **others):
        await asyncio.sleep(0.3)
        return np.full(len(completions), 2.0)

    def column(completions, **others):
        return torch.ones(len(completions), 1) * 0

    def columns(completions, **others):
        return [np.zeros(1) for _ in completions]

    def at_times(completions, **others):
        return [np.float32(4.0) if i % 2 else None for i in range(len(completions))]

    t = chat_trainer(tokenizer, [slow, slow_too, at_times, column, columns], reward_weights=[1, 0.5, 0.25, 1, 1])
    rollouts, columns = t.sample()
    start = time.monotonic()
    scores = t.score(rollouts, columns)
    assert time.monotonic() - start < 0.55
    assert scores.rewards.tolist() == [2.0, 3.0] * 4
    assert scores.by_function["at_times"][1] == 4 and scores.by_function["at_times"][0].isnan()
    t.train()
    assert records_of(t)[0]["rewards/slow_too/mean"] == 2 and records_of(t)[0]["reward"] == 2.5


def test_async_functions_work_inside_a_running_loop(tokenizer):
    async def reward(completions, **others):
        return [1.0] * len(completions)

    async def notebook():
        t = chat_trainer(tokenizer, reward)
        return t.score(*t.sample()).rewards

    assert asyncio.run(notebook()).tolist() == [1.0] * 8


def test_async_functions_keep_their_loop_from_call_to_call(tokenizer):
    """A semaphore that two calls wait for belongs to the loop of the first batch; interrupts come through."""
    one_at_a_time = asyncio.Semaphore(1)

    async def reward(completions, **others):
        async with one_at_a_time:
            await asyncio.sleep(0.001)
        return [1.0] * len(completions)

    async def interrupted(completions, **others):
        raise KeyboardInterrupt

    t = chat_trainer(tokenizer, [reward, reward])
    rollouts, columns = t.sample()
    assert [t.score(rollouts, columns).rewards[0] for _ in range(2)] == [2, 2]
    with pytest.raises(KeyboardInterrupt):
        t.score(rollouts, columns, {"interrupted": interrupted})


def by_token(completion_ids, **others):
    return [[0.1 * (k + 1) for k in range(len(ids))] for ids in completion_ids]


@pytest.mark.parametrize("method", ["dvpo", "ppo", "grpo", "cql"])
def test_rewards_by_token_stand_on_their_tokens_and_groups_see_the_sum(tokenizer, method):
    t = trainer(tokenizer, method, by_token, gamma=0.5, lam=1.0, whiten_advantages=False, beta=0.0)
    rollouts, columns = t.sample()
    scores = t.score(rollouts, columns)
    x = t.build_experience(rollouts, scores)
    lengths = x.mask.sum(1)
    torch.testing.assert_close(scores.rewards, 0.05 * lengths * (lengths + 1), check_dtype=False)
    if method in ("dvpo", "ppo"):
        _, targets = t.method.advantage(x, t.args)
        row = int(lengths.argmax())
        want, to_go = [], 0.0
        for k in reversed(range(int(lengths[row]))):
            to_go = 0.1 * (k + 1) + 0.5 * to_go
            want.insert(0, to_go)
        torch.testing.assert_close(targets[row, : len(want)].mean(-1), torch.tensor(want))
    t.train()
    assert t.state.global_step == 12


def test_a_reward_by_token_of_another_length_is_refused(tokenizer):
    with pytest.raises(RewardError, match="returned 1 rewards for record 0 .*, not one for each of its"):
        trainer(tokenizer, rewards=lambda completion_ids, **c: [[1.0]] * len(completion_ids)).step()


def test_reward_functions_cannot_change_what_others_see(tokenizer):
    def vandal(prompts, completions, answer, completion_ids, **others):
        prompts[0], answer[0] = "x", "x"
        completions[0][0]["content"] = "x"
        completion_ids[0][:] = []
        return [0.0] * len(prompts)

    def witness(prompts, completions, answer, completion_ids, **others):
        assert prompts[0] != "x" and answer[0] != "x" and completions[0][0]["content"] != "x" and completion_ids[0]
        return [0.0] * len(prompts)

    chat_trainer(tokenizer, [vandal, witness]).train()


def test_functions_may_log_metrics_and_columns(tokenizer, tmp_path, capsys):
    def reward(completions, log_metric, log_extra, **others):
        log_metric("share", 0.25)
        log_extra("first", [c[0]["content"][:3] for c in completions])
        return [1.0] * len(completions)

    t = chat_trainer(
        tokenizer,
        reward,
        log_completions=True,
        num_completions_to_print=2,
        output_dir=str(tmp_path),
        save_strategy="no",
    )
    t.train()
    assert records_of(t)[0]["share"] == 0.25
    table = pd.read_parquet(tmp_path / "completions" / "completions_00004.parquet")
    assert {"step", "prompt", "completion", "reward", "first", "advantage"} <= set(table) and len(table) == 8
    assert "completion" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["grpo", "cql"])
def test_what_evaluation_logs_is_its_own_and_a_row_of_the_table_is_of_one_response(tokenizer, method):
    def reward(completions, log_metric, log_extra, **others):
        log_metric("words", len(completions))
        log_extra("said", [completions[0], *range(1, len(completions))])
        return [float(len(completion)) for completion in completions]

    args = run_settings(method=method, generation_batch_size=8, num_generations=4, max_completion_length=4, max_steps=1)
    t = quiet_trainer(small_policy(tokenizer), reward, args, tokenizer)
    t.args.log_completions = True
    t.collect_batch()
    found, before = t.evaluate(PROMPTS[:1]), dict(t._metrics["train"])
    assert found["eval_words"] == (4 if method == "grpo" else 1) and before["words"] == [8]
    table = t.table.table(step=0)
    assert [len(text) for text in table["completion"]] == table["reward"].tolist()
    assert table["said"].tolist() == [table["completion"][0], *map(str, range(1, 8))]


@pytest.mark.parametrize(
    "data, message",
    [
        ([{"prompt": "math 1 ?"}, {"prompt": ""}], "record 1: the prompt is empty"),
        ([{"prompt": "math 1 ?"}, {"prompt": " \n"}], "record 1: the prompt is empty, it has no tokens"),
        ([{"prompt": "math 1 ?"}, {"question": "x"}], "record 1 has no column 'prompt'"),
        ([{"prompt": "math 1 ?"}, {"prompt": 3}], "record 1: prompt '?3'? is neither"),
        ([{"prompt": []}], "record 0: the prompt is empty"),
        ([], "no records"),
    ],
)
def test_prompts_are_checked_before_training(tokenizer, data, message):
    with pytest.raises(ValueError, match=message):
        chat_trainer(tokenizer, arm, data=data)


def test_prompts_beyond_the_models_positions_are_named(tokenizer):
    policy = small_policy(tokenizer)
    policy.config.max_position_embeddings = 20
    data = [{"prompt": "math 1 ?"}, {"prompt": "1 " * 18}]
    with pytest.raises(ValueError, match=r"record 1: the prompt's 18 tokens and max_completion_length"):
        DVPOTrainer(policy, arm, run_settings(max_completion_length=4), data, processing_class=tokenizer)
    with pytest.raises(ValueError, match=r"max_completion_length \(32\) leaves no room"):
        DVPOTrainer(policy, arm, run_settings(), data, processing_class=tokenizer)


def test_a_tokenizer_without_any_end_is_refused(tokenizer):
    policy = small_policy(tokenizer)
    policy.generation_config.eos_token_id = None
    tokenizer.eos_token = tokenizer.pad_token = None
    with pytest.raises(ValueError, match="no end of sequence"):
        DVPOTrainer(policy, arm, run_settings(), PROMPTS, processing_class=tokenizer)


def test_no_reward_function_is_an_error(tokenizer):
    with pytest.raises(ValueError, match="No reward source provided"):
        chat_trainer(tokenizer, [])
    with pytest.raises(ValueError, match="reward_weights .* must match"):
        chat_trainer(tokenizer, arm, reward_weights=[1.0, 2.0])


def test_every_prompt_is_seen_once_an_epoch_and_groups_stay_whole(tokenizer):
    seen = []

    def keep(prompts, **others):
        seen.append(prompts)
        return [0.0] * len(prompts)

    args = DVPOConfig(
        run_settings().output_dir,
        method="grpo",
        num_train_epochs=2,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=2,
        gradient_checkpointing=False,
        save_strategy="no",
        disable_tqdm=True,
    )
    t = quiet_trainer(small_policy(tokenizer), keep, args, tokenizer)
    t.train()
    assert t.state.global_step == 20 and t.state.epoch == 2  # 10 prompts, one a batch
    assert all(len(set(prompts)) == 1 for prompts in seen)
    epochs = [[prompts[0] for prompts in half] for half in (seen[:10], seen[10:])]
    assert all(len(set(epoch)) == 10 for epoch in epochs) and epochs[0] != epochs[1]


def test_streams_without_length_are_read_in_order(tokenizer):
    class Stream:
        def __iter__(self):
            return iter(PROMPTS)

    seen = []

    def keep(prompts, **others):
        seen.extend(prompts)
        return [0.0] * len(prompts)

    args = run_settings(method="ppo", generation_batch_size=8, max_completion_length=2, max_steps=2)
    t = DVPOTrainer(small_policy(tokenizer), keep, args, Stream(), processing_class=tokenizer)
    t.remove_callback(PrinterCallback)
    t.train()
    assert seen == [record["prompt"] for record in [*PROMPTS, *PROMPTS][:16]]


def test_streams_are_read_by_one_process_alone(tokenizer):
    stream = Dataset.from_list(PROMPTS).to_iterable_dataset()
    args = dict(method="ppo", generation_batch_size=8, max_completion_length=2, max_steps=1)
    with pytest.raises(ValueError, match="Iterable datasets require `dispatch_batches=False`"):
        config = run_settings(**args, accelerator_config={"dispatch_batches": True})
        DVPOTrainer(small_policy(tokenizer), arm, config, stream, processing_class=tokenizer)
    with pytest.raises(ValueError, match="`train_dataset` is required"):
        DVPOTrainer(small_policy(tokenizer), arm, run_settings(**args), processing_class=tokenizer)
    args = run_settings(**args, dataloader_num_workers=2)
    t = DVPOTrainer(small_policy(tokenizer), arm, args, Dataset.from_list(PROMPTS), stream, processing_class=tokenizer)
    assert t.get_eval_dataloader().num_workers == 0 and t.args.dataloader_num_workers == 2
    assert t.get_eval_dataloader(Dataset.from_list(PROMPTS)).num_workers == 2
    t = DVPOTrainer(small_policy(tokenizer), arm, args, stream, processing_class=tokenizer)
    assert t.args.dataloader_num_workers == 0


def test_sampling_in_parts_gives_the_same_tokens(tokenizer):
    """`sampling_batch_size` bounds the cache, and so do all forwards of updates and scoring by the micro-batch."""
    whole, _ = chat_trainer(tokenizer, arm).sample()
    t = chat_trainer(tokenizer, arm, sampling_batch_size=3, per_device_train_batch_size=2, steps_per_generation=4)
    sizes = []
    t.policy.register_forward_pre_hook(
        lambda module, inputs, named: sizes.append(len(named["input_ids"])), with_kwargs=True
    )
    parts, _ = t.sample()
    assert torch.equal(whole.tokens.input_ids, parts.tokens.input_ids) and whole.completions == parts.completions
    assert torch.equal(whole.tokens.mask, parts.tokens.mask) and max(sizes) == 3
    torch.testing.assert_close(whole.logprobs, parts.logprobs)
    t.reward_funcs, sizes[:] = [lambda completions, **others: [0.5 * i for i in range(8)]], []
    t.args.sampling_batch_size = 1
    t.step()
    assert max(sizes) == 2


@pytest.mark.parametrize("method", ["grpo", "dvpo"])
def test_truncated_responses_can_be_left_out(tokenizer, method):
    """They count in their group's statistics and teach nothing."""
    t = trainer(tokenizer, method, mask_truncated_completions=True)
    rollouts, _ = t.sample()
    ended = t.terminated(rollouts)
    x = t.build_experience(rollouts, Scores(torch.rand(32), {}))
    assert torch.equal(x.mask.any(1), ended) and not ended.all()
    if method == "grpo":
        torch.testing.assert_close(t.method.advantage(x, t.args)[0].view(4, 8, -1).sum(1), torch.zeros(4, 4))
    t.step()


def test_a_saved_model_is_loaded_by_name_with_its_tokenizer(tokenizer, tmp_path):
    small_policy(tokenizer).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    args = run_settings(method="ppo", generation_batch_size=8, max_completion_length=2, max_steps=1)
    t = DVPOTrainer(str(tmp_path / "base"), arm, args, PROMPTS)
    t.remove_callback(PrinterCallback)
    t.train()
    t.save_model(str(tmp_path / "out"))
    again = DVPOTrainer(str(tmp_path / "out"), arm, args, PROMPTS)
    for a, b in zip(t.policy.parameters(), again.policy.parameters()):
        assert torch.equal(a, b)


def test_evaluation_reports_rewards_of_the_evaluation_prompts(tokenizer):
    args = run_settings(method="grpo", generation_batch_size=8, num_generations=4, max_completion_length=4, max_steps=1)
    t = DVPOTrainer(
        small_policy(tokenizer), arm, args, PROMPTS, {"a": PROMPTS[:3], "b": PROMPTS[3:]}, processing_class=tokenizer
    )
    t.remove_callback(PrinterCallback)
    before = copy.deepcopy(t.policy.state_dict())
    found, again = t.evaluate(), t.evaluate()
    assert 0 <= found["eval_a_reward"] <= 1 and found["eval_b_loss"] is not None
    assert found["eval_a_reward"] == again["eval_a_reward"]
    assert all(torch.equal(before[k], v) for k, v in t.policy.state_dict().items())


def test_adapters_alone_are_trained_and_the_reference_is_the_base(tokenizer):
    """LoRA on policy and critic; the reference is the policy with its adapters switched off: KL 0 at the start."""
    peft = pytest.importorskip("peft")
    for method in ("ppo", "dvpo", "grpo", "cql"):
        sizes = dict(generation_batch_size=8, num_generations=4, max_completion_length=4, max_steps=2)
        args = run_settings(method=method, beta=0.1, learning_rate=1e-2, **sizes)
        lora = peft.LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        t = DVPOTrainer(small_policy(tokenizer), arm, args, PROMPTS, processing_class=tokenizer, peft_config=lora)
        t.remove_callback(PrinterCallback)
        assert t.reference is None
        before = {n: p.clone() for m in (t.policy, t.critic) if m is not None for n, p in m.named_parameters()}
        t.train()
        if method != "cql":
            assert abs(records_of(t)[0]["kl"]) < 1e-6 < abs(records_of(t)[1]["kl"])
        after = {n: p for m in (t.policy, t.critic) if m is not None for n, p in m.named_parameters()}
        moved = {n for n in before if not torch.equal(before[n], after[n])}
        assert moved and all("lora" in n or not n.startswith(("base_model", "backbone")) for n in moved)
        assert METHODS[method].critic is None or any("backbone" in n and "lora" in n for n in moved)


SCRIPT = """
from datasets import Dataset
from LIBRARY import CONFIG, TRAINER

def length(completions, **kwargs):
    return [float(len(completion[0]["content"])) for completion in completions]

async def at_times(prompts, completions, answer, **kwargs):
    return [1.0 if answer[i] in completions[i][0]["content"] else None for i in range(len(prompts))]

data = Dataset.from_list([{"prompt": [{"role": "user", "content": f"math {i} ?"}], "answer": str(i)} for i in range(6)])
args = CONFIG(output_dir=folder, per_device_train_batch_size=4, num_generations=4, max_completion_length=6, max_steps=3,
              learning_rate=1e-3, logging_steps=1, report_to="none", use_cpu=True, bf16=False, disable_tqdm=True)
trainer = TRAINER(model=model, reward_funcs=[length, at_times], args=args, train_dataset=data)
trainer.train()
"""


def run_script(tokenizer, folder, library, config, trainer_name):
    """The trainer of the script, with the import and the two class names filled in."""
    small_policy(tokenizer).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    names = dict(model=str(folder / "base"), folder=str(folder / "out"))
    text = SCRIPT.replace("LIBRARY", library).replace("CONFIG", config).replace("TRAINER", trainer_name)
    exec(compile(text, "script", "exec"), names)
    return names["trainer"]


def test_a_script_for_trl_runs_with_other_names(tokenizer, tmp_path):
    t = run_script(tokenizer, tmp_path, "dvpo_lib", "DVPOConfig", "DVPOTrainer")
    assert t.state.global_step == 3 and "rewards/length/mean" in t.state.log_history[0]
