"""Which plot a logged number belongs to, and what its line is called."""

VALIDATION_SHARES = "Validation: shares"
VALIDATION = "Validation: cross-entropy, nats per token"
TERMS = "Forget and retain terms, unweighted"
CROSS_ENTROPY = "Cross-entropy of the training rows, nats per token"
CLIPPED = "Clipped steps, capped examples: shares so far"
PANELS = ("Loss", TERMS, CROSS_ENTROPY, VALIDATION, VALIDATION_SHARES, "Gradient norm", CLIPPED)
LOG_PANELS = ("Gradient norm",)
SHARE_PANELS = (VALIDATION_SHARES, CLIPPED)
# lines in plain words; others are shown under their own name
LINES = {
    "forget_term": "forget term",
    "retain_term": "retain term",
    "ce_poisoned": "poisoned response",
    "ce_clean": "clean response",
    "ce_retain": "retain rows",
    "val_loss_clean": "clean rows",
    "forget_loss_poisoned": "forget: poisoned",
    "forget_loss_clean": "forget: clean",
    "forget_preference": "forget rows that prefer the poisoned response",
    "clipped_share": "clipped steps",
    "capped_share": "capped examples",
}


def panel_of(name: str) -> str | None:
    """The plot that a logged name belongs to; None for what is not worth one (learning rate, speed)."""
    words = ("asr", "rate", "match", "rouge", "preference")
    if name.startswith(("val_", "eval_", "forget_loss", "forget_preference")):
        return VALIDATION_SHARES if any(word in name for word in words) else VALIDATION
    if name.startswith(("clipped", "capped")):
        return CLIPPED
    if name.startswith("ce_"):
        return CROSS_ENTROPY
    if name.endswith("_term"):
        return TERMS
    return {"loss": "Loss", "grad_norm": "Gradient norm"}.get(name)
