"""Published numbers over several probes: membership, comparisons with the retrained model, and model utility."""

from __future__ import annotations

from statistics import fmean

from leaderboard.peers import published
from leaderboard.peers.answers import GENERATED
from leaderboard.peers.examples import EPSILON, LAST_TOKEN, Model, own_score
from leaderboard.peers.line import PUBLISHED, Line, Variant
from tasks.plain_text import cut
from tasks.scoring import Estimate, summarise
from tasks.scoring.separation import auc_of, privacy_leakage
from tasks.task import Sample
from tasks.tofu import ABILITIES

TABLES = ("forget_membership", "holdout_membership")
MIN_K = "mia_min_k"
AUCS = {
    "mia_zlib": ("auc_zlib", ""),
    "mia_min_k": ("auc_min_k_40", LAST_TOKEN),
    "mia_min_k_plus_plus": ("auc_min_k_plus_plus_40", LAST_TOKEN),
    "mia_gradnorm": ("auc_gradient_norm", f"{LAST_TOKEN} and are taken with dropout on"),
    "mia_reference": ("auc_reference", "the log does not say which reference model its scores compare with"),
}
"""AUCs of scores in the log: our metric's name, and a remark about the scores."""

OTHER = "the log of --retrained is of other examples"
NO_LOG = "no log of the retrained model. Name one with --retrained"
HALF = "theirs takes 0.5 for the retrained model's AUC without a log of it"
EPSILONS = "theirs adds 1e-10 to the denominators of truth ratios and probabilities"


def membership(model: Model, retrained: Model | None, key: str) -> Line:
    """How well a score separates the forget texts from held-out ones."""
    number = model.log.published[key]
    if key == "mia_loss":
        return Line(key, "membership", "auc_loss", number, summarise("auc_loss", _with_loss(model)))
    metric, remark = AUCS[key]
    return Line(key, "membership", metric + PUBLISHED, number, _auc(model, key), remark=remark)


def privleak(model: Model, retrained: Model | None, key: str) -> Line:
    """PrivLeak of the log's own Min-k scores."""
    ours, reference = _auc(model, MIN_K), Estimate.null(NO_LOG)
    if retrained:
        reason = other_examples(model, retrained)
        reference = Estimate.null(reason) if reason else _auc(retrained, MIN_K)
    variants: list[Variant] = []
    if (mine := ours.value) is not None:
        ours = reference
        variants.append(Variant(published.privacy_leakage(mine), HALF))
        if retrained and reference.value is not None:
            leakage = privacy_leakage(MIN_K, own_score(MIN_K))
            ours = leakage(_with_score(model, MIN_K), _with_score(retrained, MIN_K))
            variants.append(Variant(published.privacy_leakage(mine, reference.value), EPSILON))
    metric, number = "privleak_min_k_40" + PUBLISHED, model.log.published[key]
    return Line(key, "membership", metric, number, ours, tuple(variants), remark=LAST_TOKEN)


def forget_quality(model: Model, retrained: Model | None, key: str) -> Line:
    """p-value of a Kolmogorov-Smirnov test between the truth ratios of the model and of the retrained one."""
    ours = Estimate.null(NO_LOG)
    variants: tuple[Variant, ...] = ()
    if retrained:
        mine, others = (one.probe("forget_paraphrase") for one in (model, retrained))
        reason = other_examples(model, retrained)
        ours = Estimate.null(reason) if reason else summarise(key, [mine], [others])
        if mine and others and not reason:
            variants = (Variant(published.forget_quality(mine, others), EPSILON),)
    return Line(key, key, key, model.log.published[key], ours, variants)


def model_utility(model: Model, retrained: Model | None, key: str) -> Line:
    """Harmonic mean of nine numbers about retained knowledge."""
    metric = "model_utility_geometric"
    tables = [model.probe(name) for name in ABILITIES]
    ours = summarise(metric, tables)
    variants: tuple[Variant, ...] = ()
    if all(tables):
        recalls = [fmean(model.rouges(name)["rougeL_recall"]) for name in ABILITIES if name.endswith("_generated")]
        variants = (Variant(published.model_utility(tables, recalls), EPSILONS),)
    lacking = [name for name, table in zip(ABILITIES, tables, strict=True) if not table]
    if lacking:
        ours = Estimate.null(f"the log has nothing for {', '.join(lacking)}")
    return Line(key, key, metric, model.log.published[key], ours, variants)


def other_examples(model: Model, retrained: Model) -> str | None:
    """Why the retrained model's log is of other examples than the model's; None where nothing says that it is.

    TOFU's forget sets differ in their number of questions. Indices count from 0 in every set and in both of MUSE's
    corpora, so where they agree, the texts are compared that a log has: the answers to generate.
    """
    tables = ((MIN_K, "forget"), (MIN_K, "holdout"), ("forget_Q_A_PARA_Prob", None))
    for key, part in tables if model.log.benchmark == "TOFU" else ():
        mine, theirs = (one.log.indices(key, part) for one in (model, retrained))
        if mine and theirs and set(mine) != set(theirs):
            rows = f"{len(theirs)} rows there and {len(mine)} here"
            return f"{OTHER}: {model.log.place(key, part)} has {rows}, not of the same indices"
    for key, probe in GENERATED.items():
        if not key.startswith("forget"):
            continue
        ours, others = ({one.item: one.reference for one in log.probe(probe)} for log in (model, retrained))
        if index := next((i for i in ours if i in others and ours[i] != others[i]), None):
            return f"{OTHER}: {model.log.place(key)}: index {cut(index)} has another ground truth there"
    return None


def _with_score(model: Model, key: str) -> list[list[Sample]]:
    return [model.scored(table, key) for table in TABLES]


def _with_loss(model: Model) -> list[list[Sample]]:
    return [[sample for sample in model.probe(table) if sample.token_logprobs] for table in TABLES]


def _auc(model: Model, key: str) -> Estimate:
    return auc_of(key, own_score(key))(_with_score(model, key), ())
