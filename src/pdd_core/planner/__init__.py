"""The planner: who makes an answer, how much of it the cloud decodes, and how much of the prompt is read."""
