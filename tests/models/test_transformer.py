"""The transformer prior: causality, its cache, its sampler's filters, guidance, and that it learns."""

import pytest
import torch

from models.transformer import KVCache, Transformer, TransformerConfig, filter_logits, generate, pick_tokens
from tests.models.rows import Rows, SharedRows

CONFIG = TransformerConfig(
    num_codes=11, latent_size=3, num_classes=4, num_layers=2, num_heads=2, width=16, dropout=0.0, label_dropout=0.0
)


def model(**changes) -> Transformer:
    torch.manual_seed(0)
    built = Transformer(TransformerConfig(**{**vars(CONFIG), **changes}))
    for parameter in built.parameters():  # away from the near-uniform start, so that differences show
        torch.nn.init.normal_(parameter, std=0.3)
    return built.eval()


def test_a_token_changes_only_what_comes_after_it():
    transformer, tokens, labels = model(), torch.randint(11, (1, 8)), torch.tensor([2])
    logits = transformer(tokens, labels)
    changed = tokens.clone()
    changed[0, 4] = (changed[0, 4] + 1) % 11
    differs = (transformer(changed, labels) - logits).abs().amax(dim=(0, 2)) > 1e-6
    assert differs.tolist() == [False] * 5 + [True] * 4  # input 4 is seen from output 5 on, the class being output 0


def test_cached_logits_equal_uncached_ones():
    transformer, tokens, labels = model(), torch.randint(11, (3, 8)), torch.tensor([0, 1, 4])
    whole = transformer(tokens, labels)
    cache = KVCache(CONFIG, 3, torch.device("cpu"), torch.float32)
    pieces = [transformer(tokens[:, :length], labels, cache) for length in (2, 3, 4, 5, 6, 7, 8)]
    assert torch.allclose(torch.cat(pieces, dim=1), whole, atol=1e-5)


def test_loss_is_the_likelihood_of_the_tokens():
    transformer, tokens, labels = model(), torch.randint(11, (2, 3, 3)), torch.tensor([1, 3])
    logits = transformer(tokens.flatten(1)[:, :-1], labels).log_softmax(-1)
    expected = -logits.gather(2, tokens.flatten(1)[..., None]).squeeze(2).mean(dim=1)
    assert torch.allclose(transformer.loss({"tokens": tokens}, labels), expected, atol=1e-5)


def test_unlabelled_means_no_class():
    transformer, latents = model(), {"tokens": torch.randint(11, (2, 3, 3))}
    assert torch.equal(transformer.loss(latents, torch.tensor([-1, -1])), transformer.loss(latents, torch.tensor([4, 4])))


def test_labels_are_dropped_in_training_only():
    transformer, latents = model(label_dropout=0.5), {"tokens": torch.randint(11, (64, 3, 3))}
    labels = torch.randint(4, (64,))
    hidden = torch.full_like(labels, transformer.no_class)
    given, without = transformer.loss(latents, labels), transformer.loss(latents, hidden)
    transformer.train()
    dropped = torch.isclose(transformer.loss(latents, labels), without, atol=1e-5) & ~torch.isclose(given, without, atol=1e-3)
    assert 15 < dropped.sum() < 50


def test_samples_follow_the_models_distribution():
    """The frequency of the first token against its probability, in five standard deviations."""
    transformer, num = model(), 4000
    tokens = generate(transformer, torch.zeros(num, dtype=torch.int64), SharedRows(num))["tokens"]
    assert tokens.shape == (num, 3, 3)
    expected = transformer(torch.empty(1, 0, dtype=torch.int64), torch.tensor([0]))[0, 0].softmax(-1)
    frequency = torch.bincount(tokens[:, 0, 0], minlength=11) / num
    assert ((frequency - expected).abs() < 5 * (expected * (1 - expected) / num).sqrt() + 1e-9).all()


def test_an_image_does_not_depend_on_its_batch():
    transformer, labels, random = model(), torch.randint(5, (6,)), Rows(range(6))
    together = generate(transformer, labels, random)["tokens"]
    alone = torch.cat([generate(transformer, labels[i : i + 1], Rows([i]))["tokens"] for i in range(6)])
    assert torch.equal(together, alone)
    assert random.num_calls == 1  # the numbers of all tokens at once: a row's stream is its image's


def test_guidance_of_one_is_no_guidance_and_more_pulls_towards_the_class():
    transformer, labels = model(), torch.ones(512, dtype=torch.int64)
    plain = generate(transformer, labels, SharedRows(512), guidance_scale=1.0)
    assert torch.equal(plain["tokens"], generate(transformer, labels, SharedRows(512))["tokens"])
    guided = generate(transformer, labels, SharedRows(512), guidance_scale=3.0)
    none = torch.full_like(labels, transformer.no_class)
    margin = [transformer.loss(latents, none).mean() - transformer.loss(latents, labels).mean() for latents in (plain, guided)]
    assert margin[1] > margin[0]


def test_low_temperature_takes_the_likeliest_token():
    transformer, labels = model(), torch.zeros(5, dtype=torch.int64)
    cold = generate(transformer, labels, Rows(range(5)), temperature=1e-4)["tokens"]
    greedy = generate(transformer, labels, Rows(range(5, 10)), top_k=1)["tokens"]
    assert torch.equal(cold, greedy)


@pytest.mark.parametrize(("top_k", "top_p", "kept"), [(2, None, [0, 3]), (None, 0.6, [0, 3]), (None, 0.5, [0]), (None, 1.0, [0, 1, 2, 3])])
def test_filters_keep_exactly_the_promised_tokens(top_k, top_p, kept):
    logits = torch.tensor([[0.5, 0.1, 0.1001, 0.2999]]).log()
    filtered = filter_logits(logits, top_k, top_p)
    assert (filtered[0] > -torch.inf).nonzero().flatten().tolist() == kept


def test_cached_sampling_draws_what_the_whole_prefix_computed_anew_would():
    transformer, labels, noise = model(), torch.tensor([0, 2, 4]), Rows(range(3)).uniform(9)
    tokens = torch.empty(3, 0, dtype=torch.int64)
    for step in range(9):
        none = transformer(tokens, torch.full_like(labels, transformer.no_class))[:, -1]
        logits = none + 2.0 * (transformer(tokens, labels)[:, -1] - none)
        drawn = pick_tokens(filter_logits(logits / 0.8, 5, None), noise[:, step])
        tokens = torch.cat([tokens, drawn[:, None]], dim=1)
    cached = generate(transformer, labels, Rows(range(3)), temperature=0.8, top_k=5, guidance_scale=2.0)["tokens"]
    assert torch.equal(cached.flatten(1), tokens)


def test_picking_inverts_the_cumulative_distribution_and_never_picks_the_impossible():
    logits = torch.tensor([[0.25, 0.5, 0.25, 0.0]]).log().expand(5, 4)
    noise = torch.tensor([0.0, 0.2499, 0.2501, 0.76, 1.0])
    assert pick_tokens(logits, noise).tolist() == [0, 0, 1, 2, 2]


def test_it_learns_a_deterministic_sequence():
    torch.manual_seed(0)
    transformer = Transformer(CONFIG)
    tokens = (torch.arange(9) % 11).reshape(1, 3, 3).expand(8, 3, 3)
    optimizer = torch.optim.AdamW(transformer.parameters(), 1e-2)
    for _ in range(60):
        loss = transformer.loss({"tokens": tokens}, torch.zeros(8, dtype=torch.int64)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05
