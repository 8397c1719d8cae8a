"""Triton kernels on a CPU, by Triton's interpreter: run as a program, for it must be asked for before a kernel is made."""

import torch
from zkit_mistral.softmax import InPlaceSoftmax
from zkit_mistral.softmax_triton import TritonSoftmax

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2**-7, torch.float16: 2**-11}
"""Of p - onehot, by the type that it is written in: float32 by what exp makes of a rounding; the interpreter cuts bfloat16 off."""


def compare(rows: int, vocabulary: int, dtype: torch.dtype, scale: float) -> None:
    """Both say of logits what float64 says."""
    draw = torch.Generator().manual_seed(rows * vocabulary)
    logits = scale * torch.randn(rows, vocabulary + 3, generator=draw)[:, :vocabulary]
    target = torch.randint(vocabulary, (rows,), generator=draw)
    expected = logits.double().log_softmax(-1)
    missed = expected.exp().scatter_add(-1, target[:, None], -torch.ones(rows, 1, dtype=torch.float64))
    picked = expected.gather(-1, target[:, None]).squeeze(-1)
    for softmax in (TritonSoftmax(dtype), InPlaceSoftmax()):
        given = logits.clone()
        logp, normaliser, total = softmax.normalise(given, target)
        torch.testing.assert_close(logp.double(), picked, rtol=2e-6, atol=1e-5)
        torch.testing.assert_close(normaliser.double(), logits.double().logsumexp(-1), rtol=2e-6, atol=1e-5)
        tolerance = TOLERANCE[dtype if isinstance(softmax, TritonSoftmax) else torch.float32]
        known = (target, logp, normaliser)
        for found in (softmax.missed_of_used(given, *known, total), softmax.missed(logits.clone(), *known)):
            torch.testing.assert_close(found.double(), missed, rtol=tolerance, atol=1e-6)


for shape in ((1, 2), (7, 101), (5, 4096), (3, 4097), (2, 9001)):
    for short in TOLERANCE:
        for spread in (1.0, 40.0):
            compare(*shape, short, spread)
