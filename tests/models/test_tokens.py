"""Token ids of prompts, completions and conversations, by small templates in the style of four model families."""

from types import SimpleNamespace

import pytest
import torch
from chat_families import FAMILIES, tokenizer_of
from tiny_models import tiny_model
from tokenizers import processors

from dvpo_lib.models.causal_lm import end_tokens
from dvpo_lib.models.chat_templates import ChatTemplate
from dvpo_lib.models.critic import Critic, CriticSettings
from dvpo_lib.models.critic_training import encode_table, fit_critic, predict_values
from dvpo_lib.models.tokens import Tokens, encode_completions, encode_prompts
from dvpo_lib.rl.sampling.rollouts import sample_answers, sample_dialogues, sample_rollouts

each_family = pytest.mark.parametrize("family", list(FAMILIES))
SYSTEM, ASK = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Two plus two?"}
WORDS = ["Let me ask a tool.", "It says four.", " 4, of course "]
HEARD = [{"role": "tool", "content": "4"}, {"role": "user", "content": "Sure?"}]


class Reciter(torch.nn.Module):
    """A policy without a cache that goes on with the text that it knows, and fails if what it reads is not in it."""

    device = torch.device("cpu")

    def __init__(self, tokenizer, *texts):
        super().__init__()
        self.size, self.texts = len(tokenizer), texts
        end = tokenizer.chat_template and ChatTemplate(tokenizer).turn_end
        self.generation_config = SimpleNamespace(eos_token_id=[end] if end else None)

    def forward(self, input_ids, attention_mask, **inputs):
        logits = torch.full((*input_ids.shape, self.size), -1e9)
        for i, (ids, real) in enumerate(zip(input_ids, attention_mask.bool())):
            read = ids[real].tolist()
            known = [text for text in self.texts if text[: len(read)] == read]
            if known and len(known[0]) > len(read):
                logits[i, -1, known[0][len(read)]] = 0.0
            else:  # a row that has ended is read on
                assert any(read[: len(text)] == text for text in self.texts), "not the template's text"
                logits[i, -1, 0] = 0.0
        return SimpleNamespace(logits=logits)


def rendered(tokenizer, messages, **how):
    """Token ids of a conversation by the template itself."""
    text = tokenizer.apply_chat_template(messages, tokenize=False, **how)
    return tokenizer(text, add_special_tokens=False).input_ids


def conversation(family, words=WORDS):
    prompt = [ASK] if family == "Mistral" else [SYSTEM, ASK]
    turns = [{"role": "assistant", "content": text} for text in words]
    return prompt, [turns[0], HEARD[0], turns[1], HEARD[1], turns[2]]


def reply_of(family, seen=None):
    """The environment of `conversation`."""

    def reply(record, completion):
        if seen is not None:
            seen.append(completion)
        turns = sum(message["role"] == "assistant" for message in completion)
        return HEARD[turns - 1] if turns <= len(HEARD) else None

    return reply


def sampled(family, words=WORDS, end=None, **options):
    """(tokenizer, rollouts) of a policy that says these words."""
    tokenizer, (prompt, completion) = tokenizer_of(family), conversation(family, words)
    whole = rendered(tokenizer, prompt + completion)
    turn_end = tokenizer.convert_tokens_to_ids(FAMILIES[family][4])
    last = len(whole) - 1 - whole[::-1].index(turn_end)
    policy = Reciter(tokenizer, whole[: last + 1])
    reply = reply_of(family)
    return tokenizer, sample_rollouts(policy, tokenizer, [{"prompt": prompt}], 400, 0.0, reply=reply, **options)


# ---- conversations ----


@pytest.mark.parametrize("family", ["ChatML", "Llama 3", "Gemma", "Mistral"])
def test_a_sampled_conversation_is_the_templates_token_by_token(family):
    words = [text.strip() for text in WORDS]
    tokenizer, rollouts = sampled(family, words)  # the policy checks each token that it reads
    prompt, completion = conversation(family, words)
    whole = rendered(tokenizer, prompt + completion)
    ids = rollouts.tokens.input_ids[0].tolist()
    assert ids == whole[: len(ids)] and tokenizer.decode(whole[len(ids) :]).strip() == ""
    assert rollouts.prompts == [prompt] and rollouts.completions == [completion]
    assert rollouts.tokens.attention_mask.all()
    own = rollouts.tokens.input_ids[0, -rollouts.tokens.completion_length :][rollouts.tokens.mask[0]]
    end = FAMILIES[family][4]
    assert tokenizer.decode(own) == "".join(f"{text}{end}" for text in words)
    assert (rollouts.logprobs[~rollouts.tokens.mask] == 0).all()


@each_family
def test_a_table_of_a_conversation_has_the_sampled_tokens_and_mask(family):
    words = [text.strip() for text in WORDS]
    tokenizer, rollouts = sampled(family, words)
    for completions in (rollouts.completions, rollouts.completion_ids()):
        again = encode_completions(tokenizer, rollouts.prompts, completions)
        for name in ("input_ids", "attention_mask", "mask"):
            assert torch.equal(getattr(again, name), getattr(rollouts.tokens, name)), name


def test_the_policys_tokens_stay_as_sampled_if_the_template_would_change_them():
    words = ["<think>Hm.</think>Tool!", "<think>Well.</think>Four.", "<think>Yes.</think>Four!"]
    tokenizer, (prompt, completion) = tokenizer_of("thinking ChatML"), conversation("ChatML", words)
    chatml = tokenizer_of("ChatML")
    whole = rendered(chatml, prompt + completion)  # nothing forgotten
    assert rendered(tokenizer, prompt + completion) != whole
    policy = Reciter(tokenizer, whole[:-1])
    found = sample_dialogues(policy, tokenizer, [{"prompt": prompt}], reply_of("ChatML"), 400, 0.0)
    assert found.tokens.input_ids[0].tolist() == whole[:-1]


def test_the_template_goes_on_after_any_end_of_a_turn():
    tokenizer = tokenizer_of("ChatML")
    template, eos = ChatTemplate(tokenizer), tokenizer.eos_token
    head = tokenizer(f"{template.prompt_text([ASK])}Tool!{eos}").input_ids
    rest = tokenizer("\n<|im_start|>tool\n4<|im_end|>\n<|im_start|>assistant\n").input_ids
    policy = Reciter(tokenizer, [*head, *rest, *tokenizer("Four.<|im_end|>").input_ids])
    replies = iter([HEARD[0], None])
    found = sample_dialogues(policy, tokenizer, [{"prompt": [ASK]}], lambda *_: next(replies), 400, 0.0)
    assert found.tokens.input_ids[0].tolist() == policy.texts[0]
    assert [message["content"] for message in found.completions[0]] == ["Tool!", "4", "Four."]


def test_a_text_prompt_gets_replies_by_the_template_too():
    tokenizer = tokenizer_of("Llama 3")
    template = ChatTemplate(tokenizer)
    prompt, said = template.prompt_text([SYSTEM, ASK]), "4<|eot_id|>"
    rest = (
        "<|start_header_id|>user<|end_header_id|>\n\nSure?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    whole = tokenizer(f"{prompt}{said}{rest}Yes<|eot_id|>", add_special_tokens=False).input_ids
    heard = []

    def reply(record, completion):
        heard.append(completion)
        return "Sure?" if len(heard) == 1 else None

    found = sample_dialogues(Reciter(tokenizer, whole), tokenizer, [{"prompt": prompt}], reply, 400, 0.0)
    assert found.tokens.input_ids[0].tolist() == whole  # one beginning of sequence, the template's
    assert heard == [said, f"{said}{rest}Yes<|eot_id|>"] and found.completions == heard[1:]


def test_a_completion_goes_on_with_the_assistants_last_message():
    tokenizer = tokenizer_of("ChatML")
    prompt = [ASK, {"role": "assistant", "content": "The answer is"}]
    whole = rendered(tokenizer, [ASK, {"role": "assistant", "content": "The answer is 4."}])[:-1]
    found = sample_answers(Reciter(tokenizer, whole, whole), tokenizer, [prompt], 50, 0.0)
    assert found.completions == [[{"role": "assistant", "content": "The answer is 4."}]]
    assert tokenizer.decode(found.completion_ids()[0]) == " 4.<|im_end|>"
    again = encode_completions(tokenizer, [prompt], found.completions)
    assert torch.equal(again.input_ids, found.tokens.input_ids)


def test_arguments_of_the_template_reach_it():
    tokenizer = tokenizer_of("ChatML")
    tokenizer.chat_template += "{% if quick %}<think></think>{% endif %}"
    whole = [*rendered(tokenizer, [ASK], add_generation_prompt=True, quick=True), *tokenizer("4<|im_end|>").input_ids]
    policy = Reciter(tokenizer, whole)
    for reply in (None, lambda *_: None):
        found = sample_rollouts(policy, tokenizer, [{"prompt": [ASK]}], 50, 0.0, reply=reply, template={"quick": True})
        assert found.tokens.input_ids[0].tolist() == whole


def test_a_reply_must_not_hold_an_end_of_a_turn():
    tokenizer = tokenizer_of("ChatML")
    whole = [*rendered(tokenizer, [ASK], add_generation_prompt=True), *tokenizer("4<|im_end|>").input_ids]
    policy = Reciter(tokenizer, whole)
    with pytest.raises(ValueError, match="record 0: the reply contains the end of sequence"):
        sample_dialogues(policy, tokenizer, [{"prompt": [ASK]}], lambda *_: "a<|im_end|>b", 50, 0.0)


# ---- ends ----


def test_ends_are_those_of_the_tokenizer_and_of_the_model():
    tokenizer = tokenizer_of("Llama 3")
    eot, eos = tokenizer.convert_tokens_to_ids("<|eot_id|>"), tokenizer.eos_token_id
    config = SimpleNamespace(eos_token_id=eos, get_text_config=lambda: SimpleNamespace(eos_token_id=[5]))
    model = SimpleNamespace(config=config, generation_config=SimpleNamespace(eos_token_id=[eos, eot]))
    assert end_tokens(model, tokenizer) == (eos, eot, 5)
    assert end_tokens(None, tokenizer) == (eos,)
    tokenizer.eos_token = None
    assert end_tokens(model, tokenizer)[:1] == (eos,)
    with pytest.raises(ValueError, match="no token ends a response"):
        end_tokens(None, tokenizer)


def test_a_turns_end_that_ends_nothing_is_warned_of():
    tokenizer = tokenizer_of("ChatML")
    policy = Reciter(tokenizer, rendered(tokenizer, [ASK], add_generation_prompt=True))
    policy.generation_config.eos_token_id = None
    with pytest.warns(UserWarning, match="<|im_end|>.* ends no response"):
        sample_answers(policy, tokenizer, [[ASK]], 3, 0.0)


def test_an_answer_ends_at_the_models_own_end():
    tokenizer = tokenizer_of("Llama 3")
    eot = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    ids = [*encode_prompts(tokenizer, ["2+2="])[0], *tokenizer("4<|eot_id|>!!", add_special_tokens=False).input_ids]
    policy = Reciter(tokenizer, ids)
    policy.generation_config.eos_token_id = [1, eot]
    found = sample_answers(policy, tokenizer, ["2+2="], 20, 0.0)
    assert found.completions == ["4"] and found.completion_ids() == [ids[-4:-2]] and found.tokens.mask.all()


def test_a_text_that_holds_the_models_end_gets_no_other():
    tokenizer = tokenizer_of("Llama 3")
    for text, length in (("4<|eot_id|>", 2), ("4<|end_of_text|>", 2), ("4", 2)):
        assert encode_completions(tokenizer, ["2+2="], [text]).completion_length == length
    tokenizer.chat_template = None
    eot = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    ends = (tokenizer.eos_token_id, eot)
    assert encode_completions(tokenizer, ["2+2="], ["4<|eot_id|>"], ends=ends).completion_length == 2
    dialogue = encode_completions(tokenizer, ["a"], ["b<|eot_id|>c<|end_of_text|>d<|eot_id|>"], ends=ends)
    assert dialogue.mask.tolist() == [[True, True, False, False, True, True]]


# ---- prompts ----


@each_family
def test_texts_get_the_beginning_of_sequence_once_and_messages_the_templates(family):
    tokenizer, bos = tokenizer_of(family), FAMILIES[family][1]
    start = [tokenizer.convert_tokens_to_ids(bos)] if bos else []
    plain = tokenizer("2+2=", add_special_tokens=False).input_ids
    prompts = ["2+2=", f"{bos or ''}2+2=", [ASK], ChatTemplate(tokenizer).prompt_text([ASK])]
    chat = rendered(tokenizer, [ASK], add_generation_prompt=True)
    expected = [start + plain, start + plain, chat, chat]
    assert encode_prompts(tokenizer, prompts) == expected
    assert expected[0] == tokenizer("2+2=").input_ids
    ends = [*tokenizer(" 4", add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    policy = Reciter(tokenizer, *[[*ids, *ends] for ids in expected])
    sampled, table = (
        sample_answers(policy, tokenizer, prompts, 9, 0.0),
        encode_completions(tokenizer, prompts, [ends] * 4),
    )
    for name in ("input_ids", "attention_mask", "mask"):
        assert torch.equal(getattr(sampled.tokens, name), getattr(table, name)), name


def test_a_prompt_gets_no_end_of_sequence():
    tokenizer = tokenizer_of("Llama 3")
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (tokenizer.bos_token, tokenizer.eos_token)]
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        f"{tokenizer.bos_token} $A {tokenizer.eos_token}", special_tokens=special
    )
    assert tokenizer("a").input_ids[-1] == tokenizer.eos_token_id
    assert encode_prompts(tokenizer, ["a"]) == [tokenizer("a").input_ids[:-1]]


def test_prompts_that_cannot_be_read_are_named():
    tokenizer = tokenizer_of("Llama 3")
    policy = Reciter(tokenizer)
    for bad, words in (
        ("", "record 1: the prompt is empty"),
        ([], "record 1: the prompt is empty"),
        ("a\ud800b", "record 1: the prompt holds a lone surrogate at character 1"),
        ([{"role": "user", "content": "\udc00"}], "record 1: the prompt holds a lone surrogate"),
    ):
        prompts = ["a", bad]
        with pytest.raises(ValueError, match=words):
            encode_prompts(tokenizer, prompts)
        with pytest.raises(ValueError, match=words):
            encode_completions(tokenizer, prompts, ["b", "b"])
        for reply in (None, lambda *_: None):
            with pytest.raises(ValueError, match=words):
                sample_rollouts(policy, tokenizer, [{"prompt": prompt} for prompt in prompts], 5, reply=reply)
    with pytest.raises(ValueError, match="record 0: the completion holds a lone surrogate"):
        encode_completions(tokenizer, ["a"], ["\ud800"])
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="record 1: .* no chat template"):
        encode_prompts(tokenizer, ["a", [ASK]])


def test_rows_of_like_length_stand_together():
    attention = torch.tensor([[0, 1, 1, 0], [1, 1, 1, 1], [0, 0, 1, 0], [0, 1, 1, 0]])
    tokens = Tokens(torch.zeros_like(attention), attention, attention[:, 2:].bool())
    assert tokens.by_length(torch.tensor([3, 1, 0, 2])).tolist() == [2, 3, 0, 1], "equal lengths keep their order"
    assert tokens.by_length(torch.tensor([], dtype=torch.long)).tolist() == []


def test_a_tokenizer_without_end_and_padding_is_an_error():
    tokenizer = tokenizer_of("ChatML")
    tokenizer.eos_token = tokenizer.pad_token = None
    policy = Reciter(tokenizer)
    policy.generation_config.eos_token_id = None
    with pytest.raises(ValueError, match="no token ends a response"):
        sample_answers(policy, tokenizer, ["a"], 5)
    policy.generation_config.eos_token_id = 3
    with pytest.raises(ValueError, match="neither a padding token nor an end of sequence"):
        sample_answers(policy, tokenizer, ["a"], 5)


def test_critics_read_tables_as_their_backbones_model_ends_turns():
    """A turn closed by an end of the model's own is closed; in conversations the policy's tokens alone have values."""
    tokenizer = tokenizer_of("Llama 3")
    eot = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    policy = tiny_model("Llama", vocab_size=len(tokenizer), max_position_embeddings=512)
    policy.generation_config.eos_token_id = [2, eot]
    critic = Critic(policy, 1, 8, seed=0)
    tokenizer_without = tokenizer_of("Llama 3")
    tokenizer_without.chat_template = None
    words = [text.strip() for text in WORDS]
    prompt, completion = conversation("Llama 3", words)
    rows = [{"prompt": "2+2=", "completion": "4<|eot_id|>", "reward": 1.0}]
    assert [len(values) for values in predict_values(critic, rows, tokenizer_without)] == [2]
    cfg = CriticSettings(pretrain_epochs=1, heads=1, quantiles=8)
    assert len(fit_critic(critic, rows, tokenizer_without, cfg, seed=0)) > 0
    talk = [{"prompt": prompt, "completion": completion, "reward": 1.0}]
    assert [len(values) for values in predict_values(critic, talk, tokenizer)] == [sum(len(text) + 1 for text in words)]
    assert torch.equal(
        encode_table(talk, tokenizer).tokens.mask, encode_completions(tokenizer, [prompt], [completion]).mask
    )
