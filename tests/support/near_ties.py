"""Greedy answers that are computed in two ways: the same, but where two tokens are nearly tied."""

NEAR_TIE = 0.05
"""llama.cpp's kernels for one token and for a batch give logits that differ by 0.01, F16 and float32 likewise."""


async def assert_same(engine, prompt, ours, theirs, *, near=NEAR_TIE):
    """Two answers to `prompt` differ first, if at all, where the engine finds both tokens about equally likely."""
    first = next((index for index, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
    if first is None:
        assert len(ours) == len(theirs)
        return
    await engine.slots[0].memory.rewind(0)
    logits = await engine.slots[0].extend([*prompt, *theirs[:first]], want_logits=True)
    margin = abs(float(logits[ours[first]] - logits[theirs[first]]))
    assert margin < near, f"token {first} is {ours[first]}, not {theirs[first]}, by {margin:.3f} nats"
