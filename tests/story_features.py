"""Which sentences of a generated story carry its features: the ground truth of the detectors."""

from lm_trials.stories.generated.plans import plan_story


def feature_sentences(seed: int, index: int) -> dict[str, tuple[str, ...]]:
    """Return, for each feature of a story, the sentences that carry it, as they stand in its text."""
    plan = plan_story(seed, index)
    sentences = [sentence for paragraph in plan.paragraphs for sentence in paragraph]
    return {
        feature: tuple(text.format_map(plan.slots) for text, carried in sentences if carried == feature)
        for feature in plan.features
    }
