"""What a file says of its loss, as an objective's table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from zkit_import.losses import DIVERGENCES, Loss, Losses, look_up, refused
from zkit_import.preset_text import toml_value
from zkit_import.said import ConfigError, Said

Table = dict[str, Any]

OF_SFT = {"nll": "sft", "chunked_nll": "sft", "dft": "dft"}
"""SFTTrainer's losses, as of trl 1.16."""


def plain(value: Any) -> Any:
    """16 for 16.0."""
    return int(value) if isinstance(value, float) and value.is_integer() and value < 1e15 else value


def of_tokens(said: Said) -> str:
    """`sft` or `dft`; raises ConfigError for smoothing, which neither has."""
    if said.value("smoothing"):
        raise refused(said, "cross-entropy has no smoothing here", "smoothing")
    if said.value("dft"):
        return "dft"
    names = said.value("loss", ("nll",))
    if any(name not in OF_SFT for name in names):
        said.leave("loss", "is no loss of SFT", matters=False)
        return "sft"
    return OF_SFT[names[0]]


def of_pairs(said: Said, losses: Losses) -> tuple[Table, str]:
    """An objective over pairs, and what is to be said of it; raises ConfigError where none here is the same."""
    terms = list(_terms(said, losses))
    if all(loss.use == "sft" for loss, _ in terms):
        raise refused(said, "it learns the chosen replies alone, which is SFT")
    if said.value("label_smoothing") and not any("label_smoothing" in loss.keys for loss, _ in terms):
        reason = "is ignored there for this loss (before trl 1, `sigmoid` took it for cDPO, as `dpo` does)"
        said.leave("label_smoothing", reason, near="objective.label_smoothing", matters=False)
    parts = [{**_part(said, loss), **({} if weight == 1 else {"weight": plain(weight)})} for loss, weight in terms]
    if len(parts) == 1 and "weight" not in parts[0]:
        return parts[0], terms[0][0].note or said.facts["beta"].note
    table = {"use": "sum", "of": parts}
    if any(loss.by_token for loss, _ in terms) and said.value("batch") != 1:
        raise _averaged(said, table)
    return table, said.facts["beta"].note


def _terms(said: Said, losses: Losses) -> Iterator[tuple[Loss, float]]:
    """Each loss of the sum, with its weight."""
    names = said.value("loss")
    weights = said.value("loss_weights", (1.0,) * len(names))
    if len(weights) != len(names):
        raise refused(said, f"there are {len(names)} losses", "loss_weights")
    for name, weight in zip(names, weights, strict=True):
        yield look_up(said, losses, name), weight
    if said.value("sft_weight"):
        yield look_up(said, losses, "sft"), said.value("sft_weight")


def _averaged(said: Said, table: Table) -> ConfigError:
    """A term of theirs that depends on the micro-batch: how to make it the same, and what to write instead."""
    words = () if "sft" in said.value("loss") else ("sft_weight", "cpo_alpha")
    batch = said.facts["batch"].key or "per_device_train_batch_size"
    return refused(
        said,
        "tokens are averaged over a micro-batch there, over an example here, which is the same with one pair to a micro-batch alone: set "
        f"`{batch}: 1` and accumulate the more; or import a copy without it, and write in its stage:  objective = {toml_value(table)}",
        *words,
    )


def _part(said: Said, loss: Loss) -> Table:
    own = {key: plain(said.value(word)) for word, key in loss.keys.items()}
    if loss.use == "f_dpo":
        own = _divergence(said, own)
    if not own.get("label_smoothing", 1):
        del own["label_smoothing"]
    if loss.use == "exo" and "label_smoothing" not in {**loss.fixed, **own}:
        raise refused(said, "it needs a `label_smoothing` above 0")
    return {"use": loss.use, **loss.fixed, **own}


def _divergence(said: Said, own: Table) -> Table:
    """Trl 1.16's coefficient is 1 - alpha; at 1 its divergence is the reverse one, at 0 the forward one."""
    theirs = own["divergence"]
    if theirs not in DIVERGENCES:
        raise refused(said, f"divergences that can are {', '.join(DIVERGENCES)}", "f_divergence")
    alpha = plain(round(1 - said.value("f_alpha"), 12))
    if theirs != "alpha_divergence" or alpha in (0, 1):
        del own["alpha"]
        ours = {0: "reverse_kl", 1: "forward_kl"}[alpha] if theirs == "alpha_divergence" else DIVERGENCES[theirs]
        return {**own, "divergence": ours}
    if not 0 < alpha < 1:
        raise refused(said, "a coefficient should lie between 0 and 1", "f_alpha")
    return {**own, "divergence": "alpha", "alpha": alpha}
