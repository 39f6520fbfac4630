"""How often a certificate is wrong, over many draws of prompts.

`recorded_losses.npz` has the losses of 544 prompts (the tasks of `tokenprune bench`) under twelve settings of the
embedded LLaVA. Prompts are drawn from them with replacement, so that the true risk of each setting is its mean there.
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

RECORDED = np.load(Path(__file__).with_name("recorded_losses.npz"))
SETTINGS = RECORDED["settings"].tolist()
POLICIES = list(dict.fromkeys(setting.partition("|")[0] for setting in SETTINGS))
CHAINS = [
    Chain(policy, tuple(i for i, setting in enumerate(SETTINGS) if setting.startswith(policy))) for policy in POLICIES
]
DRAWS, PROMPTS, CONFIDENCE, TOLERANCES = 200, 600, 0.9, (0.01, 0.02, 0.05)
#: The losses of `accuracy` are those of `answer` here, where the full model is right about everything.
TRIED = [name for name in METRICS if FULL or name != "accuracy"]
#: Of 200 draws, what a certificate that is wrong with probability 0.1 exceeds once in a thousand times.
MOST_WRONG = int(stats.binom.ppf(0.999, DRAWS, 1 - CONFIDENCE))


def mean_is_enough(n, total, tolerance):
    """A wrong p-value: none is left if the mean of the losses is within the tolerance."""
    return 0.0 if total <= n * tolerance else 1.0


class Drawn:
    """Losses of prompts that were drawn: six groups that rank, and six that test."""

    def __init__(self, losses, generator):
        self.losses = losses[:, generator.integers(losses.shape[1], size=PROMPTS)]
        self.ranking = self.testing = (PROMPTS // 12,) * 6

    def ranked(self, setting, groups, exact):
        return self.losses[setting, : groups * self.ranking[0]]

    def tested(self, setting, group):
        start = PROMPTS // 2 + group * self.testing[0]
        return self.losses[setting, start : start + self.testing[0]]

    def cost(self, setting):
        return RECORDED["tokens_held"][setting]


def chosen(metric, tolerance, p_value=None):
    """The true risk of the setting that is chosen, for each draw; that of no setting at all is 0."""
    losses = np.minimum(RECORDED[metric].astype(float), 1.0)
    goal = Goal(tolerance, CONFIDENCE, METRICS[metric].binary, p_value)
    risks = []
    for seed in range(DRAWS):
        source = Drawn(losses, np.random.default_rng(seed))
        certified = [each.setting for each in certify(source, CHAINS, goal).certified]
        risks.append(losses[min(certified, key=source.cost)].mean() if certified else 0.0)
    return np.array(risks)


@pytest.mark.parametrize("metric", TRIED)
@pytest.mark.parametrize("tolerance", TOLERANCES)
def test_a_certificate_is_wrong_no_more_often_than_it_says(metric, tolerance):
    assert (chosen(metric, tolerance) > tolerance).sum() <= MOST_WRONG


@pytest.mark.parametrize("metric", TRIED)
def test_a_certificate_with_a_wrong_p_value_is_wrong_more_often(metric):
    assert max((chosen(metric, each, mean_is_enough) > each).sum() for each in TOLERANCES) > MOST_WRONG


def test_something_is_certified_where_there_is_room():
    """A certificate that is never given is never wrong."""
    assert (chosen("answer", 0.05) > 0).mean() > 0.9
