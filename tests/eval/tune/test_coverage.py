"""How often a certificate is wrong, over many draws of prompts.

`recorded/` has the losses of prompts (the tasks of `tokenprune bench`) under twelve settings, for each embedded model
(`record_losses.py`). Prompts are drawn from them with replacement, so that the true risk of each setting is its mean
there.
"""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from tokenprune.eval.tune.certify import certify
from tokenprune.eval.tune.metrics import METRICS
from tokenprune.eval.tune.ranking import Chain
from tokenprune.eval.tune.sequence import Goal

from ...support.products import FULL

RECORDED = {path.stem: np.load(path) for path in sorted(Path(__file__).with_name("recorded").glob("*.npz"))}
DRAWS, PROMPTS, CONFIDENCE, TOLERANCES = 200, 600, 0.9, (0.01, 0.02, 0.05)
#: Models and metrics. The losses of `accuracy` are those of `answer` on the LLaVA, which is right about everything.
TRIED = [(model, name) for model in RECORDED for name in METRICS if FULL or (model, name) != ("llava", "accuracy")]
#: Of 200 draws, what a certificate that is wrong with probability 0.1 exceeds once in a thousand times.
MOST_WRONG = int(stats.binom.ppf(0.999, DRAWS, 1 - CONFIDENCE))


def mean_is_enough(n, total, tolerance):
    """A wrong p-value: none is left if the mean of the losses is within the tolerance."""
    return 0.0 if total <= n * tolerance else 1.0


class Drawn:
    """Losses of prompts that were drawn: six groups that rank, and six that test."""

    def __init__(self, losses, held, generator):
        self.held = held
        self.losses = losses[:, generator.integers(losses.shape[1], size=PROMPTS)]
        self.ranking = self.testing = (PROMPTS // 12,) * 6

    def ranked(self, setting, groups, exact):
        return self.losses[setting, : groups * self.ranking[0]]

    def tested(self, setting, group):
        start = PROMPTS // 2 + group * self.testing[0]
        return self.losses[setting, start : start + self.testing[0]]

    def cost(self, setting):
        return self.held[setting]


def chains_of(model):
    """The recorded settings, by index, a chain for each policy."""
    settings = RECORDED[model]["settings"].tolist()
    policies = dict.fromkeys(setting.partition("|")[0] for setting in settings)
    return [
        Chain(policy, tuple(i for i, setting in enumerate(settings) if setting.partition("|")[0] == policy))
        for policy in policies
    ]


def chosen(model, metric, tolerance, p_value=None):
    """The true risk of the setting that is chosen, for each draw; that of no setting at all is 0."""
    recorded, chains = RECORDED[model], chains_of(model)
    losses, held = np.minimum(recorded[metric].astype(float), 1.0), recorded["tokens_held"]
    goal = Goal(tolerance, CONFIDENCE, METRICS[metric].binary, p_value)
    risks = []
    for seed in range(DRAWS):
        source = Drawn(losses, held, np.random.default_rng(seed))
        certified = [each.setting for each in certify(source, chains, goal).certified]
        risks.append(losses[min(certified, key=source.cost)].mean() if certified else 0.0)
    return np.array(risks)


@pytest.mark.parametrize(("model", "metric"), TRIED)
@pytest.mark.parametrize("tolerance", TOLERANCES)
def test_a_certificate_is_wrong_no_more_often_than_it_says(model, metric, tolerance):
    assert (chosen(model, metric, tolerance) > tolerance).sum() <= MOST_WRONG


@pytest.mark.parametrize(("model", "metric"), TRIED)
def test_a_certificate_with_a_wrong_p_value_is_wrong_more_often(model, metric):
    assert any((chosen(model, metric, each, mean_is_enough) > each).sum() > MOST_WRONG for each in TOLERANCES[::-1])


@pytest.mark.parametrize("model", RECORDED)
def test_something_is_certified_where_there_is_room(model):
    """A certificate that is never given is never wrong."""
    assert (chosen(model, "answer", 0.05) > 0).mean() > 0.9
