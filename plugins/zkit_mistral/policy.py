"""A loaded model that scores packed batches and writes replies."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from zephyr_kit.batch import Batch
from zephyr_kit.protocols import Attention, Reply, Request
from zkit_mistral import sharding
from zkit_mistral.activations import Mover, on_the_host
from zkit_mistral.adapters import Adapters
from zkit_mistral.attention import NAME, Packed, check_layers
from zkit_mistral.generation import write_replies
from zkit_mistral.head import is_likeliest, target_logp
from zkit_mistral.noise import noisy
from zkit_mistral.quiet import quiet
from zkit_mistral.team import Exchanged, Part, Team
from zkit_mistral.tokenizer import ChatTokenizer

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh


class Scorer(nn.Module):
    """The root module: hidden states of the body, then the fused head, in one forward.

    The head's weight is used inside the forward of the root, so that a sharded root gathers
    it there.
    """

    def __init__(self, model: nn.Module, attention: Attention, *, offload: bool = False, noise: float = 0.0) -> None:
        super().__init__()
        check_layers(bare(model))
        self.model = model
        self.attention = attention
        self.noise = noise
        self.mover = Mover.of(next(model.parameters()).device) if offload else None
        self.team: Team | None = None

    def forward(self, batch: Batch) -> Tensor:
        """Log-probability of every target, (M,)."""
        causal = bare(self.model)
        if self.team is not None:
            return self._together(causal, batch, self.team.part(batch))
        hidden_TD = self.hidden(causal, batch, read_R=batch.read_R)
        return target_logp(hidden_TD.index_select(0, batch.source_M), causal.get_output_embeddings().weight, batch.target_M)

    def _together(self, causal: Any, batch: Batch, part: Part) -> Tensor:
        """Of every target, where this device computes no more than a part of the row."""
        hidden_QD = part.sources(self.hidden(causal, batch, part), batch.source_M)
        logp_Q = target_logp(hidden_QD, causal.get_output_embeddings().weight, part.targets(batch.target_M))
        return part.of_all(logp_Q, len(batch.target_M))

    def hidden(self, causal: Any, batch: Batch, part: Part | None = None, *, read_R: Tensor | None = None) -> Tensor:
        """What the body of transformers' model makes of every token, (T, D), or of those of a part; if only some are read, of these."""
        body = getattr(causal, causal.base_model_prefix)
        own = slice(None) if part is None else part.tokens
        packed = Packed(self.attention if part is None else Exchanged(self.attention, part), batch, read_R)
        learns = torch.is_grad_enabled()
        moved = on_the_host(self, self.mover) if self.mover is not None and learns else nullcontext()
        # What is scored while training without learning from it, as for a survey of the step, has none.
        noise = noisy(causal.get_input_embeddings(), batch, self.noise, own) if self.noise and self.training and learns else nullcontext()
        with moved, noise:
            hidden_TD: Tensor = body(
                input_ids=batch.tokens_T[None, own],
                position_ids=batch.positions_T[None, own],
                use_cache=False,
                packed=packed,
            ).last_hidden_state[0]
        packed.check(causal)
        return hidden_TD


class MistralPolicy:
    """See `protocols.Policy`."""

    def __init__(self, scorer: Scorer, adapters: Adapters | None, tokenizer: ChatTokenizer, device: torch.device) -> None:
        self.module = scorer
        self.adapters, self.tokenizer, self.device = adapters, tokenizer, device
        self._twin: Scorer | None = None
        self._scorer = self.module

    def score(self, batch: Batch) -> Tensor:
        logp_M: Tensor = self._scorer(batch)
        return logp_M

    @torch.no_grad()
    def likeliest(self, batch: Batch) -> Tensor:
        """Whether each target is the token that greedy decoding would write, (M,)."""
        causal = bare(self._scorer.model)
        hidden_TD = self._scorer.hidden(causal, batch, read_R=batch.read_R)
        return is_likeliest(hidden_TD.index_select(0, batch.source_M), causal.get_output_embeddings().weight, batch.target_M)

    @torch.no_grad()
    def distributions(self, batch: Batch) -> Tensor:
        causal = bare(self._scorer.model)
        hidden_MD = self._scorer.hidden(causal, batch).index_select(0, batch.source_M)
        logits_MV: Tensor = causal.get_output_embeddings()(hidden_MD)
        return logits_MV.to(torch.promote_types(logits_MV.dtype, torch.float32)).log_softmax(-1)

    def keep_reference(self) -> None:
        if self.adapters is not None:
            self.adapters.keep_reference()
        elif self._twin is None:
            self._twin = copy.deepcopy(self.module).requires_grad_(requires_grad=False).eval()

    def shard(self, mesh: DeviceMesh) -> None:
        for scorer in (self.module, self._twin):
            if scorer is not None:
                sharding.shard(scorer, bare(scorer.model), mesh)

    def share_rows(self, group: ProcessGroup) -> None:
        team = Team(group)
        team.check(bare(self.module.model).config)
        for scorer in (self.module, self._twin):
            if scorer is not None:
                scorer.team = team

    @contextmanager
    def reference(self) -> Iterator[None]:
        training = self.module.training
        self.module.eval()
        try:
            if self.adapters is not None:
                with self.adapters.active(self.adapters.reference):
                    yield
            else:
                assert self._twin is not None, "keep_reference comes before reference"
                self._scorer = self._twin
                yield
        finally:
            self._scorer = self.module
            self.module.train(training)

    def generate(self, requests: Sequence[Request], *, on_text: Callable[[str], None] | None = None) -> Iterator[tuple[int, Reply]]:
        writing = write_replies(bare(self.module.model), self.tokenizer, requests, device=self.device, on_text=on_text)
        while True:
            with self._writing():
                written = next(writing, None)
            if written is None:
                return
            yield from written

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Attention of transformers' own, as its cache wants it; never while somebody else has the word."""
        training, causal = self.module.training, bare(self.module.model)
        self.module.eval()
        causal.set_attn_implementation("sdpa")
        try:
            with torch.inference_mode():
                yield
        finally:
            causal.set_attn_implementation(NAME)
            self.module.train(training)

    def save(self, folder: Path) -> None:
        causal = bare(self.module.model)
        shared = sharding.is_shared_out(causal)
        weights = sharding.gathered(causal) if shared and self.adapters is None else None
        if shared and not sharding.is_first():
            return
        folder.mkdir(parents=True, exist_ok=True)
        with quiet():
            self._save(folder, causal, weights)

    def _save(self, folder: Path, causal: Any, weights: dict[str, Tensor] | None) -> None:
        causal.generation_config.eos_token_id = self.tokenizer.stop_ids
        causal.generation_config.pad_token_id = self.tokenizer.tokens.eos_token_id
        if self.adapters is None:
            causal.save_pretrained(folder, state_dict=weights)
        else:
            self.adapters.save(folder)
            causal.generation_config.save_pretrained(folder)
        self.tokenizer.tokens.save_pretrained(folder)


def bare(model: nn.Module) -> Any:
    """The model of transformers, with adapters injected but without peft's wrapper."""
    wrapper: Any = model
    return wrapper.get_base_model() if hasattr(model, "get_base_model") else model


