"""For fake engines that have only `extend`, and are their own memory."""


class StepByStep:
    """`DeviceEngine.generate` by one `extend` per token, on the event loop. Never reads a refined prompt."""

    history = None

    @property
    def memory(self):
        return self

    async def generate(self, logits, choose):
        while logits is not None:
            choice = choose(logits)
            yield choice
            logits = None if choice.last else await self.extend([choice.token], want_logits=True)
