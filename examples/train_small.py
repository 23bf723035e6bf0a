"""Trains a tiny random model by dvpo, without network and GPU. It learns the same in any number of processes:

python examples/train_small.py
torchrun --nproc_per_node 2 examples/train_small.py
"""

import os

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from dvpo_lib import CriticSettings, DVPOConfig, DVPOTrainer

WORDS = "<pad> <eos> Say yes no maybe please now".split()
vocabulary = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
vocabulary.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=vocabulary, pad_token="<pad>", eos_token="<eos>")
torch.manual_seed(0)
config = Qwen3Config(
    vocab_size=len(WORDS),
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=16,
    pad_token_id=0,
    eos_token_id=1,
)


def share_of_yes(completions, **columns):
    return [text.split().count("yes") / max(1, len(text.split())) for text in completions]


args = DVPOConfig(
    "work/train_small",
    method="dvpo",
    max_steps=20,
    learning_rate=5e-3,
    critic=CriticSettings(heads=3, quantiles=32, learning_rate=3e-3),
    generation_batch_size=32,  # completions of all processes together
    per_device_train_batch_size=8,  # completions that one process reads at once
    gradient_accumulation_steps=32 // 8 // int(os.environ.get("WORLD_SIZE", "1")),  # all of them for each step
    max_completion_length=6,
    report_to="none",
    seed=0,
)
trainer = DVPOTrainer(
    Qwen3ForCausalLM(config),
    share_of_yes,
    args,
    [{"prompt": "Say yes please"}, {"prompt": "Say yes now"}],
    processing_class=tokenizer,
)
trainer.train()
if trainer.is_world_process_zero():
    rewards = [logs["reward"] for logs in trainer.state.log_history if "reward" in logs]
    print(f"{args.world_size} processes: reward {rewards[0]:.3f} at first, {rewards[-1]:.3f} at last")
