"""Critics and log-probabilities on tiny random models of real architectures."""

import copy

import pytest
import torch
from tiny_models import BUILDERS, VOCABULARY, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from dvpo_lib.functional import token_chunks
from dvpo_lib.models.architectures import copy_backbone, hidden_states_and_head, train_in_float32
from dvpo_lib.models.critic import Critic, CriticSettings, build_critic, mean_values, monotone_outputs
from dvpo_lib.models.critic_training import CriticTable, fit_critic
from dvpo_lib.models.policy import token_logits, token_logprobs
from dvpo_lib.models.tokens import Tokens
from dvpo_lib.noise.reward_model import RewardModel


def random_tokens(rows: int = 4, prompt: int = 6, length: int = 10, vocabulary: int = VOCABULARY) -> Tokens:
    """Prompts padded left by 0 to 3 tokens, completions padded right by 0 to 5."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, min(59, vocabulary), (rows, prompt + length), generator=generator)
    attention, mask = torch.ones_like(ids), torch.ones(rows, length, dtype=torch.bool)
    for i in range(rows):
        left, right = i % 4, 5 * (i % 2)
        attention[i, :left] = 0
        if right:
            attention[i, -right:], mask[i, -right:] = 0, False
    return Tokens(ids * attention, attention, mask)


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of three tokens."""
    monkeypatch.setattr(token_chunks, "CHUNK_TOKENS", 3)
    monkeypatch.setattr(token_chunks, "CHUNK_NUMBERS", 1)


@pytest.fixture(params=list(BUILDERS))
def model(request):
    return tiny_model(request.param)


def exact_logprobs(model, tokens, temperature=1.0):
    """(logprobs, entropies) from the model's own float32 logits at once."""
    logp = (token_logits(model, tokens).float() / temperature).log_softmax(-1)
    chosen = tokens.input_ids[:, -tokens.completion_length :, None]
    return logp.gather(-1, chosen).squeeze(-1), -(logp.exp() * logp).sum(-1)


def weighted_sum(logprobs, entropies, mask):
    weights = torch.randn(mask.shape, generator=torch.Generator().manual_seed(1))
    return ((logprobs + 0.3 * entropies) * weights)[mask].sum()


def gradients(model, value):
    model.zero_grad()
    value.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# ---- log-probabilities in chunks ----


@pytest.mark.parametrize("bf16", [False, True])
def test_chunks_of_tokens_equal_the_whole(model, small_chunks, bf16):
    """Values to 1e-6 and gradients to 1e-5 in float32; logits are scaled up, so that caps bend them."""
    tokens, found = random_tokens(), []
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
    for function in (exact_logprobs, lambda *a: token_logprobs(*a, with_entropy=True, learn_entropy=True)):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logprobs, entropies = function(model, tokens, 0.7)
        assert logprobs.dtype == entropies.dtype == torch.float32
        slopes = gradients(model, weighted_sum(logprobs, entropies, tokens.mask))
        found.append((logprobs[tokens.mask].detach(), entropies[tokens.mask].detach(), slopes))
    (p, e, g), (chunked_p, chunked_e, chunked_g) = found
    # bf16 rounds a capped or scaled logit; chunks read it before that
    value, slope = (0.1, 0.05) if bf16 else (1e-6, 1e-5)
    torch.testing.assert_close(chunked_p, p, atol=value * 20, rtol=value)
    torch.testing.assert_close(chunked_e, e, atol=value * 20, rtol=value)
    assert set(g) == set(chunked_g)
    largest = max(x.abs().max().item() for x in g.values())
    for name in g:
        torch.testing.assert_close(chunked_g[name], g[name], atol=slope * largest, rtol=slope)


def test_logits_of_every_architecture_are_read_from_hidden_states(model):
    tokens = random_tokens()
    states, logits_of = hidden_states_and_head(model, tokens.model_inputs())
    want = model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, use_cache=False).logits
    rows = tokens.attention_mask.all(1)  # no padding: positions are the same
    torch.testing.assert_close(logits_of(states)[rows], want[rows], atol=1e-6, rtol=1e-6)


def test_an_unknown_treatment_of_logits_is_read_from_the_models_own(small_chunks):
    class Squared(torch.nn.Module):
        """Logits are squared."""

        def __init__(self, model):
            super().__init__()
            self.model, self.config = model, model.config

        def get_output_embeddings(self):
            return self.model.get_output_embeddings()

        def forward(self, **inputs):
            out = self.model(**inputs)
            out.logits = out.logits**2
            return out

    tokens, model = random_tokens(), Squared(tiny_model("Llama"))
    assert hidden_states_and_head(model, tokens.model_inputs()) is None
    torch.testing.assert_close(token_logprobs(model, tokens)[0], exact_logprobs(model, tokens)[0])


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, torch.Tensor):
                self.numel = max(self.numel, x.untyped_storage().nbytes() // x.element_size())
        return out


def test_no_tensor_holds_all_logits(monkeypatch):
    monkeypatch.setattr(token_chunks, "CHUNK_NUMBERS", 1)
    tokens, model = random_tokens(16, 6, 50), tiny_model("Llama", vocab_size=2000)
    for with_entropy in (False, True):
        with Largest() as seen:
            logprobs, entropies = token_logprobs(model, tokens, with_entropy=with_entropy, learn_entropy=with_entropy)
            (logprobs + entropies if with_entropy else logprobs).sum().backward()
        assert token_chunks.CHUNK_TOKENS * 2000 <= seen.numel < tokens.mask.numel() * 2000 / 10
    assert token_chunks.fits_one_chunk(64, 10**9) and not token_chunks.fits_one_chunk(65, 10**9)


def test_entropies_are_computed_only_if_asked_for():
    tokens, model = random_tokens(), tiny_model("Llama")
    assert token_logprobs(model, tokens)[1] is None
    assert not token_logprobs(model, tokens, with_entropy=True)[1].requires_grad
    assert token_logprobs(model, tokens, with_entropy=True, learn_entropy=True)[1].requires_grad


# ---- critics ----


def settings(**changes) -> CriticSettings:
    return CriticSettings(**dict(heads=2, quantiles=8, batch_size=4, pretrain_epochs=1, learning_rate=1e-2) | changes)


def one_step(critic, cfg):
    """Losses of one step of fitting on four responses."""
    return fit_critic(critic, CriticTable(random_tokens(), torch.tensor([0.0, 1, 1, 0])), None, cfg, seed=0)


@pytest.mark.parametrize("kind", ["quantile", "conservative_q"])
def test_critics_of_every_architecture_predict_and_learn(model, kind):
    """A row alone, without padding, has the values that it has in the batch."""
    cfg, tokens = settings(kind=kind), random_tokens()
    critic = build_critic(model, cfg, seed=0).eval()
    values = mean_values(monotone_outputs(critic, tokens))
    for i in range(len(tokens)):
        alone = mean_values(monotone_outputs(critic, tokens.rows(torch.tensor([i]))))[0]
        torch.testing.assert_close(values[i, tokens.mask[i]], alone[tokens.mask[i][: len(alone)]], atol=1e-5, rtol=1e-5)
    before = copy.deepcopy(critic.state_dict())
    assert len(one_step(critic, cfg)) == 1
    moved = {name for name, x in critic.state_dict().items() if not torch.equal(before[name], x)}
    assert any(name.startswith("backbone") for name in moved) and any("backbone" not in name for name in moved)


def test_reward_models_of_every_architecture(model):
    tokens = random_tokens()
    logits = RewardModel(model)(tokens)
    assert logits.shape == (4,) and logits.isfinite().all()


def test_a_backbone_is_cut_to_its_first_layers(model):
    """One layer's hidden states differ from two's; the policy keeps its own."""
    tokens, before = random_tokens(), sum(p.numel() for p in model.parameters())
    whole, cut = (Critic(model, seed=0, layers=layers).eval() for layers in (None, 1))
    assert cut(tokens).isfinite().all() and (cut(tokens) - whole(tokens)).abs().max() > 1e-7
    assert sum(p.numel() for p in cut.parameters()) < sum(p.numel() for p in whole.parameters())
    same = Critic(model, seed=0, layers=2).eval()
    assert torch.equal(same(tokens), whole(tokens))
    assert sum(p.numel() for p in model.parameters()) == before
    assert model(input_ids=tokens.input_ids).logits.isfinite().all()
    with pytest.raises(ValueError, match="the backbone has 2 layers, not 3"):
        Critic(model, layers=3)


def test_a_critic_on_the_policys_hidden_states_owns_its_head_alone(model):
    cfg, tokens = settings(backbone="policy"), random_tokens()
    critic, own = (build_critic(model, c, seed=0) for c in (cfg, settings()))
    assert torch.equal(critic(tokens), own.eval()(tokens))
    assert set(critic.state_dict()) == {"head.weight", "head.bias"}
    model.train()
    before = copy.deepcopy(model.state_dict())
    one_step(critic, cfg)
    assert all(torch.equal(before[name], x) for name, x in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters()) and model.training
    assert copy.deepcopy(critic).policy() is model


def test_backbones_of_gpt2_learn_alike_twice_with_dropout_and_checkpointing():
    """Dropout of 0.1 in the configuration; whatever mode the model came in."""
    model, found = tiny_model("GPT-2"), []
    for mode, checkpointing in ((True, False), (True, False), (False, False), (True, True), (False, True)):
        critic = build_critic(model.train(mode), settings(), seed=0)
        if checkpointing:
            critic.backbone.activation_checkpointing_enable()
        found.append(fit_critic(critic, CriticTable(random_tokens(16), torch.arange(16.0)), None, settings(), seed=0))
    assert len(found[0]) == 4 and all(x == found[0] for x in found[1:3])
    for x in found[3:]:
        assert [r["loss"] for r in x] == pytest.approx([r["loss"] for r in found[0]], rel=1e-5)


def test_checkpointing_acts_in_fitting():
    critic, calls = build_critic(tiny_model("Llama"), settings(), seed=0), []
    critic.backbone.activation_checkpointing_enable()
    for layer in critic.backbone.layers:
        layer.mlp.register_forward_pre_hook(lambda *a: calls.append(torch.is_grad_enabled()))
    one_step(critic, settings())
    assert calls.count(True) == 4  # of two layers, each again in the backward pass


# ---- precision ----


@pytest.mark.parametrize("kind", ["scalar", "quantile", "conservative_q", "robust_q"])
def test_values_leave_critics_in_float32(kind):
    model = tiny_model("Qwen3").to(torch.bfloat16)
    for critic in (
        build_critic(model, settings(kind=kind), seed=0),
        build_critic(model.float(), settings(kind=kind), 0),
    ):
        with torch.autocast("cpu", torch.bfloat16):
            out = critic(random_tokens())
        tensors = [out] if isinstance(out, torch.Tensor) else [x for x in vars(out).values() if x is not None]
        assert {x.dtype for x in tensors} == {torch.float32}


@pytest.mark.parametrize("kind", ["quantile", "robust_q"])
def test_fitting_makes_the_master_weights_float32(kind):
    critic = build_critic(tiny_model("Qwen3").to(torch.bfloat16), settings(kind=kind), seed=0)
    one_step(critic, settings(kind=kind, learning_rate=1e-6))
    assert {p.dtype for p in critic.parameters()} == {torch.float32}


def test_q_values_in_chunks_equal_the_whole(small_chunks, monkeypatch):
    critic, tokens, found = build_critic(tiny_model("Qwen3"), settings(kind="robust_q"), seed=0), random_tokens(), []
    for size in (3, 10**6):
        monkeypatch.setattr(token_chunks, "CHUNK_TOKENS", size)
        out = critic(tokens)
        values = [out.q, out.best, out.v, out.spread, out.outcome]
        found.append((values, gradients(critic, sum(x.square().sum() for x in values))))
    for a, b in zip(found[0][0], found[1][0], strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)
    for name in found[0][1]:
        torch.testing.assert_close(found[0][1][name], found[1][1][name], atol=1e-5, rtol=1e-5)


# ---- heads ----


def test_light_heads_are_independent_networks():
    """Each head's output depends on its own weights alone, and a start from returns is theirs."""
    critic, tokens = build_critic(tiny_model("Llama"), settings(head="mlp", head_width=5), 0).eval(), random_tokens()
    z = critic(tokens)
    assert z.shape == (4, 10, 2, 8)
    assert critic.head.hidden.weight.shape == (10, 16) and critic.head.weight.shape == (2, 5, 8)
    with torch.no_grad():
        critic.head.hidden.weight[5:] += 1
    changed = critic(tokens)
    assert torch.equal(changed[..., 0, :], z[..., 0, :]) and (changed[..., 1, :] - z[..., 1, :]).abs().max() > 1e-3
    with torch.no_grad():
        critic.head.weight.zero_()
    critic.start_from(torch.arange(8.0))
    torch.testing.assert_close(critic(tokens), torch.arange(8.0).expand(4, 10, 2, 8))


def test_light_heads_learn_what_linear_heads_cannot():
    """The exclusive or of two signs of the hidden state, which no linear function of it predicts."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(256, 16, generator=generator)
    target = (states[:, 0] * states[:, 1]).sign()
    left = {}
    for head in ("linear", "mlp"):
        module = Critic(tiny_model("Llama"), head=head, head_width=32).head
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
        for _ in range(200):
            loss = (module(states)[:, 0] - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        left[head] = loss.item()
    assert left["linear"] > 0.8 and left["mlp"] < 0.2


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(backbone="policy", layers=1), "layers: only a backbone of its own can be cut"),
        (dict(kind="robust_q", backbone="policy"), "backbone: 'policy' is not possible for critics of kind robust_q"),
        (dict(kind="conservative_q", head="mlp"), "head: 'mlp' is not possible"),
        (dict(layers=0), "layers"),
    ],
)
def test_parts_that_do_not_fit_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        CriticSettings(**wrong)


# ---- adapters ----


def test_adapters_of_the_policy_are_merged_into_the_critics_backbone():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    policy, tokens = peft.get_peft_model(tiny_model("Llama"), config).eval(), random_tokens()
    own, read = (Critic(policy, 2, 8, seed=0, backbone=kind).eval() for kind in ("own", "policy"))
    assert not any("lora" in name for name in own.state_dict())
    torch.testing.assert_close(own(tokens), read(tokens), atol=1e-5, rtol=1e-5)
    with policy.disable_adapter():
        assert (read(tokens) - own(tokens)).abs().max() > 1e-4
    torch.testing.assert_close(
        token_logprobs(policy, tokens)[0], exact_logprobs(policy, tokens)[0], atol=1e-6, rtol=1e-6
    )


def test_a_critic_learns_by_adapters_of_its_own():
    peft = pytest.importorskip("peft")
    critic, cfg = build_critic(tiny_model("Llama").to(torch.bfloat16), settings(), seed=0), settings()
    critic.backbone = peft.get_peft_model(critic.backbone, peft.LoraConfig(r=4, target_modules=["q_proj"]))
    train_in_float32(critic)
    before = copy.deepcopy(critic.state_dict())
    one_step(critic, cfg)
    moved = {name for name, x in critic.state_dict().items() if not torch.equal(before[name], x)}
    assert moved and all("lora" in name or name.startswith("head") for name in moved)


def test_a_multimodal_backbone_has_no_vision_tower():
    assert not any("vision" in name for name, _ in copy_backbone(tiny_model("Gemma 3, multimodal")).named_parameters())
