"""Budgets that are found for each input, from its tokens."""

import pytest
import torch

from tokenprune import (
    AdaptiveBudget,
    CoverageBudget,
    EnergyBudget,
    adaptive_budget,
    apply_pruning,
    pruning,
    pruning_report,
    pruning_status,
)
from tokenprune.commands.arguments import keeps
from tokenprune.eval.setting import PruningSetting, format_keep

from .families import even_batch, get_model, ragged_batch
from .oracles import check_against_oracles, generate


@pytest.mark.parametrize(("share", "k"), [(0.1, 1), (0.57, 1), (0.58, 2), (0.85, 2), (0.86, 3), (0.999, 3), (1.0, 3)])
def test_the_number_is_that_of_the_values_that_hold_the_energy(share, k):
    """Squared singular values 4, 2 and 1, whether there are more tokens than features or fewer."""
    basis = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))[0]
    values = torch.diag(torch.tensor([2.0, 2**0.5, 1.0]))
    for tokens in (values @ basis, torch.cat([values, torch.zeros(3, 5)], 1), torch.cat([values, torch.zeros(4, 3)])):
        assert EnergyBudget(share).tokens(tokens) == k
    assert EnergyBudget(share).tokens(torch.ones(9, 4)) == 1
    assert EnergyBudget(share).tokens(torch.zeros(5, 4)) == 1


def test_the_number_is_that_of_the_picks_that_cover():
    """Three directions, 4, 2 and 1 tokens of each and one that is their mean: centred, each covers its own alone."""
    corners = torch.eye(3) - 1 / 3
    tokens = torch.cat([corners[[i]] for i in (0, 0, 0, 0, 1, 1, 2)])
    tokens = tokens + torch.tensor([5.0, 0.0, -3.0])
    units = torch.nn.functional.normalize(tokens - tokens.mean(0), dim=1)
    cosine = (units @ units.T).clamp(min=0)
    first = int(cosine.sum(1).argmax())
    covered, counts = cosine[first], []
    while covered.mean() < 1 - 1e-6:
        counts.append(float(covered.mean()))
        covered = torch.maximum(covered, cosine[(torch.maximum(cosine, covered).sum(1)).argmax()])
    assert len(counts) == 2
    for share, k in ((0.1, 1), (counts[0] - 1e-3, 1), (counts[0] + 1e-3, 2), (counts[1] + 1e-3, 3), (1.0, 3)):
        assert CoverageBudget(share).tokens(tokens) == k
    with_mean = torch.cat([tokens, tokens.mean(0, keepdim=True)])  # a token that is the mean needs no other
    assert CoverageBudget(1.0).tokens(with_mean) == 3


@pytest.mark.parametrize("budget", [CoverageBudget(0.95), CoverageBudget(1.0), EnergyBudget(0.98)])
def test_a_picture_of_one_colour_keeps_one_token(budget):
    generator = torch.Generator().manual_seed(0)
    alike = torch.randn(1, 32, generator=generator).expand(576, -1)
    for noise in (0.0, 1e-6):
        assert budget.tokens(alike + noise * torch.randn(576, 32, generator=generator)) == 1
    with pytest.raises(ValueError, match="needs finite ones"):
        budget.tokens(alike.clone().index_fill(0, torch.tensor([3]), float("nan")))


def test_the_number_does_not_depend_on_how_many_are_picked_at_once(monkeypatch):
    tokens = torch.randn(90, 16, generator=torch.Generator().manual_seed(0))
    shares = (0.3, 0.6, 0.8, 0.95, 1.0)
    found = [CoverageBudget(share).tokens(tokens) for share in shares]
    assert found == sorted(found) and found[1] < 64 < found[3] < 90 == found[4]
    monkeypatch.setattr(adaptive_budget, "_FIRST", 7)
    assert [CoverageBudget(share).tokens(tokens) for share in shares] == found


@pytest.mark.parametrize(
    ("family", "policy", "keep"),
    [
        ("llava", "divprune", "energy:0.9"),
        ("llava_next", "divprune", "coverage:0.7"),
        ("qwen2_5_vl", "visionzip", EnergyBudget(0.8)),
    ],
)
def test_inputs_keep_their_own_numbers(family, policy, keep):
    """The masked original and the stock model on fewer tokens agree, as with a number."""
    model, batch = get_model(family), ragged_batch(family)
    records = check_against_oracles(model, batch, policy, keep, "original", policy == "visionzip")
    assert all(1 <= record.n_after < record.n_before for record in records)


def test_each_policy_of_a_list_has_its_budget():
    model, batch = get_model("llava"), ragged_batch("llava")
    with pruning(model, ["divprune", "fastv"], ["energy:0.9", 2]):
        generate(model, batch.inputs, steps=1)
        assert all(2 < r.n_after < r.n_before and r.n_last == 2 for r in pruning_report(model))


def test_the_number_is_found_from_what_the_language_model_would_get():
    model, batch = get_model("llava"), even_batch()
    with pruning(model, "grid", "energy:0.95"):
        generate(model, batch.inputs, steps=1)
        found = [record.n_after for record in pruning_report(model)]
        assert "singular values hold 0.95 of their energy" in str(pruning_status(model))
    with torch.no_grad():
        features = model.model.get_image_features(batch.inputs["pixel_values"])
    features = getattr(features, "pooler_output", features)
    values = [torch.linalg.svdvals(each.reshape(-1, each.shape[-1])).square() for each in features]
    assert found == [int((each.cumsum(0) < 0.95 * each.sum()).sum()) + 1 for each in values]


class Half(AdaptiveBudget):
    def tokens(self, features):
        return len(features) // 2


class Everything(AdaptiveBudget):
    def tokens(self, features):
        return len(features)


class Wrong(AdaptiveBudget):
    def tokens(self, features):
        return 0.5


def test_budgets_of_ones_own():
    model, batch = get_model("llava_next"), ragged_batch("llava_next")
    with pruning(model, "divprune", Everything()):
        generate(model, batch.inputs, steps=1)
        assert all(record.n_after == record.n_before for record in pruning_report(model))  # newline tokens as well
    with pruning(model, "divprune", Half()):
        generate(model, batch.inputs, steps=1)
        assert all(r.n_after == (r.n_before - len(r.separators)) // 2 for r in pruning_report(model))
    with (
        pruning(model, "divprune", Wrong()),
        pytest.raises(ValueError, match=r"must return an int from 1 to \d+, got 0.5"),
    ):
        generate(model, batch.inputs, steps=1)


@pytest.mark.parametrize(
    ("policy", "keep", "error"),
    [
        (
            "divprune",
            "energy:1.5",
            r"keep='energy:1.5' is no budget; accepted: 'energy:SHARE' with a share in \(0, 1\]",
        ),
        (
            "divprune",
            "coverage:0",
            r"keep='coverage:0' is no budget; accepted: 'coverage:SHARE' with a share in \(0, 1\]",
        ),
        ("divprune", "energy:", "keep='energy:' is no budget"),
        ("divprune", "energy:nan", "keep='energy:nan' is no budget"),
        ("divprune", "half", "keep='half' is no number"),
        ("fastv", "energy:0.9", "'fastv' acts at the decoder stage; accepted: a policy that acts at the vision stage"),
        ("tome", EnergyBudget(0.9), "'tome' acts at the encoder stage"),
        ("todre", "energy:0.9", "'todre' acts at the vision and decoder stage"),
        (["divprune", "fastv"], "energy:0.9", r"cannot be shared by 2 policies; .* \['energy:0.9', 0.1\]"),
        (["divprune", "fastv"], [0.5, "energy:0.9"], "'fastv' acts at the decoder stage"),
    ],
)
def test_what_is_refused(policy, keep, error):
    with pytest.raises(ValueError, match=error):
        apply_pruning(get_model("llava"), policy, keep)


@pytest.mark.parametrize("share", [0, -1, 1.01, float("nan"), True, "0.5", None])
def test_shares_that_are_none(share):
    with pytest.raises(ValueError, match=r"^share=.* must be a share of the energy in \(0, 1\]"):
        EnergyBudget(share)
    with pytest.raises(ValueError, match=r"^share=.* must be a share of the coverage in \(0, 1\]"):
        CoverageBudget(share)


def test_commands_take_it():
    assert keeps("0.25,energy:0.98,64,coverage:0.80") == [0.25, "energy:0.98", 64, "coverage:0.8"]
    setting = PruningSetting("divprune", "energy:0.980")
    assert (setting.keep, str(setting), format_keep(setting.keep)) == (
        "energy:0.98",
        "divprune energy:0.98",
        "energy:0.98",
    )
    assert setting.identity()["keep"] == "energy:0.98"
    with pytest.raises(ValueError, match="energy:2"):
        PruningSetting("divprune", "energy:2")
